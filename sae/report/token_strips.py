"""Tokens as HTML, coloured by value. A character that is split over several tokens is shown whole."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, zip_longest
from typing import NamedTuple, Protocol

import regex

from sae.report.numbers import number
from sae.report.render import escaped, shade


class Window(Protocol):
    """A piece of text in which a feature fires, such as a `sae.features.folder.Example`."""

    @property
    def document(self) -> int:
        """The document's number."""
        ...

    @property
    def position(self) -> int:
        """The peak's index in that document, in tokens."""
        ...

    @property
    def peak(self) -> int:
        """The peak's index in the window."""
        ...

    @property
    def tokens(self) -> Sequence[str]:
        """The text of each token."""
        ...

    @property
    def values(self) -> Sequence[float]:
        """The feature's value on each token."""
        ...


class Token(NamedTuple):
    """One token as it is shown."""

    text: str
    """Its text; empty where it holds only the rest of a character that an earlier token begins."""
    classes: str = "t"
    """Classes of its element."""
    attributes: str = ""
    """Further attributes of its element: HTML that begins with a space, such as ` data-tip="0.5"`."""


class _Part(NamedTuple):
    """A piece of text that begins and ends between two characters, and the tokens it lies in."""

    text: str
    tokens: range


def inline(tokens: Sequence[Token], breaks: bool = True) -> str:
    """Return all tokens as HTML in order, one element each; with `breaks`, lines break where the text's lines do.

    Where tokens share a character that readers see as one (a grapheme cluster of Unicode TR 29, such as an emoji of
    several code points), the character is shown whole, with the tokens' colours side by side over it. A space before a
    word stays outside the word's colour, so that no coloured end is left behind where a line breaks."""
    html = []
    parts = list(_parts([token.text for token in tokens]))
    for part, following in zip_longest(parts, parts[1:]):
        word = part.text.lstrip(" ") or part.text
        html += [
            part.text[: len(part.text) - len(word)],
            _element(word, [tokens[place] for place in part.tokens]),
        ]
        if breaks and part.text.endswith("\n") and following and not following.text.startswith("\n"):
            html.append("<br>")
    return "".join(html)


def valued(text: str, value: float, scale: float, peak: bool = False, tip: str | None = None) -> Token:
    """Return a token coloured by its value: warm above 0, cool below, none at 0. Hovering tells `tip` or else the value."""
    classes = "t" + ("" if not value else " up" if value > 0 else " down") + (" peak" if peak else "")
    colour = f' style="--a:{shade(value, scale):.3f}"' if value else ""
    hover = number(float(value)) if tip is None and value else tip
    return Token(text, classes, colour + (f' data-tip="{escaped(hover)}"' if hover is not None else ""))


def token_strip(window: Window, scale: float, around: int | None = None) -> str:
    """Return `around` tokens about the window's peak as one paragraph. All of them (None) keep the text's line breaks."""
    part = shown_part(window, around)
    whole = part.stop - part.start == len(window.tokens)
    tokens = [
        valued(window.tokens[place], window.values[place], scale, place == window.peak)
        for place in range(part.start, part.stop)
    ]
    cut = ("" if part.start == 0 else " cut-start") + ("" if part.stop == len(window.tokens) else " cut-end")
    return f'<p class="strip{cut}" dir="auto">{inline(tokens, breaks=whole)}</p>'


def crop(length: int, peak: int, around: int | None) -> slice:
    """Return which `around` of a window's tokens to show, five before the peak for every three after it; None shows all."""
    if around is None or around >= length:
        return slice(0, length)
    start = min(max(peak - 5 * around // 8, 0), length - around)
    return slice(start, start + around)


def fold(windows: Iterable[Window], around: int | None) -> list[tuple[Window, int]]:
    """Return the windows that look different when cropped, in order, each with the number of windows that look like it."""
    seen: dict[tuple[str, ...], list[Window]] = {}
    for window in windows:
        shown = tuple(window.tokens[shown_part(window, around)])
        seen.setdefault(shown, []).append(window)
    return [(same[0], len(same)) for same in seen.values()]


def once(windows: Iterable[Window]) -> list[Window]:
    """Return the windows in order, of those that begin at the same token of the same document only the first."""
    return list(
        {(window.document, window.position - window.peak): window for window in [*windows][::-1]}.values()
    )[::-1]


def examples(
    windows: Iterable[Window], scale: float, around: int | None = None, most: int | None = None
) -> str:
    """Return a list of windows, each with its value at the peak, its tokens and its place in the text.

    A window that is cropped unfolds to all of its tokens, with the text's line breaks, when it is clicked. Windows that look
    alike become one line, and of several peaks of one window only the first is shown; at most `most` lines are shown (None: all)."""
    lines = []
    for window, count in fold(once(windows), around)[:most]:
        times = (
            f'<span class="times" title="{count} windows look the same">×{count}</span>' if count > 1 else ""
        )
        place = f"doc {window.document:,} · {window.position:,}"
        where = f"document {window.document:,}, token {window.position:,}"
        lines.append(
            f'<li><span class="value">{number(float(window.values[window.peak]))}{times}</span>'
            f'{_widened(window, scale, around)}<span class="where" title="{where}">{place}</span></li>'
        )
    return f'<ul class="sae examples">{"".join(lines)}</ul>'


def _widened(window: Window, scale: float, around: int | None) -> str:
    """Return a window's tokens about its peak, which unfold to the whole window where that is more."""
    strip = token_strip(window, scale, around)
    part = shown_part(window, around)
    if part.stop - part.start == len(window.tokens):
        return strip
    summary = f'<summary title="Click to see the whole window">{strip}</summary>'
    return f'<details class="whole">{summary}{token_strip(window, scale)}</details>'


def shown_part(window: Window, around: int | None) -> slice:
    """Return the tokens to show: those of `crop`, and more where that would cut through a character."""
    texts = window.tokens
    part = crop(len(texts), window.peak, around)
    start, stop = part.start, part.stop
    while 0 < start < len(texts) and not texts[start]:
        start -= 1
    while stop < len(texts) and not texts[stop]:
        stop += 1
    return slice(start, stop)


def _element(text: str, tokens: Sequence[Token]) -> str:
    if len(tokens) == 1:
        classes = tokens[0].classes if text else f"{tokens[0].classes} empty"
        return f'<span class="{classes}"{tokens[0].attributes}>{escaped(text)}</span>'
    over = "".join(f'<span class="{token.classes}"{token.attributes}></span>' for token in tokens)
    return f'<span class="char"><span>{escaped(text)}</span><span class="over">{over}</span></span>'


def _parts(texts: Sequence[str]) -> Iterator[_Part]:
    """Cut the text between two tokens wherever that does not split a character."""
    joined = "".join(texts)
    ends = list(accumulate(map(len, texts)))
    between = (
        {0, len(joined)} if joined.isascii() else {match.end() for match in regex.finditer(r"\X", joined)}
    )
    first = start = 0
    for place, end in enumerate(ends):
        goes_on = place + 1 < len(texts) and not texts[place + 1] and joined[start : ends[place + 1]]
        if goes_on or not (joined.isascii() or end in between or end == start):
            continue
        yield _Part(joined[start:end], range(first, place + 1))
        first, start = place + 1, end
