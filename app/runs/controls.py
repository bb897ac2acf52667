"""Controls of the Runs page: one run or several, and the Pareto plot one can press."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st


def together_switch(on: bool, begin: Callable[[list[str]], None], end: Callable[[], None]) -> None:
    """Look at several runs side by side, or at one."""

    def switched() -> None:
        if st.session_state["together"]:
            begin([])
        else:
            end()

    st.session_state["together"] = on
    st.toggle("Several side by side", key="together", on_change=switched)


def pick_rows(
    table: pa.Table,
    columns: dict[str, Any],
    names: Sequence[str],
    chosen: Sequence[str],
    choose: Callable[[list[str]], None],
) -> None:
    """A table of which any number of rows are chosen; `names` are the rows'."""

    def picked() -> None:
        rows: list[int] = st.session_state["several rows"].selection.rows
        choose([names[row] for row in rows])

    rows = [names.index(name) for name in chosen]
    st.session_state["several rows"] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=columns,
        hide_index=True,
        placeholder="–",
        key="several rows",
        selection_mode="multi-row",
        on_select=picked,
    )


def height_chooser(heights: Mapping[str, str]) -> str:
    """What stands against L0; kept while pages change."""
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


def pressed_point(figure: go.Figure, about: str, key: str, choose: Callable[[str], None]) -> None:
    """A figure whose points carry names (`customdata`); a click on one chooses it."""

    def picked() -> None:
        points = st.session_state[key].selection.points
        if points:
            choose(points[0]["customdata"])

    config = {"displayModeBar": False}
    st.plotly_chart(figure, key=key, config=config, alt=about, on_select=picked, selection_mode="points")
