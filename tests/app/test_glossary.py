"""The glossary in the app: every term used there is in it, the package's copy is the documentation's, and pages show what it says."""

from pathlib import Path

import pytest
import streamlit as st

import app
from app import widgets
from sae.report import glossary
from tests.app.pages import source

DOCS = Path(app.__file__).parent.parent / "docs" / "glossary.md"


def test_the_package_has_the_glossary_of_the_documentation():
    assert glossary.FILE.read_bytes() == DOCS.read_bytes(), f"cp docs/glossary.md {glossary.FILE}"
    entries = glossary.entries()
    assert len(entries) == sum(line.startswith("**") for line in DOCS.read_text().splitlines())
    assert not [text for text in entries.values() if "](" in text or "\n" in text or len(text) < 20]


@pytest.mark.parametrize("header", glossary.TERMS)
def test_every_term_that_the_app_explains_is_in_the_glossary(header: str):
    assert header == header.lower() and glossary.explained(header.capitalize())


def test_headings_are_explained_where_one_points_at_them(show):
    html = source(show("features", run="toy"))
    assert f'title="{glossary.entries()["L0"]}">L0</span>' in html
    assert "Mean value</h2>" in html.replace("<small>where they fire</small>", "")
    assert f'title="{glossary.entries()["Co-firing"]}">Fires together with' in source(
        show("feature", run="toy", feature="7")
    )


def test_columns_without_a_help_have_the_glossary_s_and_others_keep_theirs():
    own = st.column_config.NumberColumn(format="%.2f", help="mine")
    assert widgets._explained("density", own) == own
    assert widgets._explained("density", st.column_config.NumberColumn(format="%.2f"))[
        "help"
    ] == glossary.explained("density")
    assert widgets._explained("label", "label")["help"] == glossary.entries()["Label"]
    assert widgets._explained("x", st.column_config.Column("L0"))["help"] == glossary.entries()["L0"]
    assert widgets._explained("anything", None)["help"] is None
