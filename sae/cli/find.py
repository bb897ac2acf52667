"""`sae find` and `sae monitor`: latents that tell two sets of texts apart, and texts that such a latent fires on."""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError, quoted
from activations.labelled_texts import read_texts
from activations.progress import show_progress
from sae.cli import arguments
from sae.probing.records import MONITORS, Monitor
from sae.report import render
from sae.report.find import monitor_line
from sae.runs.run import Run
from sae.workflows.find import FindConfig, Search, find, load_monitor, monitor_texts, save_monitor

RATE = 0.05  # false-discovery rate at which a latent counts as found


@dataclass(frozen=True)
class Find:
    """Find the latents that tell two sets of texts apart: ranked on half of the texts, tested on the other half.

    Example: sae find runs/demo praise.txt blame.txt --save praise. A file has one text a line, or a column `text` (.csv, .jsonl,
    .parquet). With --save one latent becomes a monitor, which sae monitor runs on other texts."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    first: tyro.conf.Positional[Path]
    """File of texts that have what you look for."""
    second: tyro.conf.Positional[Path]
    """File of texts that do not have it, alike in everything else."""
    config: FindConfig = field(default_factory=FindConfig)
    top: int = 10
    """Latents shown."""
    save: str | None = None
    """Save a latent as a monitor of this name."""
    latent: int | None = None
    """Latent that is saved; the best one when left out."""
    rate: float = 0.05
    """Share of the second set's texts on which the monitor may fire."""


def main(args: list[str]) -> int:
    """Parse the arguments of `sae find` and run it."""
    command = arguments.parse(Find, "sae find", args, tyro.conf.OmitArgPrefixes)
    if command.latent is not None and command.save is None:
        raise ConfigError(
            "--latent says which latent is saved: give the monitor's name too, with --save NAME"
        )
    if command.rate != Find.rate and command.save is None:
        raise ConfigError(
            "--rate belongs to the monitor that --save NAME saves: give its name too, or leave it out"
        )
    run = Run(command.run)
    _ = run.digest
    first, second = read_texts(command.first), read_texts(command.second)
    search = find(run, first, second, command.config, progress=show_progress)
    show_found(run, search, command.top)
    if command.save is not None:
        best = search.found.latents[0].latent if search.found.latents else -1
        latent = best if command.latent is None else command.latent
        show_monitor(run, save_monitor(run, command.save, search, latent, command.rate))
    return 0


def show_found(run: Run, search: Search, top: int) -> None:
    """Print the best latents, and how many of all are kept."""
    n_first, n = int(search.first.sum()), len(search.first)
    table = Table(title=f"{run.path}: latents that tell {n_first:,} texts from {n - n_first:,} others")
    for column in ("latent", "higher on", "held-out AUC", "q", "fires on first", "on second"):
        table.add_column(column, justify="right")
    for each in search.found.latents[:top]:
        side = "first" if each.sign > 0 else "second"
        shares = [f"{share:.0%}" for share in each.fires]
        table.add_row(str(each.latent), side, f"{each.auc:.3f}", f"{each.q:.2g}", *shares)
    kept = search.found.kept(RATE)
    table.caption = (
        f"{len(kept)} of {len(search.found.latents)} candidates at a false-discovery rate of {RATE:.0%}"
    )
    console = Console()
    console.print(table)
    if search.repeated:
        console.print(f"{search.repeated:,} texts came before and were left out")


def show_monitor(run: Run, monitor: Monitor) -> None:
    """Print what a monitor was measured to do."""
    path = run.path / MONITORS / f"{monitor.name}.json"
    print(f"{path}: {monitor_line(monitor)}\nnext: sae monitor {quoted(run.path)} {monitor.name} FILE")


@dataclass(frozen=True)
class MonitorCommand:
    """Score the texts of a file with a monitor that sae find or the page Find has saved, and print them as CSV.

    Example: sae monitor runs/demo praise reviews.txt > scores.csv. The columns are text, score, and fires: 1 where the score is
    above the monitor's threshold. A text that a spreadsheet would take for a formula has an apostrophe before it."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    name: tyro.conf.Positional[str]
    """Name of the monitor."""
    texts: tyro.conf.Positional[Path]
    """File with one text a line, or with a column `text` (.csv, .jsonl, .parquet)."""


def monitor_main(args: list[str]) -> int:
    """Parse the arguments of `sae monitor` and run it."""
    command = arguments.parse(MonitorCommand, "sae monitor", args)
    run = Run(command.run)
    monitor, texts = load_monitor(run, command.name), read_texts(command.texts)
    scores = monitor_texts(run, monitor, texts, progress=show_progress)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["text", "score", "fires"])
    for text, score in zip(texts, scores.tolist(), strict=True):
        writer.writerow([render.cell(text), f"{score:.6g}", int(score > monitor.threshold)])
    return 0
