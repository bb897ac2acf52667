"""Pure: how alike two runs' features are -> a plotly figure."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts import GREY, PALETTE, plain

COLORS = {
    "shared": PALETTE[2],
    "merged": PALETTE[3],
    "lost": f"rgba({GREY}, 0.75)",
    "split": PALETTE[1],
    "new": PALETTE[0],
}


def similarities(
    edges: NDArray[np.float64], counts: Mapping[str, Mapping[str, NDArray[np.int64]]], near: float
) -> go.Figure:
    """Features by their similarity to the nearest of the other run, stacked by kind; a line where `near` begins.

    The first run's stand above the axis, the second's hang below it."""
    figure, named = go.Figure(), set()
    for up, whose, columns in ((1, "this run", counts["first"]), (-1, "the other run", counts["second"])):
        for kind, column in columns.items():
            figure.add_bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=up * column,
                width=np.diff(edges) * 0.94,
                name=kind,
                legendgroup=kind,
                showlegend=kind not in named,
                marker={"color": COLORS[kind], "line": {"width": 0}},
                customdata=[
                    f"{low:.2f} to {high:.2f}: {n:,}"
                    for (low, high), n in zip(pairwise(edges), column, strict=True)
                ],
                hovertemplate="%{customdata} " + f"{kind}, {whose}<extra></extra>",
            )
            named.add(kind)
    figure.add_vline(x=near, line={"color": f"rgb({GREY})", "width": 1, "dash": "dot"})
    figure.update_layout(
        barmode="relative", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(range=[float(edges[0]), 1.0], showgrid=False, title="similarity to the nearest")
    figure.update_yaxes(nticks=5, showticklabels=False)
    return plain(figure, height=220, top=28, bottom=40, legend=True)
