"""Pure: tokens and values -> HTML. Every text that comes from a model, a tokenizer or a folder is escaped here."""

import html
import re
import string
from collections.abc import Iterable, Sequence
from math import log10
from pathlib import Path
from urllib.parse import urlencode

PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x0A: "↵", 0x09: "⇥", 0x7F: "␡"}
LEGEND_STEPS = 24
ADDRESS = re.compile(r"https?(?=://)|www(?=\.)|@", re.IGNORECASE)
MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})


def visible(text: str) -> str:
    """The text with control characters as pictures, so that ↵ stands for a line's end; not yet escaped."""
    return text.translate(PICTURES).encode("utf-8", "replace").decode("utf-8")


def escaped(text: str) -> str:
    """The text as HTML that shows it and does nothing else, in an element or a quoted attribute."""
    return html.escape(visible(text))


def markdown(text: str) -> str:
    """The text as Markdown that shows it and does nothing else, Streamlit's own directives included.

    Addresses, which GitHub's Markdown turns into links however they are escaped, are parted by a sign of no width."""
    return ADDRESS.sub("\\g<0>\u2060", visible(text)).translate(MARKDOWN)


def number(value: float | None) -> str:
    """Three significant digits; from 1000 on all digits before the point, in groups. A dash for None."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def percent(share: float) -> str:
    """A share of 1 as per cent; when it is tiny, as one in so many."""
    if 0 < share < 1e-5:
        return f"1 in {1 / share:,.0f}"
    return f"{100 * share:.3g} %"


def shade(value: float, scale: float) -> float:
    """How strongly to colour a value, from 0 (only for 0) to 1 (from |value| = scale on).

    Logarithmic, so that weak values can still be told from none: 0.1 of the scale gives 0.31."""
    if not value or not scale:
        return 0.0
    ratio = min(abs(value) / scale, 1.0)
    return 0.05 + 0.95 * log10(1 + 9 * ratio)


def legend(low: float, high: float) -> str:
    """The colour scale from `low` (0, or the most negative value) to `high`, by the same rule as the tokens."""
    scale = max(abs(low), abs(high))
    steps = [low + (high - low) * (step + 0.5) / LEGEND_STEPS for step in range(LEGEND_STEPS)]
    cells = "".join(
        f'<i class="{"up" if v > 0 else "down"}" style="--a:{shade(v, scale):.3f}"></i>' for v in steps
    )
    return (
        f'<div class="sae legend"><span>{number(low)}</span><b>{cells}</b><span>{number(high)}</span></div>'
    )


def logits(title: str, tokens: Sequence[str], by: Sequence[float]) -> str:
    """Tokens with how far each logit moves, as bars against the largest."""
    scale = max((abs(value) for value in by), default=0.0)
    lines = [
        f'<tr><td class="token"><span class="chip">{escaped(text)}</span></td>'
        f'<td class="bar {"up" if value > 0 else "down"}" style="--w:{abs(value) / scale if scale else 0:.3f}">'
        f"<i></i><span>{number(value)}</span></td></tr>"
        for text, value in zip(tokens, by, strict=True)
    ]
    return f'<table class="sae logits"><caption>{escaped(title)}</caption>{"".join(lines)}</table>'


def neighbours(rows: Iterable[tuple[int, float, str, Sequence[str]]], run: str | None) -> str:
    """Features with their decoder cosine, label and peak tokens, each a link to its page; without `run` no links."""
    lines = [
        f"<tr><td>{feature_anchor(run, latent)}</td>"
        f'<td class="bar up" style="--w:{max(cosine, 0.0):.3f}"><i></i><span>{cosine:.2f}</span></td>'
        f'<td class="token">{named(label)}{chips(tokens)}</td></tr>'
        for latent, cosine, label, tokens in rows
    ]
    head = "<tr><th>feature</th><th>cosine</th><th>fires most on</th></tr>"
    return f'<table class="sae neighbours">{head}{"".join(lines)}</table>'


def chips(tokens: Iterable[str]) -> str:
    """Token texts side by side, repeats left out."""
    return " ".join(f'<span class="chip">{escaped(text)}</span>' for text in dict.fromkeys(tokens))


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    lines = (f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="sae facts">{"".join(lines)}</dl>'


def estimates(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Measures as (label, explanation, value, interval)."""
    lines = [
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td><td class="n">{escaped(value)}</td>'
        f'<td class="n dim">{escaped(interval)}</td></tr>'
        for label, why, value, interval in rows
    ]
    head = '<tr><th>measure</th><th class="n">value</th><th class="n">95 % interval</th></tr>'
    return f'<table class="sae estimates">{head}{"".join(lines)}</table>'


def feature_link(run: str, latent: int) -> str:
    """Address of a feature's page, relative to any other page; safe in an attribute."""
    return html.escape("feature?" + urlencode({"run": run, "feature": latent}))


def framed(content: str) -> str:
    """HTML that brings its own style, to be shown outside the app."""
    return f"<style>{style()}</style>{content}"


def style() -> str:
    """The style sheet of all HTML made here."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def feature_anchor(run: str | None, latent: int) -> str:
    """A feature's number as a link to its page; where there are no pages (`run` is None), as it is."""
    return (
        f"{latent}" if run is None else f'<a href="{feature_link(run, latent)}" target="_self">{latent}</a>'
    )


def named(label: str) -> str:
    """A label before other text; nothing when there is none."""
    return f'<b class="label">{escaped(label)}</b> ' if label else ""


def section(title: str, about: str) -> str:
    """A heading with a remark beside it."""
    remark = f"<small>{escaped(about)}</small>" if about else ""
    return f'<h3 class="sae">{escaped(title)}{remark}</h3>'


def pair(left: str, right: str) -> str:
    """Two pieces of HTML side by side."""
    return f'<div class="sae pair"><div>{left}</div><div>{right}</div></div>'


def figures(found: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers in a row, as (name, value, explanation)."""
    cells = (
        f'<div title="{escaped(why)}"><span>{escaped(name)}</span><b>{escaped(value)}</b></div>'
        for name, value, why in found
    )
    return f'<div class="sae figures">{"".join(cells)}</div>'
