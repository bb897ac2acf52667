"""Present scaling laws: figures of loss by width and by compute, tables of the constants, what the fit can and cannot say."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae.evaluation.scaling import compute_loss, joint_loss
from sae.report.charts import PALETTE, plain, plain_text
from sae.report.numbers import number
from sae.report.run_charts import FEWEST_TICKS, TICKS
from sae.runs.records import Estimate
from sae.runs.scaling import FittedRun, Law, Scaling, ScalingRecord, l0_levels

POINTS = 60  # of a curve
FURTHER = 2.0  # factor by which curves go on beyond the runs
CONSTANTS = {
    "alpha": ("α", "Level of the loss that a wider dictionary reduces."),
    "beta_k": ("βₖ", "Its power of L0 at one latent."),
    "beta_n": ("βₙ", "Its power of the width at an L0 of 1."),
    "gamma": (
        "γ",
        "How its power of the width changes with log L0: below 0, denser codes gain more from width.",
    ),
    "zeta": ("ζ", "Log of the irreducible loss at an L0 of 1, which no width removes."),
    "eta": ("η", "Power of L0 of the irreducible loss."),
    "a": ("a", "Log of the loss at one operation."),
    "b": ("b", "Power of compute: ten times the compute multiplies the loss by 10^b."),
}
JOINT_FORMULA = "L(n, k) = exp(α + βₖ ln k + βₙ ln n + γ ln k ln n) + exp(ζ + η ln k)"
COMPUTE_FORMULA = "L(C) = exp(a + b ln C)"


def title(scaling: Scaling) -> str:
    """Return what was fitted: the architecture and the hook point."""
    return f"{scaling.architecture}, {scaling.hook}"


def constants(law: Law) -> list[tuple[str, str, str, str]]:
    """Return a line for each constant: symbol, explanation, value, 95 % interval, for `render.estimates`."""
    return [(*CONSTANTS[name], number(one.value), interval(one)) for name, one in law.constants.items()]


def laws(scaling: Scaling) -> list[tuple[str, Law]]:
    """Return each fitted law with its formula in words."""
    joint = [(JOINT_FORMULA, scaling.joint)] if scaling.joint else []
    return joint + [(f"{COMPUTE_FORMULA} at L0 {number(one.l0)}", one.law) for one in scaling.compute]


def tables(scaling: Scaling) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Return the constants as tables with a title each, for `render.estimates`: L(n, k), and L(C) at all L0s together."""
    found = []
    if scaling.joint:
        found.append((f"{JOINT_FORMULA}, {scaling.joint.runs} runs", constants(scaling.joint)))
    if scaling.compute:
        rows = [
            (f"{symbol} at L0 {number(one.l0)}", *others)
            for one in scaling.compute
            for symbol, *others in constants(one.law)
        ]
        runs = sum(one.law.runs for one in scaling.compute)
        found.append((f"{COMPUTE_FORMULA}, {runs} runs on the frontiers", rows))
    return found


def interval(estimate: Estimate) -> str:
    """Return a 95 % interval as text."""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def basis(scaling: Scaling) -> str:
    """Return what the laws were fitted to, as one line."""
    joint = [run for run in scaling.runs if run.joint]
    widths, levels = [run.width for run in joint], scaling.levels
    return (
        f"{len(joint)} runs of {min(widths):,} to {max(widths):,} latents, L0 {number(levels.min())} to {number(levels.max())}, "
        f"trained on {_span([run.tokens for run in joint])} tokens"
    )


def remarks(scaling: Scaling) -> list[str]:
    """Return how well the laws hold, whether the runs had converged, and why a law is missing, a sentence each."""
    said = []
    if scaling.joint:
        said.append(
            f"The runs lie around L(n, k) with a standard deviation of {scaling.joint.spread:.2%} of the loss."
        )
        zeta = scaling.joint.constants["zeta"]
        if (zeta.high or 0.0) - (zeta.low or 0.0) > 2:
            said.append("These runs do not tell the irreducible loss, ζ and η: wider dictionaries would.")
    joint = [run for run in scaling.runs if run.joint]
    converged = [run.converged for run in joint]
    still = converged.count(False)
    if still:
        said.append(
            f"{still} of {len(joint)} runs had not converged (their held-out FVU fell by 1 % or more in the last quarter of the steps): "
            f"L(n, k) is of the runs as they are, not of convergence."
        )
    elif None in converged:
        said.append("Whether the runs had converged is unknown: their logs lack the held-out FVU.")
    return said + [f"{why[0].upper()}{why[1:]}." for why in scaling.left_out]


def figure(scaling: Scaling) -> go.Figure:
    """Return the fitted laws over their runs: FVU by width, a curve for each level of L0 with its 95 % band, and FVU by compute.

    Curves go on to twice the largest width or compute. A law that was not fitted has no curve, and its runs are drawn all the same."""
    panels = ["FVU by width, longest runs"] + (
        ["FVU by compute, points on the frontier filled"] if scaling.compute else []
    )
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=panels, horizontal_spacing=0.1)
    for number_, (l0, runs) in enumerate(l0_levels(scaling.runs)):
        color = PALETTE[number_ % len(PALETTE)]
        _by_width(made, scaling, l0, [run for run in runs if run.joint], color)
        if scaling.compute:
            _by_compute(made, scaling, l0, runs, color)
    widths = sorted({run.width for run in scaling.runs})
    made.update_xaxes(
        type="log", tickvals=widths, tickformat=",", showgrid=False, title="latents, n", row=1, col=1
    )
    if scaling.compute:
        made.update_xaxes(
            type="log",
            dtick=1,
            exponentformat="power",
            showgrid=False,
            title="training compute C, operations",
            row=1,
            col=2,
        )
    values = [run.fvu for run in scaling.runs]
    made.update_yaxes(type="log", tickvals=_ticks(min(values), max(values)))
    made.update_yaxes(title="FVU", row=1, col=1)
    made.for_each_annotation(lambda label: label.update(font_size=13))
    made.update_layout(legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0})
    return plain(made, height=380, top=32, left=52, bottom=44, legend=True)


def page(record: ScalingRecord) -> str:
    """Return one HTML page with all figures and constants, which opens without a network."""
    parts = []
    for place, scaling in enumerate(record.fits):
        drawn = figure(scaling)
        drawn.update_layout(width=1000 if scaling.compute else 620, template="plotly_white")
        parts.append(f"<h2>{plain_text(title(scaling))}</h2><p>{plain_text(basis(scaling))}</p>")
        parts.append(drawn.to_html(full_html=False, include_plotlyjs=not place))
        parts += [_list(formula, law) for formula, law in laws(scaling)]
        parts += [f"<p>{plain_text(text)}</p>" for text in remarks(scaling)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Scaling laws</title></head>'
        f'<body style="font-family: sans-serif; background: white; color: #262521">{"".join(parts)}</body></html>\n'
    )


def _list(formula: str, law: Law) -> str:
    lines = "; ".join(f"{symbol} = {value} ({between})" for symbol, _, value, between in constants(law))
    return f"<p>{html.escape(formula)}, fitted to {law.runs} runs: {lines}</p>"


def _ticks(low: float, high: float) -> list[float]:
    """Return the fewest round numbers that put at least three ticks between two losses, for a logarithmic axis."""
    ticks: list[float] = []
    for multiples in TICKS:
        ticks = [m * 10.0**decade for decade in range(-6, 2) for m in multiples]
        if sum(low <= tick <= high for tick in ticks) >= FEWEST_TICKS:
            break
    return ticks


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _by_width(made: go.Figure, scaling: Scaling, l0: float, runs: list[FittedRun], color: str) -> None:
    """Draw the runs of one level and the law at its L0."""
    if not runs:
        return
    group = f"{l0:g}"
    if scaling.joint:
        widths = [run.width for run in scaling.runs if run.joint]
        n = np.geomspace(min(widths), FURTHER * max(widths), POINTS)
        fit = scaling.joint.fit
        low, high = fit.interval(lambda constants: joint_loss(constants[..., None, :], n, l0))
        _band(made, n, low, high, color, group, 1)
        _curve(made, n, joint_loss(fit.constants, n, l0), color, group, 1)
    made.add_scatter(
        x=[run.width for run in runs],
        y=[run.fvu for run in runs],
        mode="markers",
        marker={"color": color, "size": 8},
        name=f"L0 {number(l0)}",
        legendgroup=group,
        text=[plain_text(run.run) for run in runs],
        hovertemplate="%{text}<br>%{x:,} latents, FVU %{y:.4~g}<extra></extra>",
        row=1,
        col=1,
    )


def _by_compute(made: go.Figure, scaling: Scaling, l0: float, runs: list[FittedRun], color: str) -> None:
    """Draw all runs of one level by their compute, those on the frontier filled, and the law."""
    group = f"{l0:g}"
    fit = next((one.law.fit for one in scaling.compute if one.l0 == l0), None)
    if fit:
        flops = [run.flops for run in runs if run.frontier]
        c = np.geomspace(min(flops), FURTHER * max(flops), POINTS)
        low, high = fit.interval(lambda constants: compute_loss(constants[..., None, :], c))
        _band(made, c, low, high, color, group, 2)
        _curve(made, c, compute_loss(fit.constants, c), color, group, 2)
    made.add_scatter(
        x=[run.flops for run in runs],
        y=[run.fvu for run in runs],
        mode="markers",
        marker={
            "color": color,
            "size": 8,
            "symbol": ["circle" if run.frontier else "circle-open" for run in runs],
        },
        legendgroup=group,
        showlegend=False,
        text=[plain_text(run.run) for run in runs],
        hovertemplate="%{text}<br>%{x:.3~g} operations, FVU %{y:.4~g}<extra></extra>",
        row=1,
        col=2,
    )


def _curve(made: go.Figure, x: np.ndarray, y: np.ndarray, color: str, group: str, column: int) -> None:
    line = {"color": color, "width": 1.5}
    made.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line=line,
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=column,
    )


def _band(
    made: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, group: str, column: int
) -> None:
    made.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        mode="none",
        fillcolor=color,
        opacity=0.15,
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=column,
    )
