"""The pages that users read, as data: their blocks of code, their links, their tables, their quotes."""

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
    """What is said beside the language: `parsed` or `compiled` of what cannot be run here, `fails` of what is to."""
    text: str


@cache
def tokens(page: str) -> list[Token]:
    """A page as markdown-it reads it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order. Of indented ones, which cannot say it, the language is guessed."""
    found = []
    for token in tokens(page):
        if token.type == "fence":
            language, _, mark = token.info.partition(" ")
        elif token.type == "code_block":
            language, mark = guessed(token.content), ""
        else:
            continue
        found.append(Block(page, (token.map or [0])[0] + 1, language, mark, token.content))
    return found


def guessed(text: str) -> str:
    """The language of a block that does not say it."""
    first = text.split(maxsplit=1)[0]
    return "sh" if first in PROGRAMS else "python" if first in ("import", "from") else "text"


def commands(text: str) -> Iterator[list[str]]:
    """Every command of a block of sh or of an inline span, as words; `…` and settings of the environment left out."""
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
    """Tokens within the paragraphs, headings and cells of a page: code_inline, link_open, image."""
    children = (token.children or [] for token in tokens(page) if token.type == "inline")
    return [child for some in children for child in some if child.type == kind]


def spans(page: str) -> list[str]:
    """Code within sentences."""
    return [token.content for token in inline(page, "code_inline")]


def targets(page: str) -> list[str]:
    """Where links lead and pictures lie."""
    links = [str(token.attrs["href"]) for token in inline(page, "link_open")]
    return links + [str(token.attrs["src"]) for token in inline(page, "image")]


def quotes(page: str) -> list[str]:
    """The block quotes of a page."""
    depth, found = 0, []
    for token in tokens(page):
        depth += {"blockquote_open": 1, "blockquote_close": -1}.get(token.type, 0)
        if depth and token.type == "inline":
            found.append(token.content)
    return found


def table(page: str, first: str) -> list[list[str]]:
    """Rows of the table whose first column has this name: each cell's text."""
    rows: list[list[str]] = []
    found = False
    for before, token in zip(tokens(page), tokens(page)[1:], strict=False):
        if before.type == "th_open" and not found:
            found = token.content == first
        if found and before.type == "tr_open":
            rows.append([])
        if found and before.type == "td_open":
            rows[-1].append(token.content)
        if found and token.type == "table_close":
            return [row for row in rows if row]
    raise AssertionError(f"{page} has no table that begins with {first!r}")
