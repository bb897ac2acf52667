"""Pure: what runs logged and how they were evaluated -> plotly figures and the Pareto plot. Names are escaped, as plotly reads some HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae.report.charts import PALETTE, plain

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")  # one more each time the colours are used up
RING = "rgb(140, 138, 132)"
TICKS = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
)
FEWEST_TICKS = 3
Point = tuple[str, str, float, float]
"""A run's name, its kind, its L0, and the height it stands at."""


def l0_axis(points: Sequence[Point]) -> dict[str, Any]:
    """A logarithmic axis for their L0, its ticks as many to a decade as it takes to see three among the points."""
    l0 = [point[2] for point in points] or [1.0]
    finer = [[m * 10.0**decade for decade in range(-1, 6) for m in multiples] for multiples in TICKS]
    enough = [ticks for ticks in finer if sum(min(l0) <= tick <= max(l0) for tick in ticks) >= FEWEST_TICKS]
    return {"type": "log", "tickvals": [*enough, finer[-1]][0], "showgrid": False}


def traces(points: Sequence[Point], kinds: Sequence[str], chosen: str | None = None) -> list[dict[str, Any]]:
    """For each kind its points, joined by a line in the order of their L0; hovering tells a run's name.

    A kind's look follows from its place among `kinds`: no two look alike, as far as six colours with five symbols
    go. A kind without points is an empty line."""
    made = []
    for place, kind in enumerate(kinds):
        mine = sorted((l0, value, name) for name, one, l0, value in points if one == kind)
        names = [name for _, _, name in mine]
        color = PALETTE[place % len(PALETTE)]
        made.append(
            {
                "type": "scatter",
                "x": [l0 for l0, _, _ in mine],
                "y": [value for _, value, _ in mine],
                "mode": "lines+markers",
                "name": html.escape(kind, quote=False),
                "legendgroup": kind,
                "line": {"color": color, "width": 1, "dash": "dot"},
                "marker": {
                    "size": [14 if name == chosen else 9 for name in names],
                    "color": color,
                    "symbol": SYMBOLS[place // len(PALETTE) % len(SYMBOLS)],
                    "line": {"width": [2 if name == chosen else 0 for name in names], "color": RING},
                },
                "text": [html.escape(name, quote=False) for name in names],
                "hovertemplate": "%{text}<br>L0 %{x:.3~g}, %{y:.3~g}<extra></extra>",
            }
        )
    return made


CURVES = {
    "fvu": "FVU: variance unexplained",
    "l0": "L0: features firing per token",
    "dead": "Dead features",
    "lr": "Learning rate",
}
DASHES = ("solid", "dash", "dot", "dashdot")
HEIGHTS = {
    "fvu": "FVU (lower is better)",
    "recovered_zero": "CE recovered, zero (higher is better)",
    "recovered_mean": "CE recovered, mean (higher is better)",
}


def curves(logs: Mapping[str, Sequence[dict[str, float]]], steps: int | None = None) -> go.Figure:
    """What trainings logged, against the step: FVU, L0, dead features, learning rate, as far as they are there.

    One run has a colour for each measure; several have one each, and a legend. `steps` sets the right end, so that
    a run under way shows how far it is."""
    names = [name for name in CURVES if any(name in row for log in logs.values() for row in log)]
    columns, gap = 2, 0.13
    figure = make_subplots(
        rows=max(math.ceil(len(names) / columns), 1),
        cols=columns,
        subplot_titles=[CURVES[name] for name in names],
        vertical_spacing=0.2,
        horizontal_spacing=gap,
    )
    several = len(logs) > 1
    for (place, name), (number, (run, log)) in product(enumerate(names), enumerate(logs.items())):
        rows = [row for row in log if name in row]
        line = go.Scatter(
            x=[row["step"] for row in rows],
            y=[row[name] for row in rows],
            mode="lines+markers" if len(rows) < 3 else "lines",
            line=_line(number if several else place),
            name=html.escape(run, quote=False),
            legendgroup=number,
            showlegend=several and not place,
            hovertemplate=(f"{html.escape(run, quote=False)}<br>" if several else "")
            + "step %{x:,}: %{y:.4~g}<extra></extra>",
        )
        figure.add_trace(line, row=place // columns + 1, col=place % columns + 1)
    figure.update_xaxes(range=[0, steps] if steps else None, rangemode="tozero", showgrid=False, nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    half = (1 - (columns - 1) * gap) / columns / 2
    figure.for_each_annotation(
        lambda title: title.update(x=title.x - half, xanchor="left", yshift=4, font_size=13)
    )
    figure.update_layout(legend={"orientation": "h", "y": -0.1, "yanchor": "top", "x": 0})
    return plain(figure, height=380 + (24 * len(logs) if several else 0), top=32, legend=several)


def frontier(points: Sequence[Point], chosen: str | None = None, measure: str = "fvu") -> go.Figure:
    """Evaluated runs as (name, kind, L0, one of HEIGHTS); those of one kind joined by a line, the chosen one ringed."""
    kinds = sorted({point[1] for point in points})
    figure = go.Figure(traces(points, kinds, chosen))
    figure.for_each_trace(  # a click tells the name, and dims no other point
        lambda line: line.update(
            customdata=[html.unescape(text) for text in line.text], unselected_marker_opacity=1
        )
    )
    figure.update_xaxes(title="L0 (features firing per token)", **l0_axis(points))
    figure.update_yaxes(title=HEIGHTS[measure], nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}, dragmode=False)
    return plain(figure, height=360, top=24, left=56, bottom=44, legend=True)


def _line(number: int) -> dict[str, object]:
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[number % len(PALETTE)], "width": 2, "dash": dash}
