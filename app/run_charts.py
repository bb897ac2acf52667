"""Pure: what runs logged and how they were evaluated -> plotly figures. Names are escaped, as plotly reads some HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import product

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts import PALETTE, plain
from sae.show import pareto

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


def frontier(points: Sequence[pareto.Point], chosen: str | None = None, measure: str = "fvu") -> go.Figure:
    """Evaluated runs as (name, kind, L0, one of HEIGHTS); those of one kind joined by a line, the chosen one ringed."""
    kinds = sorted({point[1] for point in points})
    figure = go.Figure(pareto.traces(points, kinds, chosen))
    figure.for_each_trace(  # a click tells the name, and dims no other point
        lambda line: line.update(
            customdata=[html.unescape(text) for text in line.text], unselected_marker_opacity=1
        )
    )
    figure.update_xaxes(title="L0 (features firing per token)", **pareto.l0_axis(points))
    figure.update_yaxes(title=HEIGHTS[measure], nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}, dragmode=False)
    return plain(figure, height=360, top=24, left=56, bottom=44, legend=True)


def _line(number: int) -> dict[str, object]:
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[number % len(PALETTE)], "width": 2, "dash": dash}
