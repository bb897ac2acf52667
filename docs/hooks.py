"""What the site adds to the Markdown of docs/: the pages at the repository's root, and the help of every command."""

import html
import os
import posixpath
import re
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from textwrap import dedent

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("FORMAT.md", "LOG.md", "CHANGELOG.md", "CONTRIBUTING.md")
HELP_PAGE = "reference/commands.md"
# Of commands with commands of their own, those whose help is printed too. The methods of `train` and `synthetic` differ in
# their --arch options alone, which the methods' pages list.
PARTS = {
    "plan": ("harvest", "train topk", "features"),
    "store": ("show", "verify", "label"),
    "train": ("topk",),
    "synthetic": ("topk", "all", "all structured"),
    "export": ("html", "saelens", "delphi", "neuronpedia"),
}
COLUMNS = "100"
FENCE = re.compile(r"^(\s*```\w+) (?:parsed|compiled|fails)$", re.MULTILINE)
PIPED = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")  # code with an escaped pipe, as a table's cell needs it
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie at the root of the repository."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what the repository shows into what the site shows: marks of blocks go, links lead to pages of the site."""
    path = page.file.src_uri
    if path == HELP_PAGE:
        markdown += f"\n{command_help()}"
    source = path if path in ROOT_PAGES else f"docs/{path}"
    markdown = FENCE.sub(r"\1", markdown)
    markdown = PIPED.sub(lambda code: f"<code>{_without_escapes(code[1])}</code>", markdown)
    return LINK.sub(lambda link: _on_site(link, source, path, files), markdown)


def _without_escapes(code: str) -> str:
    """Return code of a table's cell as HTML. The site's Markdown, unlike the repository's, would show the backslash before a pipe."""
    return html.escape(code).replace("\\|", "&#124;")


def _on_site(link: re.Match[str], source: str, path: str, files: Files) -> str:
    """Point a link at the page of the site that shows its target. Links to files that the site lacks become plain text."""
    image, text, target, heading = link.groups()
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    on_site = in_repository.removeprefix("docs/")
    shown = in_repository in ROOT_PAGES or in_repository.startswith("docs/")
    if not shown or files.get_file_from_path(on_site) is None:
        return text
    return f"{image}[{text}]({posixpath.relpath(on_site, posixpath.dirname(path) or '.')}{heading or ''})"


def command_help() -> str:
    """Markdown with what `sae COMMAND --help` prints, a heading a command."""
    from sae.cli import main

    sections = []
    for name, command in main.COMMANDS.items():
        for words in ((), *(part.split() for part in PARTS.get(name, ()))):
            title = f"{'###' if words else '##'} sae {' '.join((name, *words))}"
            printed = _printed(command.run, [*words, "--help"])
            sections.append(f"{title}\n\n```text\n{printed}\n```\n")
    return "\n".join(sections)


def _printed(run: Callable[[list[str]], int], args: list[str]) -> str:
    """Return what a command prints, on lines of COLUMNS characters."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with redirect_stdout(StringIO()) as out, suppress(SystemExit):
            run(args)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return dedent("\n".join(line.rstrip() for line in out.getvalue().strip().splitlines()))
