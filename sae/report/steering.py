"""Pure: what steering did -> texts, numbers, suggestions and the dose-response figure of the Steering page."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go
import pyarrow as pa
from plotly.subplots import make_subplots

from sae.report.charts import GREY, GRID, PALETTE
from sae.report.render import chips, feature_link, named, number, percent

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


RAREST, MOST = 1e-4, 0.02  # densities between which a feature is suggested
LOUDEST = 0.4  # a suggested feature's maximum, as a share of the activations' norm
AGREE = 4  # of its five peak tokens, how many are one word
MODES = {
    "add": "add",
    "set": "set to",
    "clamp": "limit to",
    "scale": "multiply by",
    "ablate": "ablate",
    "project": "project out",
}
STRENGTHS = {
    "gentle": ("add", 0.5),
    "clear": ("add", 1.0),
    "strong": ("add", 1.5),
    "reversed": ("add", -1.0),
    "off": ("ablate", 1.0),
}
MEASURES = {
    "concept": (
        "concept",
        "Mean value of the steered features where the unsteered model reads the text, as a share of their largest on "
        "the corpus. The push itself is not seen.",
    ),
    "fires": ("fires on", "Share of the text's tokens on which the features fire, in the same reading."),
    "peak": ("strongest", "Their value largest in size there, as a share of their largest on the corpus."),
    "peak_gain": (
        "gain of its tokens",
        "How much steering raises the log-probability of the tokens the features peak on, along the unsteered text; nats.",
    ),
    "kl": (
        "KL",
        "KL(unsteered to steered) of next-token predictions along the unsteered text; nats a token.",
    ),
    "perplexity": ("perplexity", "Of the text under the unsteered model: what it costs in fluency."),
    "repetition": ("repeated", "Share of its runs of three tokens that stood in the text before."),
    "distinct": ("distinct", "Different tokens as a share of all."),
}
SHARES = ("concept", "fires", "peak", "repetition", "distinct")


class Text(Protocol):
    """A continuation (`sae.steering.compare.Text` is one)."""

    @property
    def tokens(self) -> Sequence[int]:
        """Ids."""
        ...

    @property
    def log_probability(self) -> Sequence[float]:
        """Of each token, unsteered."""
        ...

    @property
    def steered_log_probability(self) -> Sequence[float]:
        """Of each token, steered."""
        ...

    @property
    def kl(self) -> Sequence[float]:
        """Of each token's prediction."""
        ...

    @property
    def change(self) -> Sequence[float]:
        """Steered minus unsteered."""
        ...


def title(run: str, latent: int, label: str, above: Sequence[str], below: Sequence[str]) -> str:
    """A feature's number, a link to its page, with its label and the tokens it peaks on above and below 0."""
    link = f'<a href="{feature_link(run, latent)}" target="_self">Feature {latent}</a>'
    sides = [(mark, tokens) for mark, tokens in (("+", above), ("−", below)) if tokens]
    marks = [
        f'<span class="dim">{mark if len(sides) > 1 or mark == "−" else ""}</span> {chips(tokens)}'
        for mark, tokens in sides
    ]
    return f'<div class="sae">{link} {named(label)}{" ".join(marks)}</div>'


def tokens(text: Text, pieces: Sequence[str]) -> list[tuple[str, float, str]]:
    """Each token as (what it reads as, change of its log-probability, all its values to hover over)."""
    rows = zip(pieces, text.change, text.log_probability, text.steered_log_probability, text.kl, strict=True)
    return [
        (
            piece,
            change,
            f"log p {number(before)} → {number(after)} ({'+' if change >= 0 else ''}{number(change)}), KL {number(kl)}",
        )
        for piece, change, before, after, kl in rows
    ]


def largest_change(texts: Sequence[Text]) -> float:
    """What the colours of both texts are relative to: the largest change of any token, at least one nat."""
    return max([1.0, *(abs(change) for text in texts for change in text.change)])


def measures(baseline: Any, steered: Any) -> list[tuple[str, str, str, str]]:
    """Every measure as (name, explanation, as it is, steered)."""
    return [
        (label, why, shown(name, getattr(baseline, name)), shown(name, getattr(steered, name)))
        for name, (label, why) in MEASURES.items()
    ]


def shown(name: str, value: float | None) -> str:
    """A measure's value: shares as per cent."""
    if value is None:
        return "–"
    if name in SHARES:
        return f"−{percent(-value)}" if value < 0 else percent(value)
    return number(value)


def suggestions(table: pa.Table, norm: float, n: int) -> list[tuple[int, str]]:
    """n features worth trying first, with the word each is known by.

    Such a feature is neither rare nor dense, not so strong that its maximum drowns the activations (whose norm is
    given), and peaks on one whole word, each on another. Strong and frequent ones come first; where there are too
    few, any that are strong and frequent make up the number."""
    names = ("density", "max", "min", "peak_tokens")
    rows = list(enumerate(zip(*(table[name].to_pylist() for name in names), strict=True)))
    size = {latent: max(high or 0, -(low or 0)) for latent, (_, high, low, _) in rows}
    rows.sort(key=lambda row: -size[row[0]] * row[1][0] ** 0.5)
    found: dict[str, int] = {}
    for latent, (density, _, _, peaks) in rows:
        word = _word(peaks)
        if len(found) < n and word and RAREST <= density <= MOST and size[latent] <= LOUDEST * norm:
            found.setdefault(word, latent)
    rest = [(latent, next(iter(peaks), "")) for latent, (*_, peaks) in rows if latent not in found.values()]
    return [*((latent, word) for word, latent in found.items()), *rest][:n]


def _word(peaks: Sequence[str]) -> str:
    """The word a feature peaks on, lower case; empty where its peak tokens do not agree on a whole one of some length."""
    said = [peak.lower() for peak in peaks]
    common = max(said, key=said.count, default="")
    whole = said.count(common) >= AGREE and re.fullmatch(r" [^\W\d_]{5,}", common)
    return common.strip() if whole else ""


def about(settings: Any, changed: bool, dosed: bool = False) -> str:
    """What was done, in a line, and whether the page is set to something else now."""
    pushes = [
        f"feature {i.latent}: {MODES[i.mode]}" + ("" if dosed else f" {number(i.strength)}")
        for i in settings.interventions
    ]
    unit = "shares of the activations' norm" if settings.unit == "norm" else "multiples of the maximum"
    tail = "; the settings have changed since" if changed else ""
    return f"{', '.join(pushes)} ({unit}){tail}"


def axis(settings: Any) -> str:
    """What strengths of a sweep are measured in."""
    named = "strongest feature's " if len(settings.interventions) > 1 else ""
    return (
        f"{named}strength, shares of the activations' norm"
        if settings.unit == "norm"
        else f"{named}strength, multiples of its maximum"
    )


def examples(found: Any) -> list[tuple[str, str]]:
    """The first text of every dose along the features' own directions, as (strength, text)."""
    return [(number(point.dose), point.trials[0].text) for point in found.curves()["latent"]]
