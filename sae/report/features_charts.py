"""Histograms of all features of a run, which can be brushed."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

from sae.report.charts import GREY, PALETTE, plain, plain_text
from sae.report.features import F1, STABILITY, Wanted, shares
from sae.report.numbers import number, percent

BINS_PER_DECADE = 8
RAREST = -9  # the axis of densities begins at this decade or above
NEVER = 0.5  # the bar of features that never fired lies so many decades left of the lowest density
BINS = 40  # of a histogram with an even scale


class Panel(NamedTuple):
    """A histogram of a column of the table of all features, with its title and a remark."""

    column: str
    title: str
    remark: str
    figure: go.Figure
    ends: Callable[[float, float], tuple[float, float]]
    """Turns an interval of the axis into a range of the column."""


def panels(table: pa.Table, shown: pa.Table) -> list[Panel]:
    """Return the histograms of all features in `table` (from `sae.report.features`) and of those in `shown`."""
    every, chosen = shares(table), shares(shown)
    total = f"{number(float(every.sum()))} fire on a token"

    def percents(start: float, stop: float) -> tuple[float, float]:
        low, high = brushed_densities(every, start, stop)
        return 100 * low, 100 * high

    histograms = [
        Panel("density", "Density", "by share of tokens", densities(every, chosen), percents),
        Panel("density", "L0", total, densities(every, chosen, weighted=True), percents),
        Panel(
            "mean",
            "Mean value",
            "where they fire",
            spread(_column(table, "mean"), _column(shown, "mean")),
            _ordered,
        ),
    ]
    if "positive" in table.column_names:
        sides = spread(_column(table, "positive"), _column(shown, "positive"), " %")
        histograms.append(Panel("positive", "Sign", "share of firings above 0", sides, _ordered))
    if STABILITY in table.column_names:
        stable = spread(_column(table, STABILITY), _column(shown, STABILITY))
        histograms.append(Panel(STABILITY, "Stability", "over seeds", stable, _ordered))
    if F1 in table.column_names:
        explained = spread(_column(table, F1), _column(shown, F1))
        histograms.append(Panel(F1, "F1", "of the rules", explained, _ordered))
    return histograms


def marks(wanted: Wanted) -> list[str]:
    """Return what is brushed in the histograms and marked on the map, in words."""
    units = {"density": " %", "positive": " %"}
    brushed = [
        f"{name} {number(low)} to {number(high)}{units.get(name, '')}"
        for name, (low, high) in wanted.ranges.items()
    ]
    return brushed + ([] if wanted.among is None else [f"{len(wanted.among):,} marked on the map"])


def densities(every: NDArray[np.float64], chosen: NDArray[np.float64], weighted: bool = False) -> go.Figure:
    """Return a histogram of densities on a log scale, the chosen features in front of all features.

    Features that never fired have a bar of their own at the left. With `weighted`, a bar's height is what its features
    add to L0 (the number of features that fire on a token) instead of their number."""
    low = _lowest(every)
    edges = np.linspace(low, 0, -low * BINS_PER_DECADE + 1)
    centres = np.append(low - NEVER, (edges[:-1] + edges[1:]) / 2)
    left = low - 1.6 * NEVER if (every == 0).any() else low
    labels = ["never fired", *(f"{percent(10**a)} to {percent(10**b)}" for a, b in pairwise(edges))]
    figure = go.Figure()
    for name, values, color in _layers(every, chosen):
        fired = values[values > 0]
        counts = np.histogram(np.log10(fired).clip(low, 0), edges, weights=fired if weighted else None)[0]
        figure.add_bar(
            x=centres,
            y=np.append(0 if weighted else (values == 0).sum(), counts),
            width=[NEVER / 2] + [1 / BINS_PER_DECADE] * len(edges[1:]),
            name=name,
            marker={"color": color, "line": {"width": 0}},
            customdata=labels,
            hovertemplate="%{customdata}: %{y:"
            + (".3~g" if weighted else ",")
            + "} "
            + name
            + "<extra></extra>",
        )
    ticks = list(range(0, low - 1, -1 if low > -5 else -2))
    if left < low <= -3 and ticks[-1] == low:
        ticks.pop()  # its label would lie over "never"
    figure.update_xaxes(
        tickvals=[*ticks, low - NEVER],
        ticktext=[*(f"{100 * 10.0**tick:g} %" for tick in ticks), "never"],
        range=[left - 0.05, 0.05],
        showgrid=False,
        tickangle=0,
    )
    return _brushable(figure)


def brushed_densities(every: NDArray[np.float64], start: float, stop: float) -> tuple[float, float]:
    """Return the range of densities, as shares of 1, that an interval on the axis of `densities` covers."""
    ends = sorted((start, stop))
    low = _lowest(every)
    return tuple(0.0 if place < low - NEVER / 2 else 10**place for place in ends)  # type: ignore[return-value]


def spread(every: NDArray[np.float64], chosen: NDArray[np.float64], unit: str = "") -> go.Figure:
    """Return a histogram of values on an even scale, the chosen features in front of all features. NaN is left out."""
    known = every[np.isfinite(every)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    figure = go.Figure()
    for name, values, color in _layers(every, chosen):
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=np.histogram(values[np.isfinite(values)], edges)[0],
            width=[edges[1] - edges[0]] * BINS,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            customdata=[f"{number(float(a))} to {number(float(b))}{unit}" for a, b in pairwise(edges)],
            hovertemplate="%{customdata}: %{y:,} " + name + "<extra></extra>",
        )
    figure.update_xaxes(showgrid=False, nticks=6, ticksuffix=plain_text(unit))
    return _brushable(figure)


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table[name].to_numpy().astype(float)


def _ordered(start: float, stop: float) -> tuple[float, float]:
    return min(start, stop), max(start, stop)


def _layers(
    every: NDArray[np.float64], chosen: NDArray[np.float64]
) -> tuple[tuple[str, NDArray[np.float64], str], ...]:
    return ("all", every, f"rgba({GREY}, 0.4)"), ("shown", chosen, PALETTE[0])


def _lowest(every: NDArray[np.float64]) -> int:
    """Return the decade where the axis of densities begins."""
    return int(np.clip(np.floor(np.log10(every[every > 0].min(initial=0.1))), RAREST, -1))


def _brushable(figure: go.Figure) -> go.Figure:
    figure.update_yaxes(nticks=4)
    figure.update_layout(barmode="overlay", bargap=0.02, dragmode="select", selectdirection="h")
    return plain(figure, height=150)
