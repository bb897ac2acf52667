"""`sae absorption`: how much of the first letters of words is absorbed by other latents than those that stand for the letters."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from activations.progress import show_progress
from sae.cli import arguments
from sae.probing.absorption import ABSORPTION, AbsorptionRecord
from sae.report import absorption as absorption_report
from sae.runs.run import Run
from sae.workflows.absorption import AbsorptionConfig, absorption
from sae.workflows.probe import require_scikit_learn


@dataclass(frozen=True)
class Absorption:
    """Measure feature absorption on first letters, as SAEBench does, beside a random SAE: where a word begins with a letter, do
    the latents that stand for the letter fire, or does a latent for something narrower stand in for them?

    Example: sae absorption runs/demo. Writes absorption.json into the run's folder. After an interruption the same command
    continues. What each number means: docs/absorption.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    config: AbsorptionConfig = field(default_factory=AbsorptionConfig)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae absorption` and run it."""
    command = arguments.parse(Absorption, "sae absorption", args, tyro.conf.OmitArgPrefixes)
    require_scikit_learn()
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished, before the language model is loaded
    show(run, absorption(run, command.config, progress=show_progress))
    return 0


def show(run: Run, record: AbsorptionRecord) -> None:
    """Print the means, a line for each letter, and what was left out."""
    console = Console()
    means = Table(title=f"{run.path}: absorption of first letters, {absorption_report.basis(record)}")
    for column in absorption_report.MEAN_HEADS:
        means.add_column(column, justify="right" if column else "left")
    for row in absorption_report.means(record):
        means.add_row(*row)
    means.caption = absorption_report.conclusion(record)
    console.print(means)
    letters = Table()
    for column in absorption_report.LETTER_HEADS:
        letters.add_column(column, justify="left" if column == "latents" else "right")
    for row in absorption_report.by_letter(record):
        letters.add_row(*row)
    console.print(letters)
    for letter, why in record.left_out.items():
        print(f"{letter}: left out, because {why}")
    print(f"{run.path / ABSORPTION}: written")
