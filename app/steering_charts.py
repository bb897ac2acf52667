"""Pure: a dose-response -> a plotly figure, the features' own directions as lines, controls as bands."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts import GREY, GRID, PALETTE
from sae.show.render import number

PANELS = {
    "concept": "Concept in the text (share of its maximum)",
    "peak_gain": "Gain of its own tokens (nats)",
    "kl": "KL from the unsteered model (nats)",
    "perplexity": "Perplexity of the text, unsteered",
}
KINDS = {
    "latent": ("the features", PALETTE[0]),
    "random": ("random directions", f"rgb({GREY})"),
    "shuffled": ("other features", PALETTE[1]),
}
GAP = 0.09  # between the columns, as a share of the width
BAND = 0.16  # opacity


class Point(Protocol):
    """All texts of one dose (`sae.steering.sweep.Point` is one)."""

    @property
    def dose(self) -> float:
        """Where on the axis."""
        ...

    def mean(self, name: str) -> float | None:
        """Of a measure."""
        ...

    def spread(self, name: str) -> float | None:
        """Of a measure."""
        ...


def dose_response(curves: Mapping[Any, Sequence[Any]], axis: str) -> go.Figure:
    """Curves by kind (`KINDS`), doses rising: the mean as a line, mean ± spread as a band; a panel a measure.

    A kind without points, and a measure without a value, are left out."""
    names = [
        name for name in PANELS if any(p.mean(name) is not None for curve in curves.values() for p in curve)
    ]
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[PANELS[n] for n in names],
        vertical_spacing=0.17,
        horizontal_spacing=GAP,
    )
    for place, name in enumerate(names):
        for kind, (label, color) in KINDS.items():
            if curves.get(kind):
                for trace in _traces(curves[kind], name, label, color, first=place == 0):
                    figure.add_trace(trace, row=place // 2 + 1, col=place % 2 + 1)
    if "perplexity" in names:
        place = names.index("perplexity")
        wide = any((p.mean("perplexity") or 0) > 1000 for curve in curves.values() for p in curve)
        ticks = [m * 10**decade for decade in range(12) for m in ((1,) if wide else (1, 2, 5))]
        figure.update_yaxes(type="log", tickvals=ticks, row=place // 2 + 1, col=place % 2 + 1)
    figure.update_xaxes(showgrid=False, zeroline=True, zerolinecolor=GRID, fixedrange=True)
    figure.update_xaxes(title=axis, row=2)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, fixedrange=True, nticks=5)
    half = (1 - GAP) / 4
    figure.for_each_annotation(
        lambda title: title.update(x=title.x - half, xanchor="left", font_size=13, yshift=2)
    )
    figure.update_layout(
        height=540,
        margin={"l": 48, "r": 8, "t": 56, "b": 44},
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
    )
    return figure


def _traces(points: Sequence[Point], name: str, label: str, color: str, first: bool) -> list[go.Scatter]:
    """The band, then the line."""
    rows = [
        (p.dose, m, s)
        for p in points
        if (m := p.mean(name)) is not None and (s := p.spread(name)) is not None
    ]
    x, means = [dose for dose, _, _ in rows], [mean for _, mean, _ in rows]
    low, high = [mean - spread for _, mean, spread in rows], [mean + spread for _, mean, spread in rows]
    if name == "perplexity":  # on a log axis nothing is at or below 0; a perplexity is at least 1
        low = [max(value, 1.0) for value in low]
    band = go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=color,
        opacity=BAND,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=label,
    )
    line = go.Scatter(
        x=x,
        y=means,
        mode="lines+markers",
        name=label,
        legendgroup=label,
        showlegend=first,
        line={"color": color, "width": 2},
        marker={"size": 6},
        customdata=[f"{number(mean)} ± {number(spread)}" for _, mean, spread in rows],
        hovertemplate="%{x:g}: %{customdata} " + label + "<extra></extra>",
    )
    return [band, line]
