"""Figures of runs: training curves, and the plot of quality against sparsity (L0).

Names of runs are escaped, because plotly renders some HTML."""

import html
from collections.abc import Mapping, Sequence
from itertools import product

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae.evaluation.measures import QuasiOrthogonality
from sae.report.charts import PALETTE, plain

CURVES = {
    "fvu": "FVU: fraction of variance unexplained",
    "l0": "L0: features firing per token",
    "dead": "Dead features",
    "lr": "Learning rate",
}
HELD_OUT = (
    "held_out_"  # before the name of a measure: the same on held-out rows, drawn as points in its panel
)
HEIGHTS = {
    "fvu": "FVU (lower is better)",
    "recovered_zero": "CE recovered, zero (higher is better)",
    "recovered_mean": "CE recovered, mean (higher is better)",
}
DASHES = ("solid", "dash", "dot", "dashdot")  # the next one each time the colours are used up
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")  # used in turn, too
RING = "rgb(140, 138, 132)"
# Ticks of a decade, from coarse to fine
TICKS = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
)
FEWEST_TICKS = 3
PANEL = 185  # height of a panel of training curves in pixels
Point = tuple[str, str, float, float]
"""A run's name, its kind, its L0, and its value of the measure on the y axis."""


def l0_axis(points: Sequence[Point]) -> dict[str, str | bool | list[float]]:
    """Return a logarithmic axis for the points' L0, with the fewest ticks per decade that put three ticks among the points."""
    l0 = [point[2] for point in points] or [1.0]
    finer = [[m * 10.0**decade for decade in range(-1, 6) for m in multiples] for multiples in TICKS]
    enough = [ticks for ticks in finer if sum(min(l0) <= tick <= max(l0) for tick in ticks) >= FEWEST_TICKS]
    return {"type": "log", "tickvals": [*enough, finer[-1]][0], "showgrid": False}


def traces(
    points: Sequence[Point], kinds: Sequence[str], chosen: str | None = None
) -> list[dict[str, object]]:
    """Return a trace for each kind: its points, joined by a line in the order of their L0. Hovering tells a run's name.

    A kind's look follows from its index among `kinds`, so that up to 30 kinds (six colours, five symbols) differ. A kind
    without points is an empty trace. The run `chosen` is ringed."""
    kind_traces = []
    for place, kind in enumerate(kinds):
        of_kind = sorted((l0, value, name) for name, point_kind, l0, value in points if point_kind == kind)
        names = [name for _, _, name in of_kind]
        color = PALETTE[place % len(PALETTE)]
        kind_traces.append(
            {
                "type": "scatter",
                "x": [l0 for l0, _, _ in of_kind],
                "y": [value for _, value, _ in of_kind],
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
    return kind_traces


def curves(logs: Mapping[str, Sequence[dict[str, float]]], steps: int | None = None) -> go.Figure:
    """Return training curves against the step: of FVU, L0, dead features and learning rate, those that the logs have.

    They stand one below the other, which leaves each of them room on a phone too. What was measured on held-out rows is drawn
    as points over the curve of the training batches. A single run has a colour for each measure; several runs have a colour
    each and a legend. `steps` is the right end of the axis, so that an unfinished run shows how far it is."""
    names = [name for name in CURVES if _is_logged(name, logs)]
    panels = max(len(names), 1)
    figure = make_subplots(
        rows=panels,
        subplot_titles=[
            CURVES[name] + (" · points: held out" if _is_logged(HELD_OUT + name, logs) else "")
            for name in names
        ],
        vertical_spacing=0.32 / panels,
    )
    several = len(logs) > 1
    for (place, name), prefix, (number, (run, log)) in product(
        enumerate(names), ("", HELD_OUT), enumerate(logs.items())
    ):
        rows = [row for row in log if prefix + name in row]
        if prefix and not rows:
            continue
        line = _line(number if several else place)
        trace = go.Scatter(
            x=[row["step"] for row in rows],
            y=[row[prefix + name] for row in rows],
            mode="markers" if prefix else "lines+markers" if len(rows) < 3 else "lines",
            line=line,
            marker={"color": line["color"], "size": 7, "symbol": "circle-open"} if prefix else None,
            name=html.escape(run, quote=False),
            legendgroup=number,
            cliponaxis=False,  # the last point lies on the right end of the axis
            showlegend=several and not place and not prefix,
            hovertemplate=(f"{html.escape(run, quote=False)}<br>" if several else "")
            + f"step %{{x:,}}{', held out' if prefix else ''}: %{{y:.4~g}}<extra></extra>",
        )
        figure.add_trace(trace, row=place + 1, col=1)
    figure.update_xaxes(range=[0, steps] if steps else None, rangemode="tozero", showgrid=False, nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.for_each_annotation(lambda title: title.update(x=0, xanchor="left", yshift=4, font_size=13))
    figure.update_layout(legend={"orientation": "h", "y": -0.05, "yanchor": "top", "x": 0})
    height = 20 + PANEL * panels + (24 * len(logs) if several else 0)
    return plain(figure, height=height, top=32, legend=several)


def norms(quasi: QuasiOrthogonality) -> go.Figure:
    """Return the ZF plot of an evaluated run: the norm of each sampled row's code against that of its input, beside the
    diagonal on which both are equal."""
    both = [*quasi.input_norms, *quasi.code_norms]
    ends = [min(both), max(both)]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": RING, "dash": "dot"}, hoverinfo="skip")
    figure.add_scatter(
        x=quasi.input_norms,
        y=quasi.code_norms,
        mode="markers",
        marker={"color": PALETTE[0], "size": 5, "opacity": 0.6},
        hovertemplate="input %{x:.4~g}, code %{y:.4~g}<extra></extra>",
    )
    # Massive activations are a hundred times as long as other rows
    figure.update_xaxes(type="log", title="norm of the input, |x|", showgrid=False)
    figure.update_yaxes(type="log", title="norm of the code, |f|")
    return plain(figure, height=300, top=10)


def frontier(points: Sequence[Point], chosen: str | None = None, measure: str = "fvu") -> go.Figure:
    """Return the plot of a measure (one of HEIGHTS) against L0, runs of one kind joined by a line, the chosen run ringed."""
    kinds = sorted({point[1] for point in points})
    figure = go.Figure(traces(points, kinds, chosen))
    figure.for_each_trace(  # a click gives the name and does not dim the other points
        lambda line: line.update(
            customdata=[html.unescape(text) for text in line.text], unselected_marker_opacity=1
        )
    )
    figure.update_xaxes(l0_axis(points), title="L0 (features firing per token)")
    figure.update_yaxes(title=HEIGHTS[measure], nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}, dragmode=False)
    return plain(figure, height=360, top=24, left=56, bottom=44, legend=True)


def _is_logged(name: str, logs: Mapping[str, Sequence[dict[str, float]]]) -> bool:
    return any(name in row for log in logs.values() for row in log)


def _line(number: int) -> dict[str, object]:
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[number % len(PALETTE)], "width": 2, "dash": dash}
