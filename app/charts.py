"""Pure: arrays -> plotly figures. Text from outside is escaped, as plotly reads some HTML in labels."""

import html
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sae.show.render import number, percent, shade

WARM, COOL, GREY = "242, 139, 60", "64, 145, 230", "140, 138, 132"  # r, g, b: read well on light and dark
PALETTE = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
GRID = f"rgba({GREY}, 0.22)"
CURVES = {
    "fvu": "Fraction of variance unexplained",
    "l0": "L0: features firing per token",
    "dead": "Dead features",
    "lr": "Learning rate",
}
BINS_PER_DECADE = 8
RAREST = -9  # decade where the axis of densities begins at the latest
NEVER = 0.5  # decades left of the lowest density where the bar of features that never fired stands


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


def densities(every: NDArray[np.float64], chosen: NDArray[np.float64]) -> go.Figure:
    """How many features fire on which share of tokens, on a log scale; the chosen ones before all others.

    Features that never fired have a bar of their own at the left."""
    alive = every[every > 0]
    low = int(np.clip(np.floor(np.log10(alive.min(initial=0.1))), RAREST, -1))
    edges = np.linspace(low, 0, -low * BINS_PER_DECADE + 1)
    centres = np.append(low - NEVER, (edges[:-1] + edges[1:]) / 2)
    left = low - 1.6 * NEVER if len(alive) < len(every) else low
    labels = [
        "never fired",
        *(f"{percent(10**a)} to {percent(10**b)}" for a, b in pairwise(edges)),
    ]
    figure = go.Figure()
    for name, values, color in (("all", every, f"rgba({GREY}, 0.4)"), ("shown", chosen, PALETTE[0])):
        inside = np.log10(values[values > 0]).clip(low, 0)
        counts = np.append((values == 0).sum(), np.histogram(inside, edges)[0])
        figure.add_bar(
            x=centres,
            y=counts,
            width=[NEVER / 2] + [1 / BINS_PER_DECADE] * len(edges[1:]),
            name=name,
            marker={"color": color, "line": {"width": 0}},
            customdata=labels,
            hovertemplate="%{customdata}: %{y:,} " + name + "<extra></extra>",
        )
    ticks = list(range(low, 1))
    figure.update_xaxes(
        tickvals=[low - NEVER, *ticks],
        ticktext=["never", *(percent(10.0**tick) for tick in ticks)],
        range=[left - 0.05, 0.05],
        showgrid=False,
    )
    figure.update_yaxes(nticks=4)
    figure.update_layout(barmode="overlay", bargap=0.02)
    return plain(figure, height=170)


def activations(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> go.Figure:
    """How often a feature fires with which value: log bins on a log axis, negative values mirrored to the left.

    Bars have the tokens' colours. `edges` rise, one more than `counts`; the two bins at 0 reach down to it."""
    filled = np.flatnonzero(counts)
    bins = [(float(edges[i]), float(edges[i + 1]), int(counts[i])) for i in filled]
    inner = min(abs(edge) for low, high, _ in bins for edge in (low, high) if edge)
    places = [
        (_place(low or inner / 2**0.25, inner), _place(high or -inner / 2**0.25, inner))
        for low, high, _ in bins
    ]
    scale = max(abs(edge) for low, high, _ in bins for edge in (low, high))
    colors = [
        f"rgba({WARM if low + high > 0 else COOL}, {0.3 + 0.7 * shade(low + high, 2 * scale):.2f})"
        for low, high, _ in bins
    ]
    figure = go.Figure(
        go.Bar(
            x=[(a + b) / 2 for a, b in places],
            y=[count for _, _, count in bins],
            width=[(b - a) * 0.94 for a, b in places],
            marker={"color": colors, "line": {"width": 0}},
            customdata=[f"{number(float(low))} to {number(float(high))}" for low, high, _ in bins],
            hovertemplate="%{customdata}: %{y:,} tokens<extra></extra>",
        )
    )
    ticks = _ticks(bins)
    figure.update_xaxes(tickvals=[_place(t, inner) for t in ticks], ticktext=[number(t) for t in ticks])
    figure.update_xaxes(showgrid=False, tickangle=0)
    top = math.log10(max(count for _, _, count in bins))
    figure.update_yaxes(type="log", dtick=1, range=[-0.3, max(top, 1) + 0.1])
    return plain(figure, height=180)


def _place(value: float, inner: float) -> float:
    """Where a value stands on the two-sided log axis: octaves from the innermost edge, which stands at ±1."""
    return math.copysign(1 + math.log2(abs(value) / inner), value)


def _ticks(bins: Sequence[tuple[float, float, int]]) -> list[float]:
    """Round values (1, 2, 5 times a power of ten) within the bins, eight at most."""
    ticks: list[float] = []
    for sign in (-1, 1):
        ends = [
            abs(edge) for low, high, _ in bins for edge in (low, high) if (low + high) * sign > 0 and edge
        ]
        if not ends:
            continue
        low, high = min(ends), max(ends)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks += [sign * m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    return ticks[:: math.ceil(len(ticks) / 8)] if ticks else []


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
