"""Rule explanations as they are shown: a line for each score beside its controls, conclusions, and the head of a feature's page."""

import re
from collections.abc import Sequence
from typing import Any

from sae.report.numbers import count, fixed, percent
from sae.report.render import escaped, visible
from sae.runs.records import Estimate

TITLES = {
    "f1": ("F1", "Harmonic mean of precision and recall: 1 where the rule says exactly where it fires."),
    "precision": ("precision", "Share of the tokens that the rule matches on which it fires."),
    "recall": (
        "recall",
        "Share of its firings that the rule matches. Where there is no rule, as for most shuffled firings, every token counts as "
        "matched, and the recall is 1.",
    ),
    "discrimination": (
        "discrimination",
        "How much better the rule fits it than its nearest features: 1 where it never fits them, .5 where it fits them as well.",
    ),
    "sensitivity": (
        "sensitivity",
        "Share of near contexts on which it fires: those whose last two tokens are those of one of its firings.",
    ),
    "intruder": (
        "intruder",
        "Share of trials in which the context that is least like four of its own is the one it does not fire on. Chance: .2.",
    ),
    "examples": (
        "example embedding",
        "How likely a context on which it fires is more like its other contexts than one on which it does not. Chance: .5.",
    ),
}
"""Name and explanation of each score."""
KINDS = {"latent": "latents", "random direction": "random directions", "shuffled": "shuffled firings"}
"""What the kinds of explanations are called, in the order shown."""
SIGNS = {1: "", -1: "its negative values: "}
CONFUSED = 0.9  # discrimination below which it is said which other feature a rule fits
AUTOMATIC = "rule: "
"""Precedes an explanation where it stands for a label that nobody gave."""


def lines(record: Any) -> dict[str, dict[str, Any]]:
    """Return the distribution (`sae.features.explanations.Distribution`) of each score over each kind, in the order shown.

    Scores that were not asked for are left out."""
    known = [score for score in TITLES if record.scores[score]["latent"].number]
    return {score: {kind: record.scores[score][kind] for kind in KINDS} for score in known}


def conclusions(record: Any) -> list[str]:
    """Return what can be said of a run's explanations, in sentences."""
    f1 = record.scores["f1"]
    own = f1["latent"]
    texts = [
        f"{own.number:,} explanations, chosen on {record.tokens.choosing:,} tokens and scored on {record.tokens.scoring:,} others "
        f"(halves of {record.halves}); {record.too_rare:,} latents fire too rarely."
    ]
    shares = [f"{percent(round(own.from_half, 3))} of the explanations have an F1 of at least .5"]
    shares += [
        f"{percent(round(f1[kind].from_half, 3))} of {KINDS[kind]}"
        for kind in KINDS
        if kind != "latent" and f1[kind].number
    ]
    texts.append(f"{', '.join(shares)}.")
    random = f1["random direction"]
    if random.better_by is not None and random.better_by.low is not None:
        better = random.better_by
        if better.low > 0:
            said = f"the latents' F1 is larger by {fixed(better.value, 3)} ({interval(better)})"
        else:
            said = f"the latents' F1 is not larger (by {fixed(better.value, 3)}, {interval(better)})"
        texts.append(f"Beside random directions of the activations that fire as often, {said}.")
    return texts


def interval(estimate: Estimate) -> str:
    """Return the ends of an interval."""
    return f"{fixed(estimate.low, 3)} to {fixed(estimate.high, 3)}"


def automatic(text: str) -> str:
    """Return an explanation as it stands in the place of a label.

    A word before its texts, as in: tokens “ the”, is left out, because columns of tables are narrow."""
    return AUTOMATIC + re.sub(r"^(tokens?|text|words?) (?=“)", "", text)


def head(explanations: Sequence[Any], chance: dict[str, tuple[float | None, float | None]]) -> str:
    """Return a feature's explanations (`sae.features.explanations.Explanation`) with their scores as HTML; empty without any.

    `chance` has the mean of each score over random directions and shuffled firings (`beside`)."""
    return "".join(_explained(one, chance, len(explanations) > 1) for one in explanations)


def missing(command: str) -> str:
    """Return the line, as HTML, that stands in the place of a rule where `command` has not looked for rules yet."""
    return (
        f'<p class="sae explained"><span class="dim">No rule yet: <code>{escaped(command)}</code> finds the one that best says where '
        "each feature fires, and scores it beside controls.</span></p>"
    )


def beside(record: Any) -> dict[str, tuple[float | None, float | None]]:
    """Return each score's mean over random directions and over shuffled firings."""
    return {
        score: (kinds["random direction"].mean.value, kinds["shuffled"].mean.value)
        for score, kinds in record.scores.items()
    }


def _explained(one: Any, chance: dict[str, tuple[float | None, float | None]], signed: bool) -> str:
    sign = f'<span class="dim">{escaped("positive values: " if one.sign > 0 else "negative values: ")}</span>'
    figures = []
    for score, (title, why) in TITLES.items():
        estimate = getattr(one, score)
        if estimate.value is None:
            continue
        random, shuffled = chance.get(score, (None, None))
        more = (
            f"{why} 95 % interval {interval(estimate)}. "
            f"Mean of random directions {fixed(random, 2)}, of shuffled firings {fixed(shuffled, 2)}."
        )
        figures.append(
            f'<span title="{escaped(more)}">{escaped(title)} <b>{fixed(estimate.value, 2)}</b> '
            f'<span class="dim">{fixed(estimate.low, 2)}–{fixed(estimate.high, 2)}, random {fixed(random, 2)}, '
            f"shuffled {fixed(shuffled, 2)}</span></span>"
        )
    told = one.discrimination.value
    if one.confused_with is not None and told is not None and told < CONFUSED:
        figures.append(f'<span class="dim">fits feature {count(one.confused_with)} too</span>')
    doubt = "" if one.beats_chance else '<span class="badge">not better than chance</span>'
    return (
        f'<p class="sae explained">{sign if signed else ""}<span class="dim">Rule:</span> {escaped(visible(one.text))} {doubt}'
        f'<span class="scores">{" ".join(figures)}</span></p>'
    )
