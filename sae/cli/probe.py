"""`sae probe`: what a run's latents know of labelled texts, beside baselines."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from activations import labelled_texts
from activations.errors import ConfigError
from activations.progress import show_progress
from sae.cli import arguments
from sae.probing.records import METHODS, PROBES, SPARSE, ProbesRecord
from sae.report.probes import Row, summary
from sae.runs.run import Run
from sae.workflows.probe import ProbeConfig, probe, require_scikit_learn

SHOWN = 12  # tasks up to which each has a table of its own


@dataclass(frozen=True)
class Probe:
    """Probe a run's SAE with questions whose answers are known: k latents beside logistic regression and simpler baselines.

    Example: sae probe runs/demo --tasks glue_sst2 headline_istrump. Without --tasks and --csv all 113 binary tasks of
    sae-probes. Writes probes.json into the run's folder. After an interruption the same command continues; what is finished is
    not done again. What each number means: docs/probing.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    tasks: tuple[str, ...] = ()
    """Tasks of sae-probes by name; all of them when left out."""
    csv: Path | None = None
    """Your own task instead: a .csv, .tsv, .jsonl or .parquet file with a column of texts and one of two labels."""
    text_column: str = "text"
    """Column of the file that holds the texts."""
    label_column: str = "label"
    """Column of the file that holds the labels."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    processes: int = min(os.cpu_count() or 1, 8)
    """Processes that fit probes."""

    def __post_init__(self) -> None:
        if self.csv and self.tasks:
            raise ConfigError("--csv and --tasks exclude each other: probe with one after the other")
        if self.processes < 1:
            raise ConfigError(f"processes = {self.processes} must be at least 1")


def main(args: list[str]) -> int:
    """Parse the arguments of `sae probe` and run it."""
    command = arguments.parse(Probe, "sae probe", args, tyro.conf.OmitArgPrefixes)
    require_scikit_learn()
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished, before texts are fetched for it
    tasks = (
        [labelled_texts.read_file(command.csv, command.text_column, command.label_column)]
        if command.csv
        else labelled_texts.packaged(command.tasks)
    )
    record = probe(run, tasks, command.config, processes=command.processes, progress=show_progress)
    show_probes(run, record)
    return 0


def show_probes(run: Run, record: ProbesRecord) -> None:
    """Print each method's mean AUC over the tasks, and each task's where they are few."""
    console = Console()
    rows = summary(record)
    for setting in dict.fromkeys((row.setting, row.level) for row in rows):
        own = [row for row in rows if (row.setting, row.level) == setting]
        console.print(_table(f"{run.path}: {_named(*setting)}, {own[0].tasks} tasks", own))
    if len(record.tasks) <= SHOWN:
        for task in record.tasks:
            best = task.best("sae", 1)
            loss = task.probe_loss
            told = (
                f", best single latent {best.columns[0]} (AUC {best.auc.value:.3f})"
                if best and best.columns
                else ""
            )
            console.print(
                f"{task.name}: {task.examples} examples{told}; probe loss {loss.held_out:.3f} nats held out "
                f"({loss.fitted:.3f} fitted), latent {loss.latent}",
                highlight=False,
            )
    losses = [task.probe_loss.held_out for task in record.tasks]
    console.print(
        f"mean probe loss {np.mean(losses):.3f} nats held out; all numbers: {run.path / PROBES}",
        highlight=False,
    )


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    for column in ("", "k", "mean AUC", "95 % interval", "at least logistic regression"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        interval = "" if row.auc.low is None else f"{row.auc.low:.3f} to {row.auc.high:.3f}"
        share = "" if row.wins is None else f"{row.wins} of {row.tasks}"
        table.add_row(METHODS[row.method], str(row.k or ""), f"{row.auc.value:.3f}", interval, share)
    table.caption = f"of {', '.join(SPARSE)}: the k columns whose class means differ most"
    return table


def _named(setting: str, level: float) -> str:
    return {
        "normal": "as many training examples as there are, up to 1,024",
        "scarce": f"{level:g} training examples",
        "imbalanced": f"{level:.0%} of the examples of the second class",
        "noise": f"{level:.0%} of the training labels changed",
    }[setting]
