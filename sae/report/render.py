"""The HTML that all results are shown with. Every text from a model, a tokenizer or a folder is escaped here."""

import html
import re
import string
from collections.abc import Iterable, Sequence
from math import log10
from pathlib import Path
from urllib.parse import urlencode

from sae.report.numbers import fixed, number

PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x0A: "↵", 0x09: "⇥", 0x7F: "␡"}
LEGEND_STEPS = 24  # cells of a colour scale
ADDRESS = re.compile(r"https?(?=://)|www(?=\.)|@", re.IGNORECASE)
PIECE = re.compile(r"(<0x[0-9A-F]{2}>)+")  # the name of a token that is no text by itself
PIECE_TITLE = ' title="a token that is a piece of a character, by its bytes"'
# What a spreadsheet takes for a formula; after apostrophes, a text that was made safe, or looks like one
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})


def visible(text: str) -> str:
    """Return the text with control characters as pictures, such as ↵ for a line break. It is not escaped yet."""
    return text.translate(PICTURES).encode("utf-8", "replace").decode("utf-8")


def escaped(text: str) -> str:
    """Return the text as HTML that shows it and does nothing else, in an element or a quoted attribute."""
    return html.escape(visible(text))


def markdown(text: str) -> str:
    """Return the text as Markdown that shows it and does nothing else; Streamlit's own directives are disarmed too.

    GitHub's Markdown turns addresses into links even where they are escaped, so a character of no width splits them."""
    return ADDRESS.sub("\\g<0>\u2060", visible(text)).translate(MARKDOWN)


def cell(value: object) -> object:
    """Return a value as the cell of a CSV file: a text with an apostrophe before it where a spreadsheet would take it for a
    formula, anything else as it is."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def from_cell(cell: str) -> str:
    """Inverse of `cell`."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def shade(value: float, scale: float) -> float:
    """Return how strongly to colour a value: 0 for the value 0 alone, up to 1 where |value| is `scale` or more.

    The rule is logarithmic, so that weak values still differ from none: a tenth of the scale gives 0.31."""
    if not value or not scale:
        return 0.0
    ratio = min(abs(value) / scale, 1.0)
    return 0.05 + 0.95 * log10(1 + 9 * ratio)


def legend(low: float, high: float) -> str:
    """Return a colour scale from `low` (0 or the most negative value) to `high`, coloured by `shade` as tokens are."""
    scale = max(abs(low), abs(high))
    values = [low + (high - low) * (step + 0.5) / LEGEND_STEPS for step in range(LEGEND_STEPS)]
    return colour_scale(low, high, [shade(value, scale) * (1 if value > 0 else -1) for value in values])


def colour_scale(low: float, high: float, shades: Iterable[float]) -> str:
    """Return a row of cells between two numbers; a shade below 0 is cool, another warm."""
    cells = "".join(
        f'<i class="{"up" if alpha > 0 else "down"}" style="--a:{abs(alpha):.3f}"></i>' for alpha in shades
    )
    return (
        f'<div class="sae legend"><span>{number(low)}</span><b>{cells}</b><span>{number(high)}</span></div>'
    )


def logits(title: str, tokens: Sequence[str], by: Sequence[float]) -> str:
    """Return tokens with how far each one's logit moves, as bars relative to the largest."""
    scale = max((abs(value) for value in by), default=0.0)
    lines = [
        f'<tr><td class="token"><span class="chip">{escaped(text)}</span></td>'
        f'<td class="bar {"up" if value > 0 else "down"}" style="--w:{abs(value) / scale if scale else 0:.3f}">'
        f"<i></i><span>{number(value)}</span></td></tr>"
        for text, value in zip(tokens, by, strict=True)
    ]
    return f'<table class="sae logits"><caption>{escaped(title)}</caption>{"".join(lines)}</table>'


def neighbours(rows: Iterable[tuple[int, float, str, Sequence[str]]], run: str | None) -> str:
    """Return a table of features with decoder cosine, label and peak tokens. Each links to its page unless `run` is None."""
    lines = [
        f"<tr><td>{feature_anchor(run, latent)}</td>"
        f'<td class="bar up" style="--w:{max(cosine, 0.0):.3f}"><i></i><span>{fixed(cosine, 2)}</span></td>'
        f'<td class="token">{named(label)}{chips(tokens)}</td></tr>'
        for latent, cosine, label, tokens in rows
    ]
    head = (
        '<tr><th scope="col">feature</th><th scope="col">cosine</th><th scope="col">fires most on</th></tr>'
    )
    return f'<table class="sae neighbours">{head}{"".join(lines)}</table>'


def chip(text: str) -> str:
    """Return a token's text in a frame. Pointing at a token that is a piece of a character tells that it is one; of a token of
    spaces, in which there would be nothing to see, each is drawn."""
    shown = text.replace(" ", "␣") if text.isspace() else text
    return f'<span class="chip"{PIECE_TITLE if PIECE.fullmatch(text) else ""}>{escaped(shown)}</span>'


def chips(tokens: Iterable[str]) -> str:
    """Return token texts side by side, each once, as `chip` does."""
    return " ".join(map(chip, dict.fromkeys(tokens)))


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, one pair per line."""
    lines = (f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="sae facts">{"".join(lines)}</dl>'


def estimates(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Return a table of measures from (label, explanation, value, interval)."""
    lines = [
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td><td class="n">{escaped(value)}</td>'
        f'<td class="n dim">{escaped(interval)}</td></tr>'
        for label, why, value, interval in rows
    ]
    head = '<tr><th scope="col">measure</th><th scope="col" class="n">value</th><th scope="col" class="n">95 % interval</th></tr>'
    return f'<table class="sae estimates">{head}{"".join(lines)}</table>'


def columns(heads: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Return a table of rows (label, explanation, a value for each head). All of it is plain text."""
    head = "".join(f'<th scope="col" class="n">{escaped(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td>'
        + "".join(f'<td class="n">{escaped(value)}</td>' for value in values)
        + "</tr>"
        for label, why, values in rows
    )
    return wide(f'<table class="sae estimates"><tr><td></td>{head}</tr>{body}</table>')


def feature_link(run: str, latent: int) -> str:
    """Return the address of a feature's page relative to any other page, safe in an attribute."""
    return html.escape("feature?" + urlencode({"run": run, "feature": latent}))


def framed(content: str) -> str:
    """Return HTML that brings its own style, for places outside the app."""
    return f"<style>{style()}</style>{content}"


def style() -> str:
    """Return the style sheet of all HTML made here."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole HTML page around these parts, with its style inside and nothing to fetch or run."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<title>{escaped(title)}</title><style>{style()}</style></head><body class="sae-document">'
        f"{''.join(parts)}</body></html>\n"
    )


def feature_anchor(run: str | None, latent: int) -> str:
    """Return a feature's number as a link to its page, or as plain text where there are no pages (`run` is None)."""
    return (
        f"{latent}" if run is None else f'<a href="{feature_link(run, latent)}" target="_self">{latent}</a>'
    )


def named(label: str) -> str:
    """Return a label to stand before other text; empty for an empty label."""
    return f'<b class="label">{escaped(label)}</b> ' if label else ""


def section(title: str, remark: str, level: int = 2, why: str | None = None) -> str:
    """Return the heading of a part of a page with a remark beside it: of level 2, or 3 below a heading of level 2.

    `why` is shown where one points at the title."""
    small = f"<small>{escaped(remark)}</small>" if remark else ""
    return f'<h{level} class="sae">{term(title, why)}{small}</h{level}>'


def term(text: str, why: str | None) -> str:
    """Return a text that tells what it means where one points at it; the text alone where `why` says nothing."""
    return f'<span class="term" title="{escaped(why)}">{escaped(text)}</span>' if why else escaped(text)


def wide(table: str) -> str:
    """Return a table that scrolls sideways where it is wider than its place, by keyboard too."""
    return f'<div class="sae sides" role="group" aria-label="table" tabindex="0">{table}</div>'


def pair(left: str, right: str) -> str:
    """Return two pieces of HTML side by side."""
    return f'<div class="sae pair"><div>{left}</div><div>{right}</div></div>'


def figures(numbers: Iterable[tuple[str, str, str]]) -> str:
    """Return key numbers in a row, from (name, value, explanation)."""
    cells = (
        f'<div title="{escaped(why)}"><span>{escaped(name)}</span><b>{escaped(value)}</b></div>'
        for name, value, why in numbers
    )
    return f'<div class="sae figures">{"".join(cells)}</div>'
