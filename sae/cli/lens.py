"""`sae lens`: the lens that predicts what a run's latents do, beside the logit lens, each with its agreement with measured effects."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.features.lenses import Lenses
from sae.report import lens as report
from sae.report.numbers import count, duration
from sae.runs.run import Run
from sae.workflows.lens import Cost, LensConfig, cost, lens


@dataclass(frozen=True)
class LensCommand:
    """Measure the mean Jacobian from the run's hook point to the model's head, and how well its lens and the logit lens predict
    what latents do to the next token.

    Example: sae lens runs/demo. The Jacobian is kept in the store's folder for all runs on it. After an interruption the same command
    continues. The run needs features. docs/lenses.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    plan: bool = False
    """Only say what would be read by the model, and about how long it takes."""
    config: Annotated[LensConfig, tyro.conf.arg(name="")] = field(default_factory=LensConfig)


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(LensCommand, "sae lens", args)
    run = Run(command.run)
    model = run.language_model()
    print(told(cost(run, command.config, model)))
    if command.plan:
        return 0
    found = lens(run, command.config, model, show_progress)
    show(run, found)
    print(f"{found.path}: written; next: sae app {quoted(run.path.parent)}, page Feature")
    return 0


def told(cost: Cost) -> str:
    """Return what is going to be done, and about how long it takes."""
    jacobian = (
        f"{count(cost.jacobian)} tokens for the mean Jacobian"
        if cost.jacobian
        else "the mean Jacobian is there"
    )
    return (
        f"the model reads: {jacobian}, up to {count(cost.effects)} for the measured effects; about "
        f"{duration(cost.seconds)} at the speed of a window just now"
    )


def show(run: Run, found: Lenses) -> None:
    """Print the agreement of each lens with measured effects, and the conclusions."""
    table = Table(
        title=f"{run.path}: lenses beside the measured effects of {count(len(found.record.latents))} latents at {run.hook}"
    )
    table.add_column("")
    for title in report.COLUMNS.values():
        table.add_column(title, justify="right")
    for line in report.lines(found.record):
        table.add_row(line.title, *line.values)
    table.caption = "means over latents with 95 % intervals"
    Console().print(table)
    for text in report.conclusions(found.record):
        print(text)
