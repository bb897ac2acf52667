"""Runs side by side: one line of results a run, as a table on the terminal, a CSV file and a Pareto plot."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from activations.disk import files
from activations.errors import ConfigError
from sae.architectures import name_of
from sae.report import run_charts
from sae.runs.run import Run

GRID = "rgba(140, 138, 132, 0.22)"
LABELS = {
    "run": "run",
    "architecture": "architecture",
    "width": "width",
    "l0": "L0",
    "fvu": "FVU",
    "recovered_zero": "CE recovered (zero)",
    "recovered_mean": "CE recovered (mean)",
    "dead": "dead",
}


class Result(NamedTuple):
    """What a run is and what its evaluation says; None where that has not been measured."""

    run: str
    architecture: str
    width: int
    """Latents in the dictionary."""
    l0: float | None
    fvu: float | None
    recovered_zero: float | None
    """Share of the loss that zero ablation costs which the SAE keeps; `recovered_mean` alike."""
    recovered_mean: float | None
    dead: float | None
    """Share of latents silent on the held-out tokens."""


def result(run: Run) -> Result:
    """A run's line, from its eval.json when it has one."""
    found = run.evaluation or {}
    estimates = {**found.get("estimates", {}), **found.get("splice", {}).get("estimates", {})}
    l0, fvu, zero, mean = (
        estimates[name]["value"] if name in estimates else None
        for name in ("l0", "fvu", "recovered_zero", "recovered_mean")
    )
    arch = run.config.arch
    return Result(run.name, name_of(arch), arch.d_sae, l0, fvu, zero, mean, found.get("dead"))


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """The lines as a table; a dash where something has not been measured."""
    made = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
    made.add_column(LABELS["run"], overflow="fold")
    made.add_column(LABELS["architecture"], no_wrap=True)
    for name in Result._fields[2:]:
        made.add_column(LABELS[name], justify="right", min_width=max(map(len, LABELS[name].split())))
    for line in results:
        shares = (_shown(share, ".1%") for share in line[5:])
        made.add_row(*line[:2], f"{line.width:,}", _shown(line.l0, ".1f"), _shown(line.fvu, ".4f"), *shares)
    return made


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """The lines with full precision; empty where something has not been measured."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([Result._fields, *results])

    files.write_atomically(path, write)


def need_plotly() -> None:
    """Raise ConfigError unless plots can be drawn: to be asked before hours of work end in one."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ConfigError("the Pareto plot needs plotly: pip install 'sae-workbench[app]'") from error


def write_pareto(path: Path, results: Sequence[Result]) -> None:
    """One HTML file that needs no network: L0 against FVU and, where measured, against CE recovered.

    Runs of one architecture and width are joined by a line. Runs without an evaluation are left out."""
    need_plotly()
    from plotly.subplots import make_subplots

    lines = [line for line in results if line.fvu is not None]
    measures = {"fvu": "FVU (lower is better)"}
    if any(line.recovered_zero is not None for line in lines):
        measures["recovered_zero"] = "CE recovered, zero ablation (higher is better)"
    kinds = list(dict.fromkeys(_kind(line) for line in sorted(lines, key=lambda line: line[1:3])))
    figure = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.1)
    for column, (measure, label) in enumerate(measures.items(), 1):
        for trace in run_charts.traces(_points(lines, measure), kinds):
            figure.add_trace({**trace, "showlegend": column == 1}, row=1, col=column)
        figure.update_yaxes(title=label, nticks=6, row=1, col=column)
    figure.update_xaxes(
        title="L0 (latents firing per token)", zeroline=False, **run_charts.l0_axis(_points(lines, "fvu"))
    )
    figure.update_yaxes(zeroline=False, gridcolor=GRID)
    figure.update_layout(
        height=460,
        width=560 * len(measures),
        plot_bgcolor="white",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    page = figure.to_html(include_plotlyjs=True)
    files.write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))


def _kind(line: Result) -> str:
    return f"{line.architecture}, {line.width:,} latents"


def _points(lines: Sequence[Result], measure: str) -> list[run_charts.Point]:
    """Those lines that have the measure."""
    return [
        (line.run, _kind(line), line.l0, getattr(line, measure))
        for line in lines
        if line.l0 is not None and getattr(line, measure) is not None
    ]


def _shown(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)
