"""The pages agree with the code: settings and their defaults, methods, metrics, quoted errors, links."""

import ast
import dataclasses
import re
from functools import cache

import pytest

from sae.architectures import ARCHITECTURES
from sae.cli.evaluate import COSTS
from sae.evaluation.measures import MEASURES
from sae.evaluation.recovery import Recovery
from sae.steering.measure import Measures
from tests.docs.pages import DOCS, PAGES, ROOT, quotes, spans, table, targets

INDEX = "docs/methods/README.md"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_methods_page_has_its_settings_and_their_defaults(name: str):
    rows = table(f"docs/methods/{name}.md", "field")
    shown = {
        field.strip("`"): eval(default.strip("`")) for field, default, _ in rows
    }  # an expression, such as 1 / 32
    real = {field.name: field.default for field in dataclasses.fields(ARCHITECTURES[name].config)}
    assert shown == real
    assert list(shown) == list(real)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_methods_page_names_its_paper_its_code_and_shows_a_picture(name: str):
    page = f"docs/methods/{name}.md"
    assert any("arxiv.org/abs/" in link or "transformer-circuits.pub" in link for link in targets(page))
    assert f"sae/architectures/{name}.py" in spans(page)
    assert f"{name}.svg" in targets(page)
    assert (ROOT / "docs/methods" / f"{name}.svg").stat().st_size < 100_000


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_methods_page_gives_the_advice_of_its_help(name: str):
    advice = ARCHITECTURES[name].config.advice
    page = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    assert advice
    assert advice.replace("`", "") in page.replace("`", "")


def test_the_index_leads_to_every_method():
    assert {f"{name}.md" for name in ARCHITECTURES} <= set(targets(INDEX))
    assert len(table(INDEX, "method")) == len(ARCHITECTURES)


def test_every_number_that_is_measured_is_defined():
    named = {word for span in spans("docs/metrics.md") for word in re.findall(r"\w+", span)}
    assert named >= {*MEASURES, *COSTS, *Recovery._fields, *Measures._fields}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in targets(page):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$|^\*\*(.*)\*\*", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title, _ in titles}


def test_every_page_is_reached_from_the_others():
    here = {
        ((ROOT / page).parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in targets(page)
    }
    assert {page for page in DOCS if (ROOT / page) not in here} <= {"docs/README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_a_page_names_exists(page: str):
    for span in spans(page):
        if re.fullmatch(r"(activations|sae|app|benchmarks|examples|notebooks|tests|docs)/[\w/.-]+", span):
            assert (ROOT / span).exists(), f"{page}: {span}"


def test_the_files_of_the_fast_tests_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    fast = makefile.partition("FAST := ")[2].partition("\n\n")[0]
    named = re.findall(r"(?<!addprefix )(tests/[\w/]+\.py)", fast)
    for prefix, names in re.findall(r"addprefix (\S+?),([^)]*)\)", fast):
        named += [prefix + name for name in names.split() if name != "\\"]
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


@cache
def strings() -> str:
    """Return every string of the code, one a line; of f-strings only the fixed parts."""
    found = []
    for package in ("activations", "sae", "app"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(" ".join(text.split()) for text in found)


@pytest.mark.parametrize("line", quotes("docs/troubleshooting.md"), ids=lambda line: line[:40])
def test_a_quoted_error_is_one_that_the_code_raises(line: str):
    pieces = [piece.strip() for piece in line.split("…") if len(piece.strip()) > 2]
    assert pieces
    for piece in pieces:
        assert piece in strings(), piece


def test_the_pictures_are_the_methods():
    pictures = {path.stem for path in (ROOT / "docs/methods").glob("*.svg")}
    assert pictures == set(ARCHITECTURES)
