"""A steered text as HTML: tokens coloured by how much likelier steering makes them, and measures before and after."""

from collections.abc import Iterable, Sequence

from sae.report.render import escaped
from sae.report.token_strips import Token, inline, valued


def changed_text(prompt: Sequence[str], tokens: Iterable[tuple[str, float, str]], scale: float) -> str:
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
    head = '<tr><th>measure</th><th class="n">unsteered</th><th class="n">steered</th></tr>'
    return f'<table class="sae estimates">{head}{"".join(lines)}</table>'


def texts(rows: Iterable[tuple[str, str]]) -> str:
    """Return texts one below the other, each with the strength it was written at."""
    lines = (
        f'<tr><td class="n">{escaped(label)}</td><td><span class="strip">{escaped(text)}</span></td></tr>'
        for label, text in rows
    )
    return f'<table class="sae estimates"><tr><th class="n">strength</th><th>text</th></tr>{"".join(lines)}</table>'
