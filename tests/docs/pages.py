"""Parse the Markdown pages that users read: their blocks of code, links, tables and quotes."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", *DOCS]
PROGRAMS = ("sae", "make", "torchrun", "python", "pip", "uv")
JOINS = ("&&", ";", "|")


class Block(NamedTuple):
    """A block of code."""

    page: str
    line: int
    language: str
    """sh, python or text."""
    mark: str
    """The word after the language: `parsed` or `compiled` for code that cannot run in the tests, `fails` for a command that must fail."""
    text: str


@cache
def tokens(page: str) -> list[Token]:
    """Return the tokens of a page, as markdown-it parses it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page in order. The language of indented blocks, which cannot name it, is guessed."""
    listed = []
    for token in tokens(page):
        if token.type == "fence":
            language, _, mark = token.info.partition(" ")
        elif token.type == "code_block":
            language, mark = guessed(token.content), ""
        else:
            continue
        listed.append(Block(page, (token.map or [0])[0] + 1, language, mark, token.content))
    return listed


def guessed(text: str) -> str:
    """Guess the language of a block from its first word."""
    first = text.split(maxsplit=1)[0]
    return "sh" if first in PROGRAMS else "python" if first in ("import", "from") else "text"


def commands(text: str) -> Iterator[list[str]]:
    """Yield every command of a shell block or inline span as words, without `…` and without settings of environment variables."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, JOINS[0]]:
            if word not in JOINS:
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield [word for word in words if word != "…"]
            words = []


def inline(page: str, kind: str) -> list[Token]:
    """Return the tokens of one kind (code_inline, link_open, image) in the paragraphs, headings and table cells of a page."""
    children = (token.children or [] for token in tokens(page) if token.type == "inline")
    return [child for some in children for child in some if child.type == kind]


def spans(page: str) -> list[str]:
    """Return the inline code of a page."""
    return [token.content for token in inline(page, "code_inline")]


def targets(page: str) -> list[str]:
    """Return the targets of all links and pictures of a page."""
    links = [str(token.attrs["href"]) for token in inline(page, "link_open")]
    return links + [str(token.attrs["src"]) for token in inline(page, "image")]


def quotes(page: str) -> list[str]:
    """Return the block quotes of a page."""
    depth, quoted = 0, []
    for token in tokens(page):
        depth += {"blockquote_open": 1, "blockquote_close": -1}.get(token.type, 0)
        if depth and token.type == "inline":
            quoted.append(token.content)
    return quoted


def table(page: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this name, row by row. Raises AssertionError if the page lacks it."""
    rows: list[list[str]] = []
    inside = False
    for before, token in zip(tokens(page), tokens(page)[1:], strict=False):
        if before.type == "th_open" and not inside:
            inside = token.content == first
        if inside and before.type == "tr_open":
            rows.append([])
        if inside and before.type == "td_open":
            rows[-1].append(token.content)
        if inside and token.type == "table_close":
            return [row for row in rows if row]
    raise AssertionError(f"{page} lacks a table whose first column is {first!r}")
