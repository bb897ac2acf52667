"""A text read by an SAE, as HTML: coloured tokens to press, and the table of features that fire.

What can be pressed carries `data-do` (token, open, colour) and `data-to` (a number); the app acts on it, a notebook does
not. `sae.report.text` decides what the Your text page shows with these parts."""

from collections.abc import Iterable, Sequence
from math import isnan
from typing import NamedTuple

from sae.report.numbers import number, percent, signed
from sae.report.render import LEGEND_STEPS, chips, colour_scale, escaped, feature_link, named, shade
from sae.report.token_strips import Token, inline

HELP = {
    "value": "The feature's value on this token.",
    "peak": "The feature's value of largest size on this text; press to go there.",
    "tokens": "The number of tokens of this text on which it fires.",
    "effect": "Effect on the logit of the next token against the mean logit, over the direct path, final norm frozen.",
    "rarity": "Size relative to its observed maximum, times -ln of its density: high for what is strong and rare.",
    "density": "Share of the tokens its run was measured on, on which it fires.",
}


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
    head = "".join(f'<th{_kind(name in numbers)} title="{HELP.get(name, "")}">{name}</th>' for name in heads)
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
        f'<td><a href="{feature_link(run, latent)}" target="_self" data-do="open" data-to="{latent}">{latent}</a></td>',
    ]


def _kind(is_number: bool) -> str:
    return ' class="n"' if is_number else ""
