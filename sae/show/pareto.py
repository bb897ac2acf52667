"""Pure: runs as points, sparsity against quality -> plotly traces and axis, for the app and for files. Names are escaped."""

import html
from collections.abc import Sequence
from typing import Any

COLORS = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
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
        color = COLORS[place % len(COLORS)]
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
                    "symbol": SYMBOLS[place // len(COLORS) % len(SYMBOLS)],
                    "line": {"width": [2 if name == chosen else 0 for name in names], "color": RING},
                },
                "text": [html.escape(name, quote=False) for name in names],
                "hovertemplate": "%{text}<br>L0 %{x:.3~g}, %{y:.3~g}<extra></extra>",
            }
        )
    return made
