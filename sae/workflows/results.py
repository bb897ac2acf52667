"""Runs side by side: one line of results per run, written as a CSV file and as a Pareto plot."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from activations.disk import files
from activations.errors import ConfigError
from sae.architectures import name_of
from sae.evaluation.measures import MEASURES
from sae.report import run_charts
from sae.runs.run import Run

GRID = "rgba(140, 138, 132, 0.22)"
LABELS = {
    "run": "run",
    "architecture": "architecture",
    "width": "width",
    "dead": "dead",
    **{name: MEASURES[name].symbol for name in ("l0", "fvu", "recovered_zero", "recovered_mean")},
}
"""Heads of the columns."""


class Result(NamedTuple):
    """A run and what its evaluation measured; None for what has not been measured."""

    run: str
    architecture: str
    width: int
    """Latents in the dictionary."""
    l0: float | None
    fvu: float | None
    recovered_zero: float | None
    """Share of the loss caused by zero ablation that the SAE recovers; `recovered_mean` is for mean ablation."""
    recovered_mean: float | None
    dead: float | None
    """Share of latents silent on the held-out tokens."""


def result(run: Run) -> Result:
    """Return a run's line, from its eval.json if it has one."""
    evaluation, arch = run.evaluation, run.config.arch
    measures = evaluation.measures if evaluation else {}
    l0, fvu, zero, mean = (
        measures[name].value if name in measures else None
        for name in ("l0", "fvu", "recovered_zero", "recovered_mean")
    )
    dead = evaluation.dead if evaluation else None
    return Result(run.name, name_of(arch), arch.d_sae, l0, fvu, zero, mean, dead)


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write the lines with full precision; a field is empty where something has not been measured."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([Result._fields, *results])

    files.write_atomically(path, write)


def need_plotly() -> None:
    """Raise ConfigError unless plots can be drawn. Call it before hours of work that end in a plot."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ConfigError("the Pareto plot needs plotly: pip install 'sae-workbench[app]'") from error


def write_pareto(path: Path, results: Sequence[Result]) -> None:
    """Draw one HTML file that needs no network: L0 against FVU and, where measured, against CE recovered.

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
    """Return the lines that have the measure, as points."""
    return [
        (line.run, _kind(line), line.l0, getattr(line, measure))
        for line in lines
        if line.l0 is not None and getattr(line, measure) is not None
    ]
