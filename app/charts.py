"""Pure: arrays -> plotly figures. Text from outside is escaped, as plotly reads some HTML in labels."""

import html
import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sae.show import histogram
from sae.show.render import number

WARM, COOL, GREY = "242, 139, 60", "64, 145, 230", "140, 138, 132"  # r, g, b: read well on light and dark
PALETTE = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
GRID = f"rgba({GREY}, 0.22)"
CURVES = {
    "fvu": "Fraction of variance unexplained",
    "l0": "L0: features firing per token",
    "dead": "Dead features",
    "lr": "Learning rate",
}


def curves(log: Sequence[dict[str, float]], steps: int | None = None) -> go.Figure:
    """What training logged, against the step: FVU, L0, dead features, learning rate, as far as they are there.

    `steps` sets the right end, so that a run under way shows how far it is."""
    names = [name for name in CURVES if any(name in row for row in log)]
    columns, gap = 2, 0.1
    figure = make_subplots(
        rows=max(math.ceil(len(names) / columns), 1),
        cols=columns,
        subplot_titles=[CURVES[name] for name in names],
        vertical_spacing=0.2,
        horizontal_spacing=gap,
    )
    for place, name in enumerate(names):
        rows = [row for row in log if name in row]
        line = go.Scatter(
            x=[row["step"] for row in rows],
            y=[row[name] for row in rows],
            mode="lines+markers" if len(rows) < 3 else "lines",
            line={"color": PALETTE[place], "width": 2},
            hovertemplate="step %{x:,}: %{y:.4~g}<extra></extra>",
        )
        figure.add_trace(line, row=place // columns + 1, col=place % columns + 1)
    figure.update_xaxes(range=[0, steps] if steps else None, rangemode="tozero", showgrid=False, nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    half = (1 - (columns - 1) * gap) / columns / 2
    figure.for_each_annotation(
        lambda title: title.update(x=title.x - half, xanchor="left", yshift=4, font_size=13)
    )
    return plain(figure, height=380, top=32)


def pareto(points: Sequence[tuple[str, str, float, float]], chosen: str | None = None) -> go.Figure:
    """Evaluated runs as (name, architecture, L0, FVU); those of one architecture joined by a line."""
    figure = go.Figure()
    for place, architecture in enumerate(sorted({point[1] for point in points})):
        mine = sorted((l0, fvu, name) for name, arch, l0, fvu in points if arch == architecture)
        color = PALETTE[place % len(PALETTE)]
        figure.add_scatter(
            x=[l0 for l0, _, _ in mine],
            y=[fvu for _, fvu, _ in mine],
            mode="lines+markers",
            name=html.escape(architecture),
            line={"color": color, "width": 1, "dash": "dot"},
            marker={
                "size": [13 if name == chosen else 9 for _, _, name in mine],
                "color": color,
                "line": {
                    "width": [2 if name == chosen else 0 for _, _, name in mine],
                    "color": f"rgb({GREY})",
                },
            },
            text=[html.escape(name) for _, _, name in mine],
            hovertemplate="%{text}<br>L0 %{x:.3~g}, FVU %{y:.3~g}<extra></extra>",
        )
    rounds = [m * 10.0**decade for decade in range(-1, 6) for m in (1, 2, 5)]
    figure.update_xaxes(title="L0 (features firing per token)", type="log", tickvals=rounds, showgrid=False)
    figure.update_yaxes(title="FVU (lower is better)", nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return plain(figure, height=300, top=24, left=56, bottom=44, legend=True)


def activations(
    edges: NDArray[np.float64], counts: NDArray[np.int64], mark: float | None = None
) -> go.Figure:
    """How often a feature fires with which value: log bins on a log axis, negative values mirrored to the left.

    Bars have the tokens' colours. `edges` rise, one more than `counts`; the two bins at 0 reach down to it. `mark`
    is a value, other than 0, to point at."""
    axis = histogram.axis(edges.tolist(), counts.tolist())
    figure = go.Figure(
        go.Bar(
            x=[(bar.left + bar.right) / 2 for bar in axis.bars],
            y=[bar.count for bar in axis.bars],
            width=[(bar.right - bar.left) * 0.94 for bar in axis.bars],
            marker={
                "color": [
                    f"rgba({WARM if bar.low + bar.high > 0 else COOL}, {axis.strength(bar):.2f})"
                    for bar in axis.bars
                ],
                "line": {"width": 0},
            },
            customdata=[bar.about for bar in axis.bars],
            hovertemplate="%{customdata}: %{y:,} tokens<extra></extra>",
        )
    )
    if mark:
        figure.add_vline(x=axis.place(mark), line={"width": 2, "dash": "dot"}, annotation_text="your text")
    figure.update_xaxes(
        tickvals=[axis.place(tick) for tick in axis.ticks], ticktext=[number(tick) for tick in axis.ticks]
    )
    figure.update_xaxes(showgrid=False, tickangle=0)
    top = math.log10(max(bar.count for bar in axis.bars))
    figure.update_yaxes(type="log", dtick=1, range=[-0.3, max(top, 1) + 0.1])
    return plain(figure, height=180)


def plain(
    figure: go.Figure, height: int, top: int = 8, left: int = 44, bottom: int = 28, legend: bool = False
) -> go.Figure:
    """No frame, a legend only where asked for, thin grid; colours of text and page come from the theme."""
    figure.update_xaxes(zeroline=False, fixedrange=True, gridcolor=GRID)
    figure.update_yaxes(zeroline=False, fixedrange=True, gridcolor=GRID)
    figure.update_layout(
        height=height,
        margin={"l": left, "r": 8, "t": top, "b": bottom},
        hovermode="closest",
        showlegend=legend,
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
    )
    return figure
