"""Controls of the Features page: filters, the overview to look at, brushes, marks on the map, rows to compare."""

from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn, TextColumn

from app import widgets
from app.features.state import MEANING, SEARCHES, VIEWS, WORDS, Filters
from app.session import jobs
from sae.report import numbers, render
from sae.report.features import COUNTED
from sae.report.search import NEAREST

HISTOGRAMS, BY_CLUSTER = VIEWS[:2]
LOOKS = dict(zip(VIEWS, ("Histograms", "Map by cluster", "Map by density"), strict=True))
ANY = ""  # the choice of all kinds of rules
PLACEHOLDERS = {
    WORDS: "a token, a label, a rule, a text in examples",
    MEANING: "a subject, as in months of the year",
}
SEARCHED = (
    "**words**: features that have the text in a token, label, rule or example, the likeliest first. **meaning**: the "
    f"{NEAREST} features whose words or label mean what is most like it, by word embeddings; the other filters still apply."
)

COLUMNS = {
    "feature": ButtonColumn(
        width=72,
        alignment="right",
        key=widgets.OPEN,
        help="The feature's number in the SAE. Click it to open its page.",
    ),
    "label": TextColumn(width="medium", help="The label that somebody gave it on its page."),
    "explanation": TextColumn(
        width="medium",
        help="The rule that best says where it fires, from sae explain. Nobody has checked it.",
    ),
    "note": TextColumn(width="medium", help="What the list says about it."),
    "F1": NumberColumn(
        format="%.2f",
        help="How well the rule says where it fires, on text that did not choose it. 1: exactly there.",
    ),
    "found in": TextColumn(
        width=150,
        help="Where the words were found. Features whose label or strongest token they are come first, then those with more "
        "examples that have them.",
    ),
    "meaning": NumberColumn(
        format="%.2f",
        help="How well its words fit the search, by word embeddings and WordNet: halfway between the median and the mean of the upper half, 0.8 at most. Or the cosine of its label: 1 means the same.",
    ),
    "words": ListColumn(width="medium", help="The commonest words at the peaks of its examples."),
    "passage": TextColumn(
        width="medium", help="The first example that has the words, which stand between ▸ and ◂."
    ),
    "density": NumberColumn(format="%.3g %%", help="Share of the tokens read on which it fires."),
    "firings": NumberColumn(format="localized", help="Number of tokens on which it fires."),
    "max": NumberColumn(format="%.3g", help="Its largest value on any token."),
    "min": NumberColumn(format="%.3g", help="Its most negative value on any token."),
    "mean": NumberColumn(format="%.3g", help="Mean of its values over the tokens on which it fires."),
    "positive": NumberColumn(format="%.0f %%", help="Share of its firings whose value is above 0."),
    "fires most on": ListColumn(
        width="medium", help="The tokens at the peaks of its five strongest examples."
    ),
    "raises": ListColumn(
        width=300,
        help="The next tokens that it makes likelier, by the lens that predicts best (`sae lens`), or by the logit lens where none was measured.",
    ),
    "enc·dec": NumberColumn(format="%.2f", help="Cosine between its encoder and decoder directions."),
    "nearest": NumberColumn(format="%.2f", help="Decoder cosine with the nearest other feature."),
    "stability": NumberColumn(
        format="%.2f", help="Mean over the other seeds of its largest |cosine| with a decoder row there."
    ),
    "first fired": NumberColumn(format="localized", help="Index of the first token on which it fired."),
}


def filters(
    tally: dict[str, int],
    kinds: Mapping[str, Sequence[int]],
    densities: Sequence[float],
    chosen: Filters,
    change: Callable[..., None],
) -> None:
    """Show the filters: words to look for, a state, a kind of rule, and a range of densities.

    `tally` counts the features in each state; `kinds` has the features with each kind of rule, empty where there are no rules."""
    with st.container(horizontal=True, gap="large", key="filters"):
        widgets.box(
            st.text_input,
            "Find",
            chosen.find,
            lambda value: change(find=value),
            "features find",
            placeholder=PLACEHOLDERS[chosen.by],
            type="search",
            live=True,
            width=300,
        )
        widgets.box(
            st.segmented_control,
            "Search by",
            chosen.by,
            lambda value: change(by=value),
            "features by",
            options=SEARCHES,
            required=True,
            help=SEARCHED,
        )
        widgets.box(
            st.segmented_control,
            "State",
            chosen.state
            if chosen.state in tally
            else "all",  # another run may know neither stability nor rules
            lambda value: change(state=value),
            "features state",
            options=list(tally),
            required=True,
            format_func=lambda name: f"{name} {tally[name]:,}",
            help=COUNTED,
        )
        if kinds:
            _rules(kinds, chosen, change)
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


def _rules(kinds: Mapping[str, Sequence[int]], chosen: Filters, change: Callable[..., None]) -> None:
    """Show the choice of a kind of rule."""
    widgets.box(
        st.selectbox,
        "Rule",
        chosen.rule if chosen.rule in kinds else ANY,
        lambda value: change(rule=value),
        "features rule",
        options=[ANY, *kinds],
        format_func=lambda kind: render.visible(f"{kind} {len(kinds[kind]):,}" if kind else "any"),
        help="The kind of rule that says where a feature fires (sae explain). One of several conditions counts with each of their kinds.",
        width=170,
    )


def words_first(name: str, remark: str, job: jobs.Job[None] | None, start: Callable[[], None]) -> None:
    """Show the step that has to come before a search by meaning: a button with its name and a remark, or how far its job is."""
    if job:
        widgets.job(job)
    if not job or not job.running:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(name, icon=":material/play_arrow:", on_click=start)
            st.caption(render.markdown(remark))


def nothing(chosen: Filters, change: Callable[..., None]) -> None:
    """Show that no feature meets the filters, and offer to look for what the words mean where they were looked for as they are."""
    widgets.empty(
        "No features match", "Change the search, the state, the rule, the densities, the list or the brushes."
    )
    if chosen.words.strip():
        st.button("Search by meaning", icon=":material/search:", on_click=change, kwargs={"by": MEANING})


def look(mapped: bool, chosen: Filters, change: Callable[..., None]) -> str:
    """Let the visitor choose an overview and return it: histograms, or the map in one of its colourings if there is a map."""
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
    """Show what is brushed and marked, with a button that clears it; nothing when `texts` is empty."""
    if texts:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(render.markdown(f"Selected: {'; '.join(texts)}"), width="content")
            st.button("Clear", icon=":material/close:", key="clear marks", on_click=clear)


def brush(
    figure: go.Figure,
    alt: str,
    key: str,
    ends: Callable[[float, float], tuple[float, float]],
    select: Callable[[tuple[float, float]], None],
) -> None:
    """Show a figure whose x axis can be brushed. `ends` turns the brushed interval into the range passed to `select`."""

    def brushed() -> None:
        boxes = st.session_state[key].selection.box
        if boxes:
            select(ends(*map(float, boxes[0]["x"])))

    st.plotly_chart(figure, key=key, config=widgets.QUIET, alt=alt, on_select=brushed, selection_mode="box")


def points(
    figure: go.Figure,
    alt: str,
    key: str,
    marked: Callable[[list[int]], None],
    clicked: Callable[[int], None],
) -> None:
    """Show a figure of points, each with a number as customdata. A box or a lasso marks several, a click takes one."""

    def select() -> None:
        selection = st.session_state[key].selection
        numbers = [int(point["customdata"]) for point in selection.points]
        if selection.box or selection.lasso:
            marked(numbers)
        elif numbers:
            clicked(numbers[0])

    config = {"displaylogo": False, "modeBarButtonsToRemove": ["toImage", "autoScale2d"], "scrollZoom": True}
    st.caption(
        "Click a point to open its feature. Box and Lasso, in the corner of the map, select the features inside."
    )
    st.plotly_chart(figure, key=key, config=config, alt=alt, on_select=select)


def markable_rows(table: pa.Table, marked: Sequence[int], mark: Callable[[list[int]], None]) -> None:
    """Show the table of features, whose rows can be ticked. `marked` rows are ticked at first; `mark` receives every change."""
    # The key depends on the rows: the ticks of a table do not fit another choice of rows
    key = f"rows {crc32(table[0].combine_chunks().buffers()[-1])}"
    st.session_state[key] = {"selection": {"rows": list(marked), "columns": [], "cells": []}}
    widgets.long_table(
        table,
        COLUMNS,
        key=key,
        selection_mode="multi-row",
        on_select=lambda: mark(list(st.session_state[key].selection.rows)),
    )
