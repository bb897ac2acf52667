"""Present the sparsity of latents' effects on the logits beside that of their controls: lines, sentences, a figure."""

from collections.abc import Iterator
from typing import NamedTuple

import plotly.graph_objects as go

from sae.evaluation.measures import AblationEffects, EffectGroup
from sae.report.charts import PALETTE, plain
from sae.report.numbers import count, number, percent

TITLES = {
    "latents": ("latents", "Sampled latents of the run, each taken out where it fires."),
    "random-dictionary": (
        "random dictionary",
        "A latent of random directions with the run's L0 that fires at the same place, taken out in the latent's stead.",
    ),
    "random-directions": (
        "random directions",
        "A random direction of the norm of what the latent writes, taken out at the same place.",
    ),
}


class Line(NamedTuple):
    """One kind of ablation, as text."""

    title: str
    help: str
    mean: str
    interval: str
    median: str
    size: str


def basis(effects: AblationEffects) -> str:
    """Return what was ablated and compared, in words."""
    return (
        f"{count(len(effects.latents))} of {count(effects.live)} live latents at {count(effects.firings)} places, "
        f"{effects.positions} positions, {count(effects.vocabulary)} logits"
    )


def lines(effects: AblationEffects) -> Iterator[Line]:
    """Yield the latents, then their controls."""
    for name, group in effects.groups.items():
        title, help_ = TITLES.get(name, (name, ""))
        sparsity = group.sparsity
        yield Line(
            title,
            help_,
            percent(sparsity.value),
            f"{percent(sparsity.low)} to {percent(sparsity.high)}",
            percent(group.quantiles.get("0.5")),
            number(group.size.value),
        )


def conclusions(effects: AblationEffects) -> list[str]:
    """Return, for each control, whether latents change fewer logits than it does, as a sentence."""
    return [
        _conclusion(TITLES.get(name, (name, ""))[0], group)
        for name, group in effects.groups.items()
        if group.less_than
    ]


def _conclusion(title: str, control: EffectGroup) -> str:
    less = control.less_than
    assert less is not None
    between = f"{percent(less.low)} to {percent(less.high)}"
    if (less.low or 0.0) > 0:
        return f"Effects of latents are sparser than those of the {title}, by {percent(less.value)} of all logits ({between})."
    if (less.high or 0.0) < 0:
        return f"Effects of latents are less sparse than those of the {title}, by {percent(-(less.value or 0.0))} of all logits ({between})."
    return f"Effects of latents are not distinguishable in sparsity from those of the {title} (difference {between})."


def figure(effects: AblationEffects) -> go.Figure:
    """Return the share of sampled latents whose effect is at most so sparse, a curve for the latents and for each control."""
    drawn = go.Figure()
    for place, (name, group) in enumerate(effects.groups.items()):
        values = sorted(group.values)
        title = TITLES.get(name, (name, ""))[0]
        drawn.add_scatter(
            x=values,
            y=[(place + 1) / len(values) for place in range(len(values))],
            mode="lines",
            line={"color": PALETTE[place % len(PALETTE)], "width": 2, "shape": "hv"},
            name=title,
            hovertemplate=f"{title}: %{{y:.0%}} have at most %{{x:.3~g}}<extra></extra>",
        )
    drawn.update_xaxes(
        title="(L1 / L2)² as a share of all logits: left is sparser",
        nticks=6,
        rangemode="tozero",
        showgrid=False,
    )
    drawn.update_yaxes(title="share of latents", tickformat=".0%", range=[0, 1.02], nticks=5)
    drawn.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return plain(drawn, height=300, top=34, left=56, bottom=44, legend=True)
