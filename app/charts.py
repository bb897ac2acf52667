"""Pure: arrays about features -> plotly figures, and the look that all figures share."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sae.show.render import number, percent, shade

WARM, COOL, GREY = "242, 139, 60", "64, 145, 230", "140, 138, 132"  # r, g, b: read well on light and dark
PALETTE = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
GRID = f"rgba({GREY}, 0.22)"
BINS_PER_DECADE = 8
RAREST = -9  # decade where the axis of densities begins at the latest
NEVER = 0.5  # decades left of the lowest density where the bar of features that never fired stands


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
