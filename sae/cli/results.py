"""Runs side by side: one line of results a run, as a table on the terminal, a CSV file and a Pareto plot."""

import csv
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from activations import files
from sae.architectures import name_of
from sae.errors import ConfigError
from sae.runs import Run

COLORS = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")  # one more each time the colours are used up
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
    made = Table(title=title)
    for name in Result._fields:
        made.add_column(LABELS[name], justify="left" if name in ("run", "architecture") else "right")
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
    figure = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.1)
    for column, (measure, label) in enumerate(measures.items(), 1):
        for trace in _traces(lines, measure, named=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title=label, nticks=6, row=1, col=column)
    rounds = [m * 10.0**decade for decade in range(-1, 6) for m in (1, 2, 5)]
    figure.update_xaxes(title="L0 (latents firing per token)", type="log", tickvals=rounds, showgrid=False)
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(zeroline=False, gridcolor=GRID)
    figure.update_layout(
        height=460,
        width=560 * len(measures),
        plot_bgcolor="white",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    page = figure.to_html(include_plotlyjs=True)
    files.write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))


def _traces(lines: Sequence[Result], measure: str, named: bool) -> list[dict]:
    """One line of markers for each architecture and width that has the measure; `named` ones stand in the legend."""
    traces = []
    for place, (architecture, width) in enumerate(sorted({line[1:3] for line in lines})):
        mine = [line for line in lines if line[1:3] == (architecture, width)]
        points = sorted(
            (line.l0, getattr(line, measure), line.run) for line in mine if getattr(line, measure) is not None
        )
        traces.append(
            {
                "type": "scatter",
                "x": [l0 for l0, _, _ in points],
                "y": [value for _, value, _ in points],
                "text": [html.escape(run) for _, _, run in points],
                "mode": "lines+markers",
                "name": f"{architecture}, {width:,} latents",
                "legendgroup": place,
                "showlegend": named,
                "line": {"color": COLORS[place % len(COLORS)], "width": 1, "dash": "dot"},
                "marker": {"size": 9, "symbol": SYMBOLS[place // len(COLORS) % len(SYMBOLS)]},
                "hovertemplate": "%{text}<br>L0 %{x:.3~g}, %{y:.3~g}<extra></extra>",
            }
        )
    return traces


def _shown(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)
