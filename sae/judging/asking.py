"""All questions about the texts of latents, and the scores that their answers give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.evaluation import bootstrap
from sae.features.explanations import Distribution
from sae.features.judgements import CONTROL, MODEL, READINGS, RULE, Detection, Judgement
from sae.judging import prompts
from sae.judging.client import Answer, Question
from sae.judging.config import JudgeConfig
from sae.judging.texts import Sheet, Text
from sae.rules.explaining import distribution
from sae.runs.records import Estimate

AT_ONCE = 10  # texts of one question: small models lose track of more
OTHERS = 4  # texts beside the one that does not belong
INTRUDER = "intruder"
NONE = Estimate(None, None, None)


class Asked(NamedTuple):
    """One question about a sheet, with what would be right."""

    place: int
    """Place of the sheet."""
    about: str
    """One of `READINGS`, or `intruder`."""
    question: Question
    truth: tuple[bool, ...]
    """Which of its texts the latent fires on."""
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Readings:
    """The explanations that the model is asked about for one sheet; None where there is none."""

    model: str | None
    rule: str | None
    control: str | None
    control_latent: int | None

    def items(self) -> list[tuple[str, str]]:
        """Return those that there are, by name."""
        found = {MODEL: self.model, RULE: self.rule, CONTROL: self.control}
        return [(name, text) for name in READINGS if (text := found[name]) is not None]


def readings(
    sheets: Sequence[Sheet], explained: Sequence[str | None], rules: Mapping[tuple[int, int], str]
) -> list[Readings]:
    """Return what each sheet is read with: the model's explanation, the rule of its latent and sign, and a control.

    The control is the explanation of the sheet before, of those that have one, and for the first that of the second: sheets come
    in an order drawn at random, and a longer list of them changes no control but that of the first."""
    known = [place for place, text in enumerate(explained) if text is not None]
    before = dict(zip(known[1:], known, strict=False)) | ({known[0]: known[1]} if len(known) > 1 else {})
    found = []
    for place, (sheet, text) in enumerate(zip(sheets, explained, strict=True)):
        other = before.get(place)
        found.append(
            Readings(
                text,
                rules.get((sheet.latent, sheet.sign)),
                None if other is None else explained[other],
                None if other is None else sheets[other].latent,
            )
        )
    return found


def explain_questions(sheets: Sequence[Sheet]) -> list[Question]:
    """Return the question for an explanation of each sheet."""
    return [prompts.explain(sheet.shown, sheet.near) for sheet in sheets]


def score_questions(sheets: Sequence[Sheet], read: Sequence[Readings], cfg: JudgeConfig) -> list[Asked]:
    """Return the questions that score explanations: detection with each reading on the same texts, and intruder trials."""
    asked = []
    for place, sheet in enumerate(sheets):
        rng = np.random.default_rng((cfg.judge_seed, 3, sheet.latent))
        texts = [(text, True) for text in sheet.firing] + [(text, False) for text in sheet.silent]
        texts = [texts[index] for index in rng.permutation(len(texts))]
        for name, explanation in read[place].items():
            for start in range(0, len(texts), AT_ONCE):
                some = texts[start : start + AT_ONCE]
                question = prompts.detect(explanation, [text for text, _ in some])
                asked.append(_asked(place, name, question, some))
        # each silent text is the intruder once: asked twice about it, a reader says nothing new
        for silent in sheet.silent[: cfg.judge_trials]:
            drawn = rng.permutation(len(sheet.firing))[:OTHERS]
            some = [(sheet.firing[index], True) for index in drawn]
            some.insert(int(rng.integers(OTHERS + 1)), (silent, False))
            asked.append(_asked(place, INTRUDER, prompts.intruder([text for text, _ in some]), some))
    return asked


def _asked(place: int, about: str, question: Question, texts: Sequence[tuple[Text, bool]]) -> Asked:
    truth, documents = tuple(fires for _, fires in texts), tuple(text.document for text, _ in texts)
    return Asked(place, about, question, truth, documents)


def judged(
    sheets: Sequence[Sheet], read: Sequence[Readings], asked: Sequence[Asked], answers: Sequence[Answer]
) -> list[Judgement]:
    """Return the judgement of each sheet. Answers that cannot be read count as none; their number is told."""
    by_sheet: dict[tuple[int, str], list[tuple[Asked, str]]] = {}
    for one, answer in zip(asked, answers, strict=True):
        by_sheet.setdefault((one.place, one.about), []).append((one, answer.text))
    found = []
    for place, (sheet, reading) in enumerate(zip(sheets, read, strict=True)):
        intruder, trials, unanswered = _intruder(by_sheet[place, INTRUDER])
        detection = {name: _detection(by_sheet[place, name]) for name, _ in reading.items()}
        found.append(
            Judgement(
                sheet.latent,
                sheet.sign,
                reading.model,
                reading.rule,
                reading.control_latent,
                detection,
                intruder,
                trials,
                unanswered,
            )
        )
    return found


def unread(asked: Sequence[Asked], answers: Sequence[Answer]) -> int:
    """Return how many different questions have an answer that cannot be read."""
    return len(
        {
            one.question
            for one, answer in zip(asked, answers, strict=True)
            if (
                prompts.intruder_in(answer.text, len(one.truth))
                if one.about == INTRUDER
                else prompts.texts_in(answer.text, len(one.truth))
            )
            is None
        }
    )


def distributions(judgements: Sequence[Judgement]) -> dict[str, dict[str, Distribution]]:
    """Return the distribution of each score over latents for each reading; rules and controls are paired with the model's."""
    scores = {}
    for name in ("balanced_accuracy", "f1"):
        values = {
            reading: {
                (one.latent, one.sign): value
                for one in judgements
                if (found := one.detection.get(reading)) is not None
                and (value := getattr(found, name).value) is not None
            }
            for reading in READINGS
        }
        scores[name] = {
            reading: distribution(values[reading], None if reading == MODEL else values[MODEL])
            for reading in READINGS
        }
    intruders = {
        (one.latent, one.sign): one.intruder.value for one in judgements if one.intruder.value is not None
    }
    return {**scores, INTRUDER: {MODEL: distribution(intruders, None)}}


def _detection(answered: Sequence[tuple[Asked, str]]) -> Detection:
    said: list[bool] = []
    truth: list[bool] = []
    documents: list[int] = []
    unanswered = 0
    for one, answer in answered:
        named = prompts.texts_in(answer, len(one.truth))
        if named is None:
            unanswered += len(one.truth)
            continue
        said, truth, documents = [*said, *named], [*truth, *one.truth], [*documents, *one.documents]
    names, fires = np.array(said, bool), np.array(truth, bool)
    sums = (names & fires, fires, ~names & ~fires, ~fires)
    balanced = _interval(lambda tp, p, tn, n: (tp / p + tn / n) / 2, documents, *sums)
    f1 = _interval(lambda tp, p, named: 2 * tp / (p + named), documents, names & fires, fires, names)
    return Detection(balanced, f1, len(truth), unanswered)


def _intruder(answered: Sequence[tuple[Asked, str]]) -> tuple[Estimate, int, int]:
    right = [
        not one.truth[named]
        for one, answer in answered
        if (named := prompts.intruder_in(answer, len(one.truth))) is not None
    ]
    if not right:
        return NONE, 0, len(answered)
    # Wilson's, because of so few trials a bootstrap says nothing where all are right or all wrong
    value = sum(right) / len(right)
    low, high = bootstrap.wilson(value, len(right))
    return Estimate(value, float(low), float(high)), len(right), len(answered) - len(right)


def _interval(formula: Callable[..., Any], documents: Sequence[int], *counted: NDArray[np.bool_]) -> Estimate:
    """Return a formula of counts, in [0, 1], with its 95 % interval; empty where it is not defined.

    The interval is from resampling documents, or Wilson's for as many trials as documents where all resamples are alike. Of a single
    document it is unknown."""
    _, owner = np.unique(np.array(documents, np.int64), return_inverse=True)
    if not len(owner):
        return NONE
    sums = [np.bincount(owner, each) for each in counted]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = formula(*(each.sum() for each in sums))
        counts = bootstrap.draws(len(sums[0]))
        low, high = bootstrap.limits(formula(*(counts @ each for each in sums)))
    if not np.isfinite([value, low, high]).all():
        return NONE
    if len(sums[0]) == 1:  # nothing is known of the spread over documents
        return Estimate(float(value), None, None)
    # All right or all wrong: all resamples are alike, which does not mean that the value is known
    if low == high:
        low, high = bootstrap.wilson(value, len(sums[0]))
    return Estimate(float(value), float(low), float(high))
