"""Pure: what runs logged and how they were evaluated -> plotly figures. Names are escaped, as plotly reads some HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import product

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts import GREY, PALETTE, plain

CURVES = {
    "fvu": "Fraction of variance unexplained",
    "l0": "L0: features firing per token",
    "dead": "Dead features",
    "lr": "Learning rate",
}
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")  # one more each time the colours are used up
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
    columns, gap = 2, 0.1
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
            name=html.escape(run),
            legendgroup=number,
            showlegend=several and not place,
            hovertemplate=(f"{html.escape(run)}<br>" if several else "")
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


def pareto(
    points: Sequence[tuple[str, str, float, float]], chosen: str | None = None, measure: str = "fvu"
) -> go.Figure:
    """Evaluated runs as (name, kind, L0, one of HEIGHTS); those of one kind joined by a line.

    No two kinds look alike, as far as six colours with five symbols go. A point carries its run's name."""
    figure = go.Figure()
    for place, kind in enumerate(sorted({point[1] for point in points})):
        mine = sorted((l0, value, name) for name, one, l0, value in points if one == kind)
        names = [name for _, _, name in mine]
        color = PALETTE[place % len(PALETTE)]
        figure.add_scatter(
            x=[l0 for l0, _, _ in mine],
            y=[value for _, value, _ in mine],
            mode="lines+markers",
            name=html.escape(kind),
            line={"color": color, "width": 1, "dash": "dot"},
            marker={
                "size": [14 if name == chosen else 9 for name in names],
                "color": color,
                "symbol": SYMBOLS[place // len(PALETTE) % len(SYMBOLS)],
                "line": {"width": [2 if name == chosen else 0 for name in names], "color": f"rgb({GREY})"},
            },
            unselected={"marker": {"opacity": 1}},
            customdata=names,
            text=[html.escape(name) for name in names],
            hovertemplate="%{text}<br>L0 %{x:.3~g}, %{y:.3~g}<extra></extra>",
        )
    rounds = [m * 10.0**decade for decade in range(-1, 6) for m in (1, 2, 5)]
    figure.update_xaxes(title="L0 (features firing per token)", type="log", tickvals=rounds, showgrid=False)
    figure.update_yaxes(title=HEIGHTS[measure], nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}, dragmode=False)
    return plain(figure, height=360, top=24, left=56, bottom=44, legend=True)


def _line(number: int) -> dict[str, object]:
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[number % len(PALETTE)], "width": 2, "dash": dash}
