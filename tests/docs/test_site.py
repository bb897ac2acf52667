"""The site that `make docs` builds: without a warning, without anything from elsewhere, with all that the Markdown has."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import activations
import sae
from sae.cli.main import COMMANDS
from tests.docs.pages import DOCS, ROOT, tokens

ROOT_PAGES = ("FORMAT.md", "LOG.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = [*(page.removeprefix("docs/") for page in DOCS), *ROOT_PAGES]
FETCHED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Elements(HTMLParser):
    """What is within a page's article, by tag, and what the page fetches."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.inside = self.inside or tag == "article"
        self.ids.add(named.get("id") or "")
        if self.inside:
            self.tags.append(tag)
        if tag in FETCHED and (named.get("rel") != "canonical"):
            self.fetched.append(named.get(FETCHED[tag]) or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning, such as a link that leads nowhere, ends the build."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def built(site: Path, page: str) -> Elements:
    """A page of the site, by its Markdown file."""
    return Elements(site / re.sub(r"README\.md$", "index.md", page).replace(".md", ".html"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_the_site_has_the_tables_lists_and_code_of_its_markdown(page: str, site: Path):
    """The site's Markdown differs from the repository's: it wants an empty line before a list, for one."""
    read = [token.type for token in tokens(page if page in ROOT_PAGES else f"docs/{page}")]
    shown = built(site, page).tags
    assert shown.count("table") == read.count("table_open")
    assert shown.count("tr") == read.count("tr_open")
    assert shown.count("li") == read.count("list_item_open")
    if not page.startswith("reference/"):
        assert shown.count("pre") == read.count("fence") + read.count("code_block")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fetches_nothing_from_elsewhere(page: str, site: Path):
    fetched = built(site, page).fetched
    assert fetched
    assert not [address for address in fetched if re.match(r"(https?:)?//", address)]


def test_styles_and_scripts_fetch_nothing_from_elsewhere(site: Path):
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_public_name_is_in_the_reference(site: Path):
    for package in (activations, sae):
        name = package.__name__
        ids = built(site, f"reference/{name}.md").ids
        assert {f"{name}.{part}" for part in package.__all__} <= ids


def test_the_help_of_every_command_is_in_the_reference(site: Path):
    assert {f"sae-{command}" for command in COMMANDS} <= built(site, "reference/commands.md").ids


def test_pipes_in_the_code_of_tables_are_shown_without_their_backslash(site: Path):
    assert "show|verify|label" in html.unescape(
        (site / "reference" / "commands.html").read_text(encoding="utf-8")
    )


def test_the_site_can_be_searched(site: Path):
    assert "hook_resid_post" in (site / "search" / "search_index.json").read_text(encoding="utf-8")
