"""Present steering on its page: suggested features, both texts and their measures, and the dose-response figure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go
import pyarrow as pa
from plotly.subplots import make_subplots

from sae.report import render
from sae.report.charts import GREY, GRID, PALETTE
from sae.report.numbers import number, percent, signed
from sae.report.render import chips, escaped, feature_link, named
from sae.report.token_strips import Token, inline, valued

PANELS = {
    "concept": "Concept in the text (share of its maximum)",
    "peak_gain": "Gain of its own tokens (nats)",
    "kl": "KL from the unsteered model (nats)",
    "perplexity": "Perplexity under the unsteered model",
}
KINDS = {
    "latent": ("the features", PALETTE[0]),
    "random": ("random directions", f"rgb({GREY})"),
    "shuffled": ("other features", PALETTE[1]),
}
GAP = 0.09  # between the columns of panels, as a share of the width
BAND = 0.16  # opacity of the band of mean ± spread
RAREST, MOST = 1e-4, 0.02  # a suggested feature's density lies between these
LOUDEST = 0.4  # a suggested feature's maximum is at most this share of the activations' norm
AGREE = 4  # at least so many of its five peak tokens are the same word
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
        "Mean value of the steered features when the unsteered model reads the text, as a share of their maximum on "
        "the corpus. The intervention itself is not part of it.",
    ),
    "fires": (
        "fires on",
        "Share of the text's tokens on which the features fire when the unsteered model reads it.",
    ),
    "peak": (
        "strongest",
        "Their value of largest size in the text, as a share of their maximum on the corpus.",
    ),
    "peak_gain": (
        "gain of its tokens",
        "How much steering raises the log-probability of the tokens the features peak on, along the unsteered text, in nats.",
    ),
    "kl": (
        "KL",
        "KL(unsteered ‖ steered) of next-token predictions along the unsteered text, in nats per token.",
    ),
    "perplexity": (
        "perplexity",
        "Perplexity of the text under the unsteered model: what steering costs in fluency.",
    ),
    "repetition": ("repeated", "Share of its sequences of three tokens that occur earlier in the text."),
    "distinct": ("distinct", "Number of different tokens as a share of all tokens."),
}
FACTOR = "factor"  # the strength of modes that count no unit
SHARES = ("concept", "fires", "peak", "repetition", "distinct")  # measures shown as percentages


class Text(Protocol):
    """A continuation, such as a `sae.steering.measure.Text`."""

    @property
    def tokens(self) -> Sequence[int]:
        """Their ids."""
        ...

    @property
    def log_probability(self) -> Sequence[float]:
        """Each token's log-probability under the unsteered model."""
        ...

    @property
    def steered_log_probability(self) -> Sequence[float]:
        """Each token's log-probability under the steered model."""
        ...

    @property
    def kl(self) -> Sequence[float]:
        """Each token's KL divergence between the two predictions."""
        ...

    @property
    def change(self) -> Sequence[float]:
        """Each token's steered minus unsteered log-probability."""
        ...


class Point(Protocol):
    """All texts of one dose, such as a `sae.steering.sweep.Point`."""

    @property
    def dose(self) -> float:
        """The dose, its place on the x axis."""
        ...

    def mean(self, name: str) -> float | None:
        """Return a measure's mean over the texts."""
        ...

    def spread(self, name: str) -> float | None:
        """Return a measure's standard deviation over the texts."""
        ...


def title(run: str, latent: int, label: str, above: Sequence[str], below: Sequence[str]) -> str:
    """Return a feature's number as a link to its page, with its label and the tokens it peaks on above and below 0."""
    link = f'<a href="{feature_link(run, latent)}" target="_self">Feature {latent}</a>'
    sides = [(mark, tokens) for mark, tokens in (("+", above), ("−", below)) if tokens]
    marks = [
        f'<span class="dim">{mark if len(sides) > 1 or mark == "−" else ""}</span> {chips(tokens)}'
        for mark, tokens in sides
    ]
    return f'<div class="sae">{link} {named(label)}{" ".join(marks)}</div>'


def tokens(text: Text, pieces: Sequence[str]) -> list[tuple[str, float, str]]:
    """Return each token as (text, change of its log-probability, all its values for hovering)."""
    rows = zip(pieces, text.change, text.log_probability, text.steered_log_probability, text.kl, strict=True)
    return [
        (piece, change, f"log p {number(before)} → {number(after)} ({signed(change)}), KL {number(kl)}")
        for piece, change, before, after, kl in rows
    ]


def largest_change(texts: Sequence[Text]) -> float:
    """Return what the colours of both texts are relative to: the largest change of any token, at least one nat."""
    return max([1.0, *(abs(change) for text in texts for change in text.change)])


def measures(baseline: Any, steered: Any) -> list[tuple[str, str, str, str]]:
    """Return every measure as (name, explanation, unsteered value, steered value)."""
    return [
        (label, why, shown(name, getattr(baseline, name)), shown(name, getattr(steered, name)))
        for name, (label, why) in MEASURES.items()
    ]


def shown(name: str, value: float | None) -> str:
    """Return a measure's value as text, a share as a percentage."""
    return percent(value) if name in SHARES else number(value)


def suggestions(table: pa.Table, norm: float, n: int) -> list[tuple[int, str]]:
    """Return n features worth trying first, each with the word it peaks on. `norm` is the activations' norm.

    A suggested feature is neither rare nor dense, its maximum does not drown the activations, and it peaks on a whole word
    that no other suggestion peaks on. Strong and frequent features come first. Where too few qualify, other strong and
    frequent features fill the list."""
    names = ("density", "max", "min", "peak_tokens")
    rows = list(enumerate(zip(*(table[name].to_pylist() for name in names), strict=True)))
    size = {latent: max(high or 0, -(low or 0)) for latent, (_, high, low, _) in rows}
    rows.sort(key=lambda row: -size[row[0]] * row[1][0] ** 0.5)
    by_word: dict[str, int] = {}
    for latent, (density, _, _, peaks) in rows:
        word = _word(peaks)
        if len(by_word) < n and word and RAREST <= density <= MOST and size[latent] <= LOUDEST * norm:
            by_word.setdefault(word, latent)
    rest = [(latent, next(iter(peaks), "")) for latent, (*_, peaks) in rows if latent not in by_word.values()]
    return [*((latent, word) for word, latent in by_word.items()), *rest][:n]


def _word(peaks: Sequence[str]) -> str:
    """Return the word a feature peaks on in lower case; empty unless its peak tokens agree on a whole word of five letters."""
    lower = [peak.lower() for peak in peaks]
    common = max(lower, key=lower.count, default="")
    whole = lower.count(common) >= AGREE and re.fullmatch(r" [^\W\d_]{5,}", common)
    return common.strip() if whole else ""


def about(settings: Any, changed: bool, dosed: bool = False) -> str:
    """Return a line about the interventions, which says so if the page's settings have changed since.

    A dose-response (`dosed`) has no single strength to name."""
    told = [
        (f"feature {i.latent}: {MODES[i.mode]}" + ("" if dosed else f" {number(i.strength)}"), unit(i))
        for i in settings.interventions
    ]
    tail = "; the settings have changed since" if changed else ""
    where = f", only where {settings.when}" if settings.when else ""
    return f"{with_units(told)}{where}{tail}"


def unit(intervention: Any) -> str:
    """Return what an intervention's strength counts, in words."""
    if not intervention.has_unit:
        return FACTOR
    return "shares of the activations' norm" if intervention.unit == "norm" else "multiples of the maximum"


def with_units(told: Sequence[tuple[str, str]]) -> str:
    """Join interventions, told as (intervention, unit), in a line; a unit that all share stands once, at its end."""
    units = {unit for _, unit in told}
    if len(units) == 1:
        return f"{', '.join(text for text, _ in told)} ({units.pop()})"
    return ", ".join(f"{text} ({unit})" for text, unit in told)


def side_effects(weaker: float) -> str:
    """Return a forecast of a feature's side effects in words; `weaker` is the share of features with weaker ones."""
    return f"Forecast: moves unrelated text more than {percent(round(weaker, 2))} of features do at equal strength"


def axis(settings: Any) -> str:
    """Return the title of the dose axis, whose doses are sizes where a limit (clamp) keeps the strengths from changing their signs."""
    strongest = settings.strongest
    whose = "strongest feature's " if len(settings.interventions) > 1 else ""
    size = "size of the " if settings.has_limit and strongest.strength < 0 else ""
    return f"{size}{whose}strength, {unit(strongest).replace('the maximum', 'its maximum')}"


def examples(response: Any) -> list[tuple[str, str]]:
    """Return the first text of every dose along the features' own directions, as (strength, text)."""
    return [(number(point.dose), point.trials[0].text) for point in response.curves()["latent"]]


def dose_response(curves: Mapping[Any, Sequence[Any]], axis: str) -> go.Figure:
    """Return a panel per measure with a curve per kind (KINDS): the mean as a line, mean ± spread as a band.

    Doses rise along a curve. Kinds without points and measures without values are left out."""
    points = [point for curve in curves.values() for point in curve]
    names = [name for name in PANELS if any(point.mean(name) is not None for point in points)]
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
        wide = any((point.mean("perplexity") or 0) > 1000 for point in points)
        ticks = [m * 10**decade for decade in range(12) for m in ((1,) if wide else (1, 2, 5))]
        figure.update_yaxes(type="log", tickvals=ticks, row=place // 2 + 1, col=place % 2 + 1)
    figure.update_xaxes(showgrid=False, zeroline=True, zerolinecolor=GRID, fixedrange=True)
    figure.update_xaxes(title=axis, row=2)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, fixedrange=True, nticks=5)
    left = {"xanchor": "left", "font_size": 13, "yshift": 2}
    figure.for_each_annotation(lambda title: title.update(x=title.x - (1 - GAP) / 4, **left))
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
    """Return the band and the line of one curve."""
    rows = [
        (p.dose, m, s)
        for p in points
        if (m := p.mean(name)) is not None and (s := p.spread(name)) is not None
    ]
    x, means = [dose for dose, _, _ in rows], [mean for _, mean, _ in rows]
    low, high = [mean - spread for _, mean, spread in rows], [mean + spread for _, mean, spread in rows]
    if name == "perplexity":  # a log axis has no 0, and a perplexity is at least 1
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


def changed_text(prompt: Sequence[str], tokens: Iterable[tuple[str, float, str | None]], scale: float) -> str:
    """Return a dim prompt and its continuation, given as (text, change, what hovering tells).

    Tokens are warm where the change is above 0 and cool below. Lines break where the text's lines do."""
    before = [Token(text, "dim") for text in prompt]
    after = [valued(text, change, scale, tip=tip) for text, change, tip in tokens]
    return f'<div class="sae"><p class="strip" dir="auto">{inline([*before, *after])}</p></div>'


def before_and_after(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Return a table of measures from (label, explanation, before, after)."""
    lines = [
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td><td class="n dim">{escaped(before)}</td>'
        f'<td class="n">{escaped(after)}</td></tr>'
        for label, why, before, after in rows
    ]
    head = '<tr><th scope="col">measure</th><th scope="col" class="n">unsteered</th><th scope="col" class="n">steered</th></tr>'
    return f'<table class="sae estimates">{head}{"".join(lines)}</table>'


def meanings() -> str:
    """Return the explanations of all measures, to unfold."""
    return (
        '<details class="sae meanings"><summary>What the rows mean</summary>'
        f"{render.facts(MEASURES.values())}</details>"
    )


def texts(rows: Iterable[tuple[str, str]]) -> str:
    """Return texts one below the other, each with the strength it was written at."""
    lines = (
        f'<tr><td class="n">{escaped(label)}</td><td><span class="strip">{escaped(text)}</span></td></tr>'
        for label, text in rows
    )
    return f'<table class="sae estimates"><tr><th scope="col" class="n">strength</th><th scope="col">text</th></tr>{"".join(lines)}</table>'
