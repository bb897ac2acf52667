"""Pure: a text as an SAE reads it -> HTML: tokens one can press, coloured; tables of the features that fire.

What can be pressed carries `data-do` (token, open, colour) and `data-to` (a number); the app listens, a notebook does not."""

from collections.abc import Iterable, Sequence
from math import isnan
from typing import NamedTuple

from sae.report.render import LEGEND_STEPS, chips, escaped, feature_link, named, number, percent, shade
from sae.report.token_strips import Token, inline

DASH = "–"


class Line(NamedTuple):
    """One feature in a table; None where something is not known."""

    latent: int
    value: float
    effect: float | None
    rarity: float | None
    density: float | None
    label: str
    """What somebody called it; empty for nothing."""
    tokens: Sequence[str]
    """What it fires most on, as far as that is known."""
    times: int | None = None
    """On how many tokens of the text it fires; of a whole text."""
    position: int | None = None
    """Where its value is from; of a whole text."""


def signed_shades(values: Sequence[float]) -> list[float]:
    """A feature's values as shades from -1 to 1, logarithmic, against the one of largest size."""
    scale = max(map(abs, values), default=0.0)
    return [shade(value, scale) * (1 if value > 0 else -1) for value in values]


def level_shades(values: Sequence[float], counted: Sequence[bool]) -> tuple[list[float], float, float]:
    """Shades from 0 to 1 between the least and the largest value that counts, and these two.

    Others, and what is not a number, have shade 0. All equal: no shade, so that nothing stands out."""
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
    """All tokens as one paragraph, each coloured by its shade (below 0: cool), pressed to choose it; BOS is faint.

    A space before a word stays outside the colour. Lines break where the text's do."""
    shown = []
    for place, (text, tip) in enumerate(zip(tokens, tips, strict=True)):
        classes = "t up" if shades[place] >= 0 else "t down"
        classes += (" peak" if place == chosen else "") + ("" if is_text[place] else " bos")
        pressed = f'style="--a:{abs(shades[place]):.3f}" data-tip="{escaped(tip)}" data-do="token" data-to="{place}"'
        shown.append(Token(text, classes, f" {pressed}"))
    return f'<div class="sae reading"><p class="strip" dir="auto">{inline(shown)}</p></div>'


def level_legend(low: float, high: float) -> str:
    """The colour scale of `level_shades`."""
    cells = "".join(
        f'<i class="up" style="--a:{(step + 0.5) / LEGEND_STEPS:.3f}"></i>' for step in range(LEGEND_STEPS)
    )
    return (
        f'<div class="sae legend"><span>{number(low)}</span><b>{cells}</b><span>{number(high)}</span></div>'
    )


def firings(lines: Iterable[Line], run: str | None, coloured: str | int | None = None) -> str:
    """Features with value, effect, rarity and density; press a number to open it, a disc to colour the text by it.

    Lines of a whole text also say on how many tokens, and their value is the peak, pressed to go there. Columns
    that nothing fills are left out. Without a run there is no page to open and nothing to press."""
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


HELP = {
    "value": "What it does on this token.",
    "peak": "Its value of largest size on this text; press to go there.",
    "tokens": "On how many tokens of this text it fires.",
    "effect": "On the logit of the next token against the mean logit, over the direct path, final norm frozen.",
    "rarity": "Size against its observed maximum, times -ln of its density: high for what is strong and seldom.",
    "density": "Share of the tokens its run was measured on, on which it fires.",
}


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
        "effect": DASH if line.effect is None else _signed(line.effect),
        "rarity": number(line.rarity),
        "density": DASH if line.density is None else percent(line.density),
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
        f'title="colour the text by feature {latent}" aria-label="colour by {latent}"></button></td>',
        f'<td><a href="{feature_link(run, latent)}" target="_self" data-do="open" data-to="{latent}">{latent}</a></td>',
    ]


def _kind(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)
