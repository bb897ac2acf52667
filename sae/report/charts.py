"""The look that all plotly figures share, and the histogram of one feature's values."""

import html
import math

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sae.report import histogram
from sae.report.numbers import number
from sae.report.render import visible

WARM, COOL, GREY = "242, 139, 60", "64, 145, 230", "140, 138, 132"  # r, g, b: read well on light and dark
PALETTE = ("#e8792b", "#3b8ede", "#2ea58a", "#9a6fd6", "#d65f8f", "#8c8a84")
GRID = f"rgba({GREY}, 0.22)"


def plain_text(foreign: str) -> str:
    """Return a text that a figure shows and does not read as markup: plotly renders some HTML."""
    return html.escape(visible(foreign), quote=False)


def activations(
    edges: NDArray[np.float64], counts: NDArray[np.int64], mark: float | None = None
) -> go.Figure:
    """Return a histogram of a feature's values: log bins on a log axis, negative values mirrored to the left.

    Bars have the tokens' colours. `edges` rise and are one more than `counts`; the innermost bin on either side reaches
    down to 0. `mark` is a value other than 0 to point at."""
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
            customdata=[bar.range for bar in axis.bars],
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
    """Give a figure the common look and return it: no frame, thin grid, colours of text and page from the theme.

    Sizes are pixels: of the figure, and of its margins."""
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
