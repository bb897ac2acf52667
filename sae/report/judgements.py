"""What a language model said of latents, as it is shown: scores beside the rule's and the control's, conclusions, a feature's head."""

from typing import Any

from sae.report.explanations import interval
from sae.report.numbers import DASH, count, fixed
from sae.report.render import escaped, visible

READINGS = {"model": "the model's", "rule": "the rule's", "control": "another latent's"}
"""Whose explanation it is, in the order shown."""
SCORES = {
    "balanced_accuracy": (
        "detection",
        "Of texts with the latent and texts without, the shares that a reader of the explanation told rightly, mean. Chance: .5.",
    ),
    "f1": ("detection F1", "Harmonic mean of precision and recall in telling the texts with the latent."),
    "intruder": (
        "intruder",
        "Share of trials in which the model named, of five texts, the one that does not belong. It needs no explanation. Chance: .2.",
    ),
}
"""Name and explanation of each score."""


def lines(record: Any) -> list[tuple[str, dict[str, str]]]:
    """Return the title of each score with its mean over latents for each reading, with the interval; a dash where it has none."""
    return [
        (title, {reading: _mean(record.scores.get(score, {}).get(reading)) for reading in READINGS})
        for score, (title, _) in SCORES.items()
    ]


def conclusions(record: Any) -> list[str]:
    """Return what can be said of a run's judgements, in sentences."""
    texts = [
        f"{record.model} explained {len(record.judged) - _without(record):,} of {len(record.judged):,} latents: {record.answers:,} "
        f"answers, {record.tokens_in:,} tokens in and {record.tokens_out:,} out; {record.unread:,} answers could not be read and "
        f"count as none."
    ]
    if record.too_few:
        texts.append(f"Too few texts to judge: {', '.join(map(str, record.too_few))}.")
    scores = record.scores.get("balanced_accuracy", {})
    for reading in ("control", "rule"):
        better = scores[reading].better_by if reading in scores else None
        if better is None or better.value is None or better.low is None or better.high is None:
            continue
        verdict = "better" if better.low > 0 else "worse" if better.high < 0 else "not distinguishable"
        against = "than" if verdict != "not distinguishable" else "from"
        texts.append(
            f"In detection the model's explanations are {verdict} {against} {READINGS[reading]} on the same texts "
            f"({fixed(better.value, 3, sign=True)}, {interval(better)})."
        )
    return texts


def head(one: Any, record: Any) -> str:
    """Return a judgement (`sae.features.judgements.Judgement`) with its scores beside the rule's and the control's as HTML.

    Empty for None."""
    if one is None:
        return ""
    said = visible(one.explanation) if one.explanation is not None else "its answer could not be read"
    title, why = SCORES["balanced_accuracy"]
    figures = [
        f'<span title="{escaped(f"{why} 95 % interval {interval(one.of(reading))}. On the same texts.")}">'
        f"{escaped(f'{title} with {whose}')} {_figure(one.of(reading), strong=reading == 'model')}</span>"
        for reading, whose in _readings(one).items()
    ]
    if one.intruder.value is not None:
        title, why = SCORES["intruder"]
        more = f"{why} 95 % interval {interval(one.intruder)}, of {one.trials} trials."
        figures.append(
            f'<span title="{escaped(more)}">{title} {_figure(one.intruder, strong=True)} <span class="dim">chance .20</span></span>'
        )
    unread = one.unanswered_trials + sum(each.unanswered for each in one.detection.values())
    if unread:
        figures.append(f'<span class="dim">{count(unread)} not answered readably</span>')
    sign = "" if one.sign > 0 else '<span class="dim">negative values: </span>'
    return (
        f'<p class="sae explained">{sign}<span class="dim">{escaped(record.model)}:</span> {escaped(said)}'
        f'<span class="scores">{" ".join(figures)}</span></p>'
    )


def _readings(one: Any) -> dict[str, str]:
    names = {
        "model": "this",
        "rule": "the rule",
        "control": f"the explanation of feature {one.control_latent}",
    }
    return {reading: name for reading, name in names.items() if one.of(reading).value is not None}


def _figure(estimate: Any, strong: bool) -> str:
    value = fixed(estimate.value, 2)
    shown = f"<b>{value}</b>" if strong else value
    return f'{shown} <span class="dim">{fixed(estimate.low, 2)}–{fixed(estimate.high, 2)}</span>'


def _mean(found: Any) -> str:
    if found is None or not found.number:
        return DASH
    return f"{fixed(found.mean.value, 3)}\n{interval(found.mean)}"


def _without(record: Any) -> int:
    return sum(one.explanation is None for one in record.judged)
