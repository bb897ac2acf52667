"""A table over methods on planted features, as the command line shows it. Pure: from measures and verdicts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae.report.numbers import fixed

FEATURES = ("", "L0", "FVU", "F1", "MCC", "uniq", "found")
HIERARCHY = ("parents", "beside", "absorb")
SAID = {
    "recovered": "recovered by {}",
    "absorbed": "not recovered but absorbed by {}: most parents are found, but their latents fire more rarely where a child is active",
    "not recovered": "not recovered by {}",
}
SHORT = {"absorbed": "not: absorbed"}


class Shown(NamedTuple):
    """One SAE of a table."""

    measures: Mapping[str, float | None]
    """Fields of `sae.evaluation.recovery.Recovery` by name."""
    found: float | None
    """Share of planted features found."""
    verdict: str
    hierarchy: str | None
    """None where the planted features have no hierarchy."""


def columns(lines: Sequence[Shown]) -> tuple[str, ...]:
    """Return the titles of the table's columns; those about a hierarchy only where there is one."""
    return (*FEATURES, *(HIERARCHY if any(line.hierarchy for line in lines) else ()), "verdict")


def cells(name: str, line: Shown) -> list[str]:
    """Return one row of the table, as text."""
    value = line.measures
    row = [name, fixed(value["l0"], 2), _share(value["nmse"], 3)]
    row += [_share(value[key]) for key in ("f1", "mcc", "uniqueness")] + [_share(line.found)]
    if line.hierarchy is None:
        return [*row, line.verdict]
    return [
        *row,
        *(_share(value[key]) for key in ("parents_found", "parent_recall", "absorption")),
        SHORT.get(line.hierarchy, line.hierarchy),
    ]


def conclusions(lines: Mapping[str, Shown]) -> list[str]:
    """Return a sentence for each verdict that was given, which names the methods that it was given to."""
    subject = "the hierarchy is" if any(line.hierarchy for line in lines.values()) else "the features are"
    said = []
    for verdict, sentence in SAID.items():
        names = [name for name, line in lines.items() if (line.hierarchy or line.verdict) == verdict]
        if names:
            said.append(f"{subject} {sentence.format(', '.join(names))}")
    return said


def _share(value: float | None, places: int = 2) -> str:
    """Return a number without the 0 before its point, so that eleven columns fit into 80 characters."""
    return fixed(value, places).replace("0.", ".", 1) if value is None or abs(value) < 1 else f"{value:.2f}"
