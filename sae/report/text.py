"""A text read by an SAE, as the Your text page and notebooks show it: coloured tokens, numbers, the features that fire, ranked.

In its HTML, what can be pressed carries `data-do` (token, open, colour) and `data-to` (a number); the app acts on it, a
notebook does not."""

from collections.abc import Iterable, Sequence
from math import exp, isnan
from typing import Any, NamedTuple

from sae.report.feature import Describe
from sae.report.numbers import number, percent, signed
from sae.report.render import LEGEND_STEPS, chips, colour_scale, escaped, feature_link, legend, named, shade
from sae.report.token_strips import Token, inline

HELP = {
    "value": "The feature's value on this token.",
    "peak": "The feature's value of largest size on this text; press to go there.",
    "tokens": "The number of tokens of this text on which it fires.",
    "effect": "Effect on the logit of the next token against the mean logit, over the direct path, final norm frozen.",
    "summed effect": "Sum of its effects on the logits of next tokens, over the tokens on which it fires; opposite ones cancel.",
    "rarity": "Size relative to its observed maximum, times -ln of its density: high for what is strong and rare.",
    "density": "Share of the tokens its run was measured on, on which it fires.",
}
MEASURES = {
    "total": ("activation", "Sum of the absolute values of all features on the token."),
    "l0": ("L0", "Number of features that fire on the token."),
    "error": (
        "error",
        "Squared error over the variance: 0 is a perfect reconstruction, 1 no better than the mean.",
    ),
    "surprise": ("surprise", "-ln of the probability that the model gave this token, in nats."),
}
RANKINGS = {
    "value": "Largest value first, of either sign.",
    "rarity": "Value relative to the feature's observed maximum, times -ln of its density: dense features come last.",
    "effect": "Largest effect on the logit of the next token first, and over the whole text the largest sum of effects on all "
    "next tokens: what the decoder writes goes directly through the final norm (its scale frozen) and the unembedding, and is "
    "measured against the mean logit.",
}
DENSEST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # stops of the control that hides dense features
EXAMPLES = {
    "Capitals": "The capital of France is Paris, and the river Seine flows through it. The capital of Japan is Tokyo.",
    "A recipe": "Whisk two eggs with a pinch of salt, melt the butter in a hot pan, and cook for three minutes.",
    "Code": "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(2.0))",
}
MOST = 40  # lines of a table at most


class Line(NamedTuple):
    """One feature in a table of features that fire; None where something is unknown."""

    latent: int
    value: float
    effect: float | None
    rarity: float | None
    density: float | None
    label: str
    """The label that somebody gave it; empty for none."""
    tokens: Sequence[str]
    """The tokens it fires most on, as far as known."""
    times: int | None = None
    """In a table over a whole text, the number of tokens on which it fires."""
    position: int | None = None
    """In a table over a whole text, the token that has the value."""


def signed_shades(values: Sequence[float]) -> list[float]:
    """Return a feature's values as logarithmic shades from -1 to 1, relative to the value of largest size."""
    scale = max(map(abs, values), default=0.0)
    return [shade(value, scale) * (1 if value > 0 else -1) for value in values]


def level_shades(values: Sequence[float], counted: Sequence[bool]) -> tuple[list[float], float, float]:
    """Return shades from 0 to 1 between the least and the largest value that counts, and these two values.

    NaN and values that do not count have shade 0. Where all are equal every shade is 0, so that nothing stands out."""
    seen = [value for value, counts in zip(values, counted, strict=True) if counts and not isnan(value)]
    low, high = min(seen, default=0.0), max(seen, default=0.0)
    width = high - low
    shades = [
        min(max((value - low) / width, 0.0), 1.0) if counts and width and not isnan(value) else 0.0
        for value, counts in zip(values, counted, strict=True)
    ]
    return shades, low, high


def strip(
    tokens: Sequence[str],
    shades: Sequence[float],
    tips: Sequence[str],
    is_text: Sequence[bool],
    chosen: int | None = None,
) -> str:
    """Return all tokens as one paragraph, each coloured by its shade (cool below 0); a press chooses a token.

    Tokens that are not text, such as BOS, are faint. Lines break where the text's lines do."""
    shown = []
    for place, (text, tip) in enumerate(zip(tokens, tips, strict=True)):
        classes = "t up" if shades[place] >= 0 else "t down"
        classes += (" peak" if place == chosen else "") + ("" if is_text[place] else " bos")
        pressed = f'style="--a:{abs(shades[place]):.3f}" data-tip="{escaped(tip)}" data-do="token" data-to="{place}"'
        shown.append(Token(text, classes, f" {pressed}"))
    return f'<div class="sae reading"><p class="strip" dir="auto">{inline(shown)}</p></div>'


def level_legend(low: float, high: float) -> str:
    """Return the colour scale of `level_shades`."""
    return colour_scale(low, high, ((step + 0.5) / LEGEND_STEPS for step in range(LEGEND_STEPS)))


def firings(lines: Iterable[Line], run: str | None, coloured: str | int | None = None) -> str:
    """Return a table of features with value, effect, rarity and density. Columns that nothing fills are left out.

    Pressing a number opens the feature's page, pressing a disc colours the text by the feature; without a run there is
    no page and nothing to press. Lines about a whole text also have the number of tokens, and their value is the peak,
    which is pressed to go there. `coloured` is the feature that the text is coloured by."""
    lines = list(lines)
    scale = max((abs(line.value) for line in lines), default=0.0)
    whole = any(line.times is not None for line in lines)
    columns = [
        name
        for name in ("effect", "rarity", "density")
        if any(getattr(line, name) is not None for line in lines)
    ]
    texts = any(line.label or line.tokens for line in lines)
    heads = [
        *([""] if run is not None else []),
        "feature",
        "peak" if whole else "value",
        *(["tokens"] if whole else []),
        *columns,
    ]
    heads += ["fires most on"] if texts else []
    body = "".join(_row(line, run, scale, columns, whole, texts, line.latent == coloured) for line in lines)
    numbers = {"tokens", *columns}
    help_ = HELP | ({"effect": HELP["summed effect"]} if whole else {})
    head = "".join(
        f'<th scope="col"{_kind(name in numbers)} title="{help_.get(name, "")}">{name}</th>' for name in heads
    )
    return f'<table class="sae firings"><tr>{head}</tr>{body}</table>'


def _row(
    line: Line,
    run: str | None,
    scale: float,
    columns: Sequence[str],
    whole: bool,
    texts: bool,
    coloured: bool,
) -> str:
    shown = {
        "effect": signed(line.effect),
        "rarity": number(line.rarity),
        "density": percent(line.density),
    }
    press = "" if line.position is None else f' data-do="token" data-to="{line.position}"'
    hue, width = "up" if line.value > 0 else "down", abs(line.value) / scale if scale else 0.0
    cells = [
        *_buttons(line.latent, run, coloured),
        f'<td class="bar {hue}" style="--w:{width:.3f}"{press}><i></i><span>{number(line.value)}</span></td>',
        *([f'<td class="n">{line.times:,}</td>'] if whole else []),
        *(f'<td class="n">{shown[name]}</td>' for name in columns),
        *([f'<td class="token">{named(line.label)}{chips(line.tokens)}</td>'] if texts else []),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _buttons(latent: int, run: str | None, coloured: bool) -> list[str]:
    if run is None:
        return [f"<td>{latent}</td>"]
    return [
        f'<td><button class="disc{" on" if coloured else ""}" data-do="colour" data-to="{latent}" '
        f'title="Colour the text by feature {latent}" aria-label="Colour the text by feature {latent}"></button></td>',
        f'<td><a href="{feature_link(run, latent)}" target="_self">{latent}</a></td>',
    ]


def _kind(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


class Coloured(NamedTuple):
    """The colours and tooltips of a text's tokens, with a legend."""

    shades: Sequence[float]
    tips: Sequence[str]
    legend: str


def coloured(reading: Any, by: str | int) -> Coloured:
    """Return shades, hover texts and the colour scale of all tokens, by one of MEASURES or by a feature's number."""
    counted = reading.counted.tolist()
    if isinstance(by, int):
        values = reading.values_of(by).tolist()
        shown = [value if counts else 0.0 for value, counts in zip(values, counted, strict=True)]
        scale = legend(min(*shown, 0.0), max(*shown, 0.0)) if any(shown) else ""
        return Coloured(signed_shades(shown), [number(value) if value else "0" for value in values], scale)
    values = _measure(reading, by)
    known = reading.is_text.tolist() if by == "surprise" else counted
    shades, low, high = level_shades(values, known)
    unit = " nats" if by == "surprise" else ""
    tips = [f"{MEASURES[by][0]} {number(value)}{unit}" for value in values]
    return Coloured(shades, tips, level_legend(low, high))


def about(reading: Any) -> list[tuple[str, str, str]]:
    """Return the whole text in numbers, as (name, value, explanation)."""
    counted = reading.counted
    surprise = reading.surprise[reading.is_text].double()
    mean = surprise[~surprise.isnan()].mean().item()
    l0 = reading.l0[counted].double().mean().item()
    rows = [
        ("tokens", f"{int(reading.is_text.sum()):,}", "Tokens of the text."),
        ("features", f"{len(reading.latents()):,}", "Different features that fire on it."),
        ("L0", number(l0), "Mean number of features that fire on a token."),
        (
            "FVU",
            number(reading.text_fvu),
            "Share of the activations' variance that the SAE does not explain.",
        ),
        (
            "perplexity",
            number(exp(mean)),
            "The language model's perplexity on this text: e to the mean surprise.",
        ),
    ]
    windows = int(reading.windows[-1]) + 1
    if windows > 1:
        why = "Pieces of the text that the model reads separately, cut as the run's store was."
        rows.insert(1, ("windows", f"{windows:,}", why))
    return rows


def token_numbers(reading: Any, place: int) -> list[tuple[str, str, str]]:
    """Return one token in numbers, as (name, value, explanation), the last the probability of the token that follows it."""
    surprise, following = float(reading.surprise[place]), float(reading.log_probs[place])
    return [
        ("L0", f"{int(reading.l0[place])}", MEASURES["l0"][1]),
        ("activation", number(float(reading.total[place])), MEASURES["total"][1]),
        ("error", number(float(reading.fvu[place])), MEASURES["error"][1]),
        ("surprise", number(surprise), MEASURES["surprise"][1]),
        (
            "next token",
            percent(None if isnan(following) else exp(following)),
            "Probability that the model gave the token that follows.",
        ),
    ]


def token_name(reading: Any, place: int) -> str:
    """Return what to call a token: its text, and for a part of a character the character and which of its tokens this is.

    A token's name alone, such as <0xE2>, would say nothing."""
    if not reading.names[place].startswith("<0x"):
        return reading.names[place]
    first = place
    while first > 0 and not reading.tokens[first]:
        first -= 1
    last = place
    while last + 1 < len(reading.tokens) and not reading.tokens[last + 1] and reading.is_text[last + 1]:
        last += 1
    if first == last:
        return reading.names[place]
    return f"{reading.tokens[first]} ({place - first + 1} of {last - first + 1})"


def followed_by(reading: Any, place: int) -> str:
    """Return a remark about the next token of the text."""
    later = reading.is_text[place + 1 :].nonzero()
    if not len(later):
        return "the last token: nothing follows, so it has no effect on a next token"
    return f"followed by “{token_name(reading, place + 1 + int(later[0]))}”"


def at(
    reading: Any, place: int, by: str, densest: float, describe: Describe | None
) -> tuple[list[Line], int, int]:
    """Return lines for the features that fire on a token, ranked, the number hidden as dense, and the number of all.

    A feature is hidden if its density is above `densest`; at most MOST lines are returned."""
    firings = reading.at(place, by)
    shown = [firing for firing in firings if not _dense(reading, firing.latent, densest)]
    lines = [
        Line(f.latent, f.value, f.effect, f.rarity, _density(reading, f.latent), *_named(describe, f.latent))
        for f in shown[:MOST]
    ]
    return lines, len(firings) - len(shown), len(firings)


def over(reading: Any, by: str, densest: float, describe: Describe | None) -> tuple[list[Line], int, int]:
    """Return lines for the features that fire on the whole text, the number hidden as dense, and the number of all."""
    peaks = reading.latents(by)
    shown = [peak for peak in peaks if not _dense(reading, peak.latent, densest)]
    lines = [
        Line(
            p.latent,
            p.peak,
            p.effect,
            p.rarity,
            _density(reading, p.latent),
            *_named(describe, p.latent),
            p.tokens,
            p.position,
        )
        for p in shown[:MOST]
    ]
    return lines, len(peaks) - len(shown), len(peaks)


def rankings(reading: Any) -> list[str]:
    """Return the RANKINGS that the reading has the numbers for."""
    available = {"value": True, "rarity": reading.rarity is not None, "effect": reading.effects is not None}
    return [name for name in RANKINGS if available[name]]


def hidden(count: int, densest: float) -> str:
    """Return a remark about features hidden as dense; empty if there are none."""
    return f"{count:,} hidden: denser than {percent(densest)}" if count else ""


def listed_at(lines: Sequence[Line], count: int, of: int, densest: float) -> str:
    """Return a remark about the table of one token: how many of its features are listed, where the table does not hold all."""
    parts = [f"{len(lines):,} of {of:,} features" if len(lines) + count < of else "", hidden(count, densest)]
    return " · ".join(part for part in parts if part)


def listed(lines: Sequence[Line], count: int, of: int, densest: float) -> str:
    """Return a remark about a table over the whole text."""
    many, press = f"{len(lines):,} of {of:,} features", "press a disc to colour the text by its feature"
    return " · ".join(part for part in (many, hidden(count, densest), press) if part)


def _measure(reading: Any, by: str) -> list[float]:
    measures = {"total": reading.total, "l0": reading.l0, "error": reading.fvu, "surprise": reading.surprise}
    return [float(value) for value in measures[by].tolist()]


def _density(reading: Any, latent: int) -> float | None:
    return None if reading.density is None else float(reading.density[latent])


def _dense(reading: Any, latent: int, densest: float) -> bool:
    return reading.density is not None and float(reading.density[latent]) > densest


def _named(describe: Describe | None, latent: int) -> tuple[str, list[str]]:
    """Return a feature's label and the tokens it fires most on; both are empty without a features folder."""
    label, tokens = describe(latent) if describe else ("", [])
    return label, list(dict.fromkeys(tokens))[:4]
