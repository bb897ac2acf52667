"""Let a language model explain latents of a run, score what it says beside rules and controls, and keep it in the features folder."""

import logging
from dataclasses import asdict
from typing import NamedTuple

from activations.disk import files
from activations.errors import RunError
from activations.progress import Progress, no_progress
from sae.features.explanations import Explanations, explanations_of
from sae.features.feature import FeatureStore, features_of
from sae.features.judgements import Judgements, answers_folder, save_judgements
from sae.judging import asking, prompts
from sae.judging.client import Judge
from sae.judging.config import JudgeConfig
from sae.judging.cost import Cost, cost_of
from sae.judging.texts import Sheet, read_pool, sheets
from sae.rules.corpus import FEWEST_DOCUMENTS
from sae.runs.run import Run

log = logging.getLogger(__name__)


class _Material(NamedTuple):
    """What questions are made of."""

    features: FeatureStore
    sheets: list[Sheet]
    too_few: list[int]
    rules: dict[tuple[int, int], str] | None
    """Rules by latent and sign: none where they would be scored on text that chose them, None where `sae explain` has made none."""
    judge: Judge


def judge(run: Run, cfg: JudgeConfig, progress: Progress = no_progress) -> Judgements:
    """Let the language model at `cfg.judge` explain latents of a run with features, and write judgements.json into its features folder.

    It sees texts of one half of the documents, in which the latent fires and does not. Texts of the other half score its
    explanation, the rule's (`explain`) and, as a control, that of another latent: which of them hold the feature (detection)? A
    third score needs no explanation: which of five texts does not belong (intruder)? All texts are sent to that address. Rules that
    were chosen on half of the windows, because there are fewer than eight documents, are left out: a document whose texts score
    them may have chosen them.

    Each answer is kept in the folder `judged` by the content of its question: no question is asked twice, by an interrupted call,
    an equal one, or one with more latents. Labels and rules stay as they are.

    Raises ConfigError for a wrong setting, RunError where features are missing or of other weights, StoreError when the store is
    gone, JudgeError when the model refuses or does not answer, BusyError when another process works in the features folder."""
    _ = cfg.address, cfg.model, cfg.key
    material = _material(run, cfg)
    features, found, model = material.features, material.sheets, material.judge
    if not found:
        raise RunError(
            f"no latent of {run.path} has enough texts to be judged: it must fire in some documents of either half, and must not "
            f"fire in pieces of {cfg.judge_tokens} tokens; try fewer --judge-tokens or more --judge-windows"
        )
    with files.alone_in(features.path):
        first = model.ask(asking.explain_questions(found), "ask for explanations", progress)
        explained = [prompts.explanation_in(answer.text) for answer in first]
        read = asking.readings(found, explained, material.rules or {})
        asked = asking.score_questions(found, read, cfg)
        answers = model.ask([one.question for one in asked], "score explanations", progress)
        judged = asking.judged(found, read, asked, answers)
        different = {one.question: answer for one, answer in zip(asked, answers, strict=True)}
        all_answers = [*first, *different.values()]
        content = {
            "sae_sha256": run.digest,
            "model": cfg.model,
            "config": cfg.recorded(),
            "too_few": material.too_few if cfg.judge_only else [],
            "scores": {
                score: {reading: asdict(found) for reading, found in readings.items()}
                for score, readings in asking.distributions(judged).items()
            },
            "answers": len(all_answers),
            "unread": explained.count(None) + asking.unread(asked, answers),
            "tokens_in": sum(answer.tokens_in or 0 for answer in all_answers),
            "tokens_out": sum(answer.tokens_out or 0 for answer in all_answers),
        }
        return save_judgements(features, judged, content)


def judge_cost(run: Run, cfg: JudgeConfig) -> Cost:
    """Return what `judge` would ask and what it costs. Nothing is sent anywhere.

    Raises ConfigError, RunError and StoreError as `judge` does."""
    material = _material(run, cfg)
    return cost_of(material.sheets, len(material.too_few), material.rules, material.judge, cfg)


def _material(run: Run, cfg: JudgeConfig) -> _Material:
    features = features_of(run)
    model = Judge(cfg, answers_folder(features))
    explanations = explanations_of(features)
    rules = None if explanations is None else _rules(explanations)
    made, too_few = sheets(features, read_pool(run, cfg), cfg)
    return _Material(features, made, too_few, rules, model)


def _rules(explanations: Explanations) -> dict[tuple[int, int], str]:
    """Return the rules by latent and sign, or none where documents that score texts have chosen rules."""
    if explanations.record.halves != "documents":
        log.warning(
            "the rules are not scored beside the model's explanations: with fewer than %d documents they were chosen on half of the "
            "windows, and any document may have chosen them",
            FEWEST_DOCUMENTS,
        )
        return {}
    return {
        (one.latent, one.sign): one.text
        for both in explanations.by_latent.values()
        for one in both
        if one.rule_kind != "none"
    }
