"""Texts before and after a change: nothing they say is markup, colours follow the sign and size of each change."""

from hypothesis import given
from hypothesis import strategies as st

from sae.report import render, steering
from tests.sae.test_render import read, relaxed, shown, texts

amounts = st.floats(-20, 20, width=32)
rows = st.lists(st.tuples(texts, amounts, texts), max_size=8)


@relaxed
@given(st.lists(texts, max_size=4), rows)
def test_no_text_becomes_markup(prompt, tokens):
    page = read(steering.changed_text(prompt, tokens, 5.0))
    assert page.text == shown([*prompt, *(text for text, _, _ in tokens)])
    assert [one["data-tip"] for one in page.of_class("t")] == [render.visible(tip) for _, _, tip in tokens]


@relaxed
@given(rows)
def test_colours_follow_the_sign_and_size_of_the_change(tokens):
    for (_, change, _), shown_as in zip(
        tokens, read(steering.changed_text([], tokens, 5.0)).of_class("t"), strict=True
    ):
        kinds = (shown_as["class"] or "").split()
        assert ("up" in kinds, "down" in kinds) == (change > 0, change < 0)
        assert (shown_as.get("style") or "--a:0") == (
            f"--a:{render.shade(change, 5.0):.3f}" if change else "--a:0"
        )


def test_lines_break_where_the_text_s_do():
    page = read(steering.changed_text(["a\n"], [("b\n", 0.0, ""), ("c", 1.0, "")], 1.0))
    assert sum(tag == "br" for tag, _ in page.tags) == 2


@relaxed
@given(st.lists(st.tuples(texts, texts, texts, texts), max_size=4))
def test_tables_show_their_texts_and_nothing_else(cells):
    page = read(steering.before_and_after(cells))
    assert page.text == "measureunsteeredsteered" + shown(
        [part for label, _, *both in cells for part in (label, *both)]
    )
    page = read(steering.texts([cell[:2] for cell in cells]))
    assert page.text == "strengthtext" + shown([part for cell in cells for part in cell[:2]])
