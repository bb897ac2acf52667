"""Controls of the Runs page: one run or several, the table to choose them in, the plot of quality against sparsity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.column_config import NumberColumn, TextColumn

from app import widgets
from sae.evaluation.measures import MEASURES
from sae.report.numbers import DASH

COLUMNS = {
    "name": TextColumn("run", width="medium"),
    "features": NumberColumn(format="localized", help="Number of features of the SAE."),
    "k": NumberColumn(help="Number of features that fire on a token, where the architecture sets it."),
    "FVU": NumberColumn(format="%.3f", help=MEASURES["fvu"].help),
    "CE recovered": NumberColumn(format="%.1f %%", help=MEASURES["recovered_zero"].help),
    "L0": NumberColumn(format="%.1f", help=MEASURES["l0"].help),
    "dead": NumberColumn(format="%.1f %%", help="Share of features that fire on no held-out token."),
    "steps": NumberColumn(format="localized"),
}


def together_switch(on: bool, begin: Callable[[list[str]], None], end: Callable[[], None]) -> None:
    """Show a switch between several runs side by side and a single run."""

    def switched() -> None:
        if st.session_state["together"]:
            begin([])
        else:
            end()

    st.session_state["together"] = on
    st.toggle("Several side by side", key="together", on_change=switched)


def pick_row(
    table: pa.Table, columns: dict[str, Any], names: Sequence[str], chosen: str, choose: Callable[[str], None]
) -> None:
    """Show a table in which one row is chosen, by the mark before it. `names` are the rows' names."""

    def picked() -> None:
        row: int = st.session_state["rows"].selection.rows[0]
        choose(names[row])

    st.session_state["rows"] = {"selection": {"rows": [names.index(chosen)], "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=columns,
        hide_index=True,
        placeholder=DASH,
        key="rows",
        selection_mode="single-row-required",
        on_select=picked,
    )


def pick_rows(
    table: pa.Table,
    columns: dict[str, Any],
    names: Sequence[str],
    chosen: Sequence[str],
    choose: Callable[[list[str]], None],
) -> None:
    """Show a table in which any number of rows can be chosen. `names` are the rows' names."""

    def picked() -> None:
        rows: list[int] = st.session_state["several rows"].selection.rows
        choose([names[row] for row in rows])

    rows = [names.index(name) for name in chosen]
    st.session_state["several rows"] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=columns,
        hide_index=True,
        placeholder=DASH,
        key="several rows",
        selection_mode="multi-row",
        on_select=picked,
    )


def height_chooser(heights: Mapping[str, str]) -> str:
    """Return the measure to plot against L0 that the visitor chose. Other pages do not reset it."""
    return st.segmented_control(
        "Against L0",
        list(heights),
        default=next(iter(heights)),
        required=True,
        key="height",
        format_func=lambda name: heights[name].split(" (")[0],
        persist_state="session",
        label_visibility="collapsed",
    )


def pressed_point(figure: go.Figure, alt: str, key: str, choose: Callable[[str], None]) -> None:
    """Show a figure whose points have names as `customdata`; a click on a point chooses its name."""

    def picked() -> None:
        points = st.session_state[key].selection.points
        if points:
            choose(points[0]["customdata"])

    st.plotly_chart(figure, key=key, config=widgets.QUIET, alt=alt, on_select=picked, selection_mode="points")
