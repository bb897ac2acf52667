"""Pure: what is known of dead latents -> plotly figures: deaths over training, bars by name, what-if curves."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from app.charts import GREY, PALETTE, plain
from sae.show.render import visible

BAR = 26  # pixels a bar


class WhatIf(NamedTuple):
    """A curve: what is changed and how, along which axis, how far, how many would fire, and how many be dense."""

    title: str
    axis: str
    x: list[float]
    fire: list[int]
    log: bool
    dense: list[int] | None = None


def deaths(log: Sequence[Mapping[str, float]], steps: int | None) -> go.Figure:
    """Latents dead at each step, and deaths and revivals of all together so far, as far as they were logged."""
    lines = (
        ("dead now", "dead", PALETTE[0], "solid"),
        ("deaths so far", "died", PALETTE[5], "dot"),
        ("revivals so far", "revived", PALETTE[2], "dot"),
    )
    figure = go.Figure()
    for name, key, color, dash in lines:
        rows = [row for row in log if key in row]
        if rows:
            figure.add_scatter(
                x=[row["step"] for row in rows],
                y=[row[key] for row in rows],
                name=name,
                mode="lines+markers" if len(rows) < 3 else "lines",
                line={"color": color, "width": 2, "dash": dash},
                hovertemplate="step %{x:,}: %{y:,} " + name + "<extra></extra>",
            )
    figure.update_xaxes(title="step", range=[0, steps] if steps else None, showgrid=False, nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return plain(figure, height=260, top=28, bottom=44, legend=True)


def bars(rows: Sequence[tuple[str, int, str]], total: int, chosen: str | None = None) -> go.Figure:
    """Counts by name as horizontal bars, the first on top; the chosen one stands out. A bar's customdata begins with its name."""
    figure = go.Figure(
        go.Bar(
            x=[count for _, count, _ in rows],
            y=[html.escape(visible(name), quote=False) for name, *_ in rows],
            orientation="h",
            text=[f"{count:,}" for _, count, _ in rows],
            textposition="outside",
            cliponaxis=False,
            marker={"color": [PALETTE[0] if chosen in (None, name) else f"rgba({GREY}, 0.45)" for name, *_ in rows]},
            customdata=[[name, note or f"{count / max(total, 1):.1%}"] for name, count, note in rows],
            hovertemplate="%{y}: %{x:,}<br>%{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    most = max((count for _, count, _ in rows), default=1)
    figure.update_xaxes(visible=False, range=[0, 1.18 * max(most, 1)])
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", ticklabelstandoff=6, showgrid=False)
    return plain(figure, height=BAR * max(len(rows), 1) + 14, top=4, left=8, bottom=8)


def changes(found: Mapping[str, Any]) -> list[WhatIf]:
    """The what-if curves that have a meaning for the run."""
    curves = []
    if bias := found["bias"]:
        axis = f"in living drives, {bias['unit']:.3g}"
        curves.append(WhatIf("Bias moved, each alone", axis, bias["by"], bias["fire"], True))
    if k := found["k"]:
        x = [(k["k"] or 0) + extra for extra in k["extra"]]
        title = f"k larger than {k['k']}" if k["k"] else "More kept of each row"
        curves.append(WhatIf(title, "k" if k["k"] else "more", x, k["fire"], True))
    if threshold := found["threshold"]:
        axis = "share of what they are"
        curves.append(WhatIf("Thresholds lowered, all", axis, threshold["share"], threshold["fire"], False))
    if resample := found["resample"]:
        axis = "encoder norm, in living ones"
        curves.append(
            WhatIf(
                "Resampled, all (dotted: dense)",
                axis,
                resample["scale"],
                resample["fire"],
                False,
                resample["dense"],
            )
        )
    return curves


def what_if(curve: WhatIf, total: int) -> go.Figure:
    """How many of the dead would fire, against how far the change goes; a line at all of them."""
    figure = go.Figure(
        go.Scatter(
            x=curve.x,
            y=curve.fire,
            mode="lines+markers",
            line={"color": PALETTE[1], "width": 2},
            marker={"size": 6},
            cliponaxis=False,
            hovertemplate=f"{curve.axis} %{{x:.3~g}}: %{{y:,}} of {total:,} would fire<extra></extra>",
        )
    )
    if curve.dense is not None:
        figure.add_scatter(
            x=curve.x,
            y=curve.dense,
            mode="lines+markers",
            line={"color": PALETTE[0], "width": 2, "dash": "dot"},
            cliponaxis=False,
            hovertemplate=f"{curve.axis} %{{x:.3~g}}: %{{y:,}} of {total:,} would be dense<extra></extra>",
        )
    figure.add_hline(total, line={"color": f"rgba({GREY}, 0.7)", "width": 1, "dash": "dash"})
    ticks = {"type": "log", "tickvals": _ticks(curve.x)} if curve.log else {}
    figure.update_xaxes(title=curve.axis, showgrid=False, nticks=6, tickangle=0, **ticks)
    figure.update_yaxes(range=[0, 1.1 * max(total, 1)], nticks=4)
    return plain(figure, height=200, top=8, bottom=40)


def _ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten within these, and where they are few round values between them too."""
    low, high = min(values), max(values)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        inside = [
            m * 10.0**decade for decade in range(-3, 7) for m in steps if low <= m * 10.0**decade <= high
        ]
        if len(inside) <= 5:
            break
    return inside
