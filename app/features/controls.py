"""What a visitor sets on the pages about features: filters, brushes, marks on the map, labels, own text."""

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st

from app import widgets
from app.features.state import VIEWS, Filters
from sae.report import numbers, render

LONGEST_LABEL, LONGEST_NOTE = 200, 4000  # characters
HISTOGRAMS, BY_CLUSTER = VIEWS[:2]
LOOKS = dict(zip(VIEWS, ("Histograms", "Map by cluster", "Map by density"), strict=True))


def filters(
    tally: dict[str, int], densities: Sequence[float], chosen: Filters, change: Callable[..., None]
) -> None:
    """Words to look for, which state of features, and between which densities."""
    with st.container(horizontal=True, gap="large", key="filters"):
        widgets.box(
            st.text_input,
            "Find",
            chosen.find,
            lambda value: change(find=value),
            "features find",
            placeholder="a token, a label, a text in examples",
            type="search",
            live=True,
            width=300,
        )
        widgets.box(
            st.segmented_control,
            "State",
            chosen.state,
            lambda value: change(state=value),
            "features state",
            options=list(tally),
            required=True,
            format_func=lambda name: f"{name} {tally[name]:,}",
        )
        widgets.box(
            st.select_slider,
            "Density",
            chosen.density,
            lambda value: change(density=value),
            "features density",
            options=densities,
            value=(densities[0], densities[-1]),
            format_func=numbers.percent,
        )


def look(mapped: bool, chosen: Filters, change: Callable[..., None]) -> str:
    """How to look at all features: by histograms, or by the map if there is one, in either colouring."""
    options = list(LOOKS) if mapped else [HISTOGRAMS]
    shown = chosen.view if chosen.view in options else HISTOGRAMS
    with st.container(key="looks"):
        widgets.box(
            st.segmented_control,
            "Overview",
            shown,
            lambda value: change(view=value),
            "features view",
            options=options,
            required=True,
            format_func=LOOKS.__getitem__,
            label_visibility="collapsed",
        )
    return shown


def marks(texts: Sequence[str], clear: Callable[[], None]) -> None:
    """What is brushed and marked, with a button that takes it away; nothing when there is nothing."""
    if texts:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(render.markdown(f"Kept: {'; '.join(texts)}"), width="content")
            st.button("Clear", icon=":material/close:", key="clear marks", on_click=clear)


def brush(
    figure: go.Figure,
    about: str,
    key: str,
    ends: Callable[[float, float], tuple[float, float]],
    keep: Callable[[tuple[float, float]], None],
) -> None:
    """A figure whose x axis can be brushed; `keep` hears what `ends` makes of the stretch."""

    def select() -> None:
        boxes = st.session_state[key].selection.box
        if boxes:
            keep(ends(*map(float, boxes[0]["x"])))

    st.plotly_chart(figure, key=key, config=widgets.QUIET, alt=about, on_select=select, selection_mode="box")


def points(
    figure: go.Figure,
    about: str,
    key: str,
    marked: Callable[[list[int]], None],
    clicked: Callable[[int], None],
) -> None:
    """A figure of points with a number as customdata each: a box or a lasso marks several, a click is one alone."""

    def select() -> None:
        found = st.session_state[key].selection
        numbers = [int(point["customdata"]) for point in found.points]
        if found.box or found.lasso:
            marked(numbers)
        elif numbers:
            clicked(numbers[0])

    config = {"displaylogo": False, "modeBarButtonsToRemove": ["toImage", "autoScale2d"], "scrollZoom": True}
    st.caption(
        "Click a point to open its feature. Box or Lasso, at the corner of the map, keeps the features inside."
    )
    st.plotly_chart(figure, key=key, config=config, alt=about, on_select=select)


def markable_rows(
    table: pa.Table, columns: dict[str, Any], marked: Sequence[int], mark: Callable[[list[int]], None]
) -> None:
    """A long table whose rows can be marked: `marked` are so at the start, `mark` hears of every change."""
    key = f"rows {crc32(table[0].combine_chunks().buffers()[-1])}"  # of this very choice of rows
    st.session_state[key] = {"selection": {"rows": list(marked), "columns": [], "cells": []}}
    widgets.long_table(
        table,
        columns,
        key=key,
        selection_mode="multi-row",
        on_select=lambda: mark(list(st.session_state[key].selection.rows)),
    )


def label_editor(label: str, note: str, where: str, key: str, save: Callable[[str, str], None]) -> None:
    """A button that opens a form for a label and a note; `where` is where they go."""
    with (
        st.popover("Label", icon=":material/label:"),
        st.form(f"form {key}", border=False, enter_to_submit=True),
    ):
        first = st.text_input(
            "Label", label, key=f"label {key}", max_chars=LONGEST_LABEL, placeholder="what it stands for"
        )
        second = st.text_area(
            "Note", note, key=f"note {key}", max_chars=LONGEST_NOTE, placeholder="anything worth keeping"
        )
        st.caption(render.markdown(f"Kept in {where}"))
        if st.form_submit_button("Save", type="primary"):
            save(first, second)
            st.rerun()


def label(html: str) -> None:
    """The label and note as HTML, if there are any."""
    if html:
        st.html(html)


def text_to_try(key: str, about: str, go: Callable[[str], None]) -> None:
    """A box for one's own text, which `go` gets when the button is pressed."""
    with st.form(f"form {key}", border=False):
        text = st.text_area("Your text", key=key, placeholder=about, label_visibility="collapsed", height=90)
        if st.form_submit_button("Try", icon=":material/play_arrow:"):
            go(text)
            st.rerun()


def ask(label: str, about: str, go: Callable[[], None]) -> None:
    """A button that begins long work, with a remark beside."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(label, icon=":material/play_arrow:", on_click=go)
        st.caption(render.markdown(about))


def file_button(label: str, content: Callable[[], str], name: str, about: str) -> None:
    """A button that saves an HTML file, made when it is pressed."""
    st.download_button(
        label, content, name, "text/html", icon=":material/download:", on_click="ignore", help=about
    )
