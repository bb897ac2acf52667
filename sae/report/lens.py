"""Present lenses: the tokens that they favour, and how well each predicts the measured effects of latents."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sae.report import render
from sae.report.numbers import count, fixed, percent, signed
from sae.runs.records import Estimate, FeatureRow

FEW = 5  # tokens that the page shows of either side
TITLES = {
    "jacobian": ("Jacobian lens", "its decoder direction through the mean Jacobian of the later blocks"),
    "logit": ("Logit lens", "next tokens that its decoder direction favours and disfavours"),
}
"""Title and remark of each lens, the more faithful first where nothing is measured."""
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
    both are None where `sae lens` has not been run. The Jacobian lens is told as the change of logits at the latent's largest value,
    or at its most negative one where it has no other."""
    shown: dict[str, Section] = {}
    if tokens is not None:
        value = (row["max"] or 0.0) if (row["max"] or 0.0) > 0 else (row["min"] or 1.0)
        sides = [
            (tokens.raised_tokens[:most], tokens.raised_logits[:most]),
            (tokens.lowered_tokens[:most], tokens.lowered_logits[:most]),
        ]
        (raised, up), (lowered, down) = sides if value > 0 else sides[::-1]
        lists = (
            render.logits("raised", raised, [value * by for by in up]),
            render.logits("lowered", lowered, [value * by for by in down]),
        )
        shown["jacobian"] = Section(*TITLES["jacobian"], agreement(record, "jacobian"), lists)
    if row.get("raised_tokens"):
        lists = (
            render.logits("raised", row["raised_tokens"][:most], row["raised_logits"][:most]),
            render.logits("lowered", row["lowered_tokens"][:most], row["lowered_logits"][:most]),
        )
        shown["logit"] = Section(*TITLES["logit"], agreement(record, "logit"), lists)
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
