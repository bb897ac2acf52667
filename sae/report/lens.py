"""Present lenses: the tokens that they favour, and how well each predicts the measured effects of latents."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sae.report import render
from sae.report.numbers import count, fixed, number, percent, signed
from sae.runs.records import Estimate, FeatureRow

FEW = 5  # tokens that the page shows of either side
TITLES = {
    "jacobian": ("Jacobian lens", "its decoder direction through the mean Jacobian of the later blocks"),
    "logit": ("Logit lens", "next tokens that its decoder direction favours and disfavours"),
}
"""Title and remark of each lens, the more faithful first where nothing is measured."""
SIDES = ("raised", "lowered")
COLUMNS = {
    "spearman": "rank correlation",
    "pearson": "correlation",
    "listed": "of the ten most raised",
    "of_another": "lens of another latent",
}


class Section(NamedTuple):
    """A lens of one latent, as it is shown."""

    title: str
    remark: str
    agreement: str
    """How well it predicts measured effects, in a sentence; how to find out where that is not known."""
    lists: tuple[str, str]
    """HTML of the tokens that it raises and of those that it lowers."""


class Line(NamedTuple):
    """A lens's agreement with measured effects, as text."""

    title: str
    values: list[str]


def sections(row: FeatureRow, tokens: Any, record: Any, most: int | None = None) -> list[Section]:
    """Return the lenses of a latent, the one that predicts best first.

    `tokens` (`sae.features.lenses.LensTokens`) are the Jacobian lens's and `record` (`LensRecord`) says how well lenses predict;
    both are None where `sae lens` has not been run. Both tell what the latent does at its largest value, or at its most negative one
    where it has no other: the Jacobian lens as the change of logits, the logit lens in a scale of its own."""
    shown: dict[str, Section] = {}
    value = (row["max"] or 0.0) if (row["max"] or 0.0) > 0 else (row["min"] or 1.0)
    at = (
        f"its {'largest' if value > 0 else 'most negative'} value, {number(value)}"
        if row["fired"]
        else "a value of 1"
    )

    def told(name: str, by: Any, factor: float, scale: str) -> Section:
        sides = [
            (by["raised_tokens"][:most], by["raised_logits"][:most]),
            (by["lowered_tokens"][:most], by["lowered_logits"][:most]),
        ]
        lists = tuple(
            render.logits(side, side_tokens, [factor * logit for logit in logits])
            for side, (side_tokens, logits) in zip(SIDES, sides if factor > 0 else sides[::-1], strict=True)
        )
        title, remark = TITLES[name]
        return Section(title, f"{remark}; {scale}", agreement(record, name), (lists[0], lists[1]))

    if tokens is not None:
        shown["jacobian"] = told("jacobian", vars(tokens), value, f"change of the logits at {at}")
    if row.get("raised_tokens"):
        # The decoder row goes through the final norm without the rest of the stream, so that its logits are those of no value
        scale = "only order and relative size count" + ("" if value > 0 else f"; sides as at {at}")
        shown["logit"] = told("logit", row, 1.0 if value > 0 else -1.0, scale)
    best = None if record is None else record.best
    return [shown[name] for name in sorted(shown, key=lambda name: name != best)]


def agreement(record: Any, name: str) -> str:
    """Return how well a lens predicts the measured effects of a run's latents, in a sentence."""
    if record is None:
        return "How well it predicts what the latents of this run do has not been measured: sae lens does."
    found = record.agreement[name]
    return (
        f"Rank correlation with the measured effects of {count(len(record.latents))} latents: {_with_interval(found.spearman)}; "
        f"the lens of another latent has {fixed(found.of_another.value, 2)}."
    )


def lines(record: Any) -> Iterator[Line]:
    """Yield a line for each lens, the best first."""
    for name in sorted(record.agreement, key=lambda name: name != record.best):
        found = record.agreement[name]
        values = [_with_interval(getattr(found, score)) for score in COLUMNS]
        yield Line(TITLES[name][0], values)


def conclusions(record: Any) -> list[str]:
    """Return what can be said of a run's lenses, in sentences."""
    told = [
        f"The mean Jacobian predicts {percent(round(record.explained, 3))} of the response to small changes, measured on "
        f"{count(record.rows)} rows; {percent(round(record.measured_share, 3))} of its matrix is measured, the rest a tuned lens."
    ]
    better: Estimate | None = record.better_by
    if better is not None and better.value is not None and better.low is not None and better.high is not None:
        between = f"({signed(better.low)} to {signed(better.high)})"
        if better.low > 0:
            told.append(
                f"The Jacobian lens predicts effects better than the logit lens, by {signed(better.value)} {between}."
            )
        elif better.high < 0:
            told.append(
                f"The logit lens predicts effects better than the Jacobian lens, by {signed(-better.value)} {between}."
            )
        else:
            told.append(f"The two lenses cannot be told apart: {signed(better.value)} {between}.")
    return told


def _with_interval(estimate: Estimate) -> str:
    return f"{fixed(estimate.value, 2)} ({fixed(estimate.low, 2)} to {fixed(estimate.high, 2)})"
