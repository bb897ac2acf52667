"""`sae families`: parents and children among a run's latents, beside how many of them chance alone would give."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError, quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.features.explanations import explanations_of
from sae.features.families import INDEX, Families
from sae.features.feature import describer, features_of
from sae.report import families as report
from sae.runs.run import Run
from sae.workflows.families import FamiliesConfig, families


@dataclass(frozen=True)
class FamiliesCommand:
    """Find families among a run's latents: a parent fires wherever its child fires, more than chance explains, and the child's
    tokens need it for their reconstruction.

    Example: sae families runs/demo. The run needs features. After an interruption the same command continues. What counts as a
    parent: docs/feature-families.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    largest: int = 10
    """Families that are printed, the largest first."""
    config: Annotated[FamiliesConfig, tyro.conf.arg(name="")] = field(default_factory=FamiliesConfig)

    def __post_init__(self) -> None:
        if self.largest < 0:
            raise ConfigError(f"largest = {self.largest} must be at least 0")


def main(args: list[str]) -> int:
    """Parse the arguments of `sae families` and run it."""
    command = arguments.parse(FamiliesCommand, "sae families", args)
    run = Run(command.run)
    found = families(run, command.config, show_progress)
    show(run, found, command.largest)
    print(f"{found.path / INDEX}: written; next: sae app {quoted(run.path.parent)}, page Feature")
    return 0


def show(run: Run, found: Families, largest: int) -> None:
    """Print how many pairs met each condition, beside shuffled firings, and the largest families."""
    features = features_of(run)
    explained = explanations_of(features)
    describe = describer(features, features.labels.all(), explained.names if explained else {})
    table = Table(title=f"{run.path}: families, {report.basis(found.record)}")
    for column in report.HEADS:
        table.add_column(column, justify="right" if column else "left")
    for row in report.lines(found.record):
        table.add_row(*row)
    table.caption = report.conclusion(found.record)
    Console().print(table)
    if caution := report.caution(found.record, sum(fired > 0 for fired in found.table["fired"].to_pylist())):
        print(caution)
    for root in found.roots[:largest]:
        print("\n".join(report.tree(found, root, describe, report.FEW)))
    if len(found.roots) > largest:
        print(f"and {len(found.roots) - largest:,} smaller families (--largest)")
