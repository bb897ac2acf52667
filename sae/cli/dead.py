"""`sae dead`: which latents of a run are dead, rare or dense, and why."""

import csv
import io
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.evaluate import WITHOUT_MODEL
from sae.diagnosis.causes import CAUSES, FIRES_ON, TRAINING
from sae.diagnosis.report import DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.report import render
from sae.runs.records import Changes
from sae.runs.run import Run
from sae.workflows.diagnose import diagnose_run


@dataclass(frozen=True)
class Dead:
    """Find out which latents never fire and why, what would make them fire, and what the dense ones are.

    Writes dead/ into the run's folder and shows a summary. Example: sae dead runs/demo --rows 100000. What is
    finished is not done again."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    config: DeadConfig = field(default_factory=DeadConfig)
    csv: bool = False
    """Print the table of latents as CSV instead of the summary."""


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Dead, "sae dead", args, tyro.conf.OmitArgPrefixes)
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished, before a model is loaded for it
    model = run.language_model() if command.config.off_tokens and not run.reads_files else None
    borrow = None if model is None else lambda: nullcontext(model)
    report = diagnose_run(run, command.config, borrow, show_progress)
    if command.csv:
        sys.stdout.write(as_csv(report))
    else:
        show_report(run, report)
        if run.reads_files and command.config.off_tokens:
            print(f"{run.path}: {WITHOUT_MODEL} what latents do on random and shuffled text")
    return 0


def as_csv(report: DeadReport) -> str:
    """Return the table of latents as CSV: a header, then one line for each latent; lists are separated by semicolons.

    A text that a spreadsheet would take for a formula has an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(report.table.column_names)
    for row in report.rows():
        values = ["; ".join(value) if isinstance(value, list) else value for value in row.values()]
        writer.writerow(render.cell(value) for value in values)
    return out.getvalue()


def show_report(run: Run, report: DeadReport) -> None:
    """Print the summary."""
    record = report.record
    kinds, by, d_sae = record.kinds, record.dead_by, record.d_sae
    n_text = record.rows["train"] + record.rows["held_out"]
    title = f"{run.path}: {kinds['dead']:,} of {d_sae:,} latents dead on {n_text:,} tokens of text"
    table = Table(title=title)
    for column in ("", "latents", ""):
        table.add_column(column, justify="right" if column else "left")
    _section(table, "silent on", record.silent, lambda name: f"{record.rows[name]:,} rows")  # fmt: skip
    _section(table, "dead that fire on", _ordered(by.fires_on, FIRES_ON), lambda name: "")
    _section(table, "what became of the dead", _ordered(by.training, TRAINING), lambda name: "")
    _section(table, "why they are dead", _ordered(by.cause, CAUSES), CAUSES.__getitem__)
    _section(table, "beside them", {kind: n for kind, n in kinds.items() if kind != "dead"}, lambda name: "")
    _section(table, "dense", record.dense_by_kind, lambda name: "")
    for name, count, note in what_if(record.changes) if kinds["dead"] else ():
        table.add_row(name, count, note)
    console = Console()
    console.print(table)
    console.print(f"{report.path}: {len(report.table):,} latents; next: sae app {quoted(run.path.parent)}")


def what_if(changes: Changes) -> list[tuple[str, str, str]]:
    """Return the what-if curves as lines (change, number of latents that would fire, note)."""
    lines = []
    if bias := changes.bias:
        for by, fire in zip(bias.by, bias.fire, strict=True):
            if by in (0.1, 0.5, 1.0, 2.0):
                lines.append((f"would fire, bias moved by {by * bias.unit:.3g}", f"{fire:,}", f"{by:g} times the median pre-activation that fires; each alone"))  # fmt: skip
    if k := changes.k:
        for extra, fire in list(zip(k.extra, k.fire, strict=True))[1:5]:
            many = f"k = {k.k + extra:,}" if k.k else f"{extra:,} more kept"
            lines.append((f"would fire, {many}", f"{fire:,}", "latents kept per row"))
    if threshold := changes.threshold:
        for share, fire in zip(threshold.share, threshold.fire, strict=True):
            lines.append((f"would fire, thresholds x {share:g}", f"{fire:,}", "all of them at once"))
    if resample := changes.resample:
        dense = [f"; {count:,} of them dense" for count in resample.dense or []] or [""] * len(resample.fire)
        for scale, fire, also in zip(resample.scale, resample.fire, dense, strict=True):
            lines.append(
                (
                    f"would fire, resampled at {scale:g}",
                    f"{fire:,}",
                    f"times the mean encoder norm of live latents{also}",
                )
            )
    return lines


def _ordered(counts: dict[str, int], order: Any) -> dict[str, int]:
    return {name: counts[name] for name in order if counts.get(name)}


def _section(table: Table, title: str, counts: dict[str, int], note: Callable[[str], str]) -> None:
    if not counts:
        return
    table.add_section()
    table.add_row(f"[bold]{title}[/bold]", "", "")
    for name, count in counts.items():
        table.add_row(f"  {name.replace('_', '-')}", f"{count:,}", note(name))
