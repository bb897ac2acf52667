"""State and controls of the Runs page: one run or several, the table to choose them in, the plot of quality against sparsity."""

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.column_config import NumberColumn, TextColumn

from app import widgets
from app.session import address, choices, runs
from sae.evaluation.measures import MEASURES
from sae.report.numbers import DASH

WITH = "with"  # the URL's parameter
COLUMNS = {
    "name": TextColumn("run", width="medium"),
    "features": NumberColumn(format="localized", help="Number of features of the SAE."),
    "k": NumberColumn(help="Number of features that fire on a token, where the architecture sets it."),
    "FVU": NumberColumn(format="%.3f", help=MEASURES["fvu"].help),
    "CE recovered": NumberColumn(format="%.1f %%", help=MEASURES["recovered_zero"].help),
    "L0": NumberColumn(format="%.1f", help=MEASURES["l0"].help),
    "dead": NumberColumn(
        format="%.1f %%",
        help="Share of features that fire on no token of the evaluation. Features and Dead latents count on other text, so theirs may differ.",
    ),
    "steps": NumberColumn(format="localized"),
}


def chosen() -> list[str] | None:
    """Return the runs side by side, in the order of the list of runs; None when the page shows a single run.

    The page says so where the URL names a run that does not exist, such as one that has been deleted since."""
    if WITH not in st.query_params:
        return None
    asked = [name for name in st.query_params.get_all(WITH) if name]
    every = runs.by_name()
    gone = [repr(name) for name in asked if name not in every]
    if gone:
        widgets.warnings([f"There is no run {' and no run '.join(gone)} in {runs.folder()}, or no longer."])
    return [name for name in every if name in asked]


def choose(names: list[str]) -> None:
    """Show these runs side by side."""
    st.query_params[WITH] = names or [""]


def end() -> None:
    """Show a single run again."""
    st.query_params.pop(WITH, None)


def show_run(name: str) -> None:
    """Go to another run, and keep the choices of the page's controls."""
    address.show_run(name, address.with_choices("runs"))


def together_switch(on: bool) -> None:
    """Show a switch between several runs side by side and a single run."""

    def switched() -> None:
        if st.session_state["together"]:
            choose([])
        else:
            end()

    st.session_state["together"] = on
    st.toggle("Several side by side", key="together", on_change=switched)


def pick_row(table: pa.Table, names: Sequence[str], shown: str) -> None:
    """Show the table of runs with the mark before the run `shown`; another mark goes to its run. `names` are the rows' names."""

    def picked() -> None:
        row: int = st.session_state["rows"].selection.rows[0]
        show_run(names[row])

    st.session_state["rows"] = {"selection": {"rows": [names.index(shown)], "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=COLUMNS,
        hide_index=True,
        placeholder=DASH,
        key="rows",
        selection_mode="single-row-required",
        on_select=picked,
    )


def pick_rows(table: pa.Table, names: Sequence[str], shown: Sequence[str]) -> None:
    """Show the table of runs with marks before the runs side by side, any number of them. `names` are the rows' names."""

    def picked() -> None:
        rows: list[int] = st.session_state["several rows"].selection.rows
        choose([names[row] for row in rows])

    rows = [names.index(name) for name in shown]
    st.session_state["several rows"] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=COLUMNS,
        hide_index=True,
        placeholder=DASH,
        key="several rows",
        selection_mode="multi-row",
        on_select=picked,
    )


def height_chooser(heights: Mapping[str, str]) -> str:
    """Return the measure to plot against L0 that the visitor chose."""
    return choices.control(
        st.segmented_control,
        "Against L0",
        "runs",
        "height",
        list(heights),
        next(iter(heights)),
        key="height",
        required=True,
        format_func=lambda name: heights[name].split(" (")[0],
        label_visibility="collapsed",
    )


def pressed_point(figure: go.Figure, alt: str, key: str, go_to: Callable[[str], None]) -> None:
    """Show a figure whose points have names as `customdata`; a click on a point goes to its name."""

    def picked() -> None:
        points = st.session_state[key].selection.points
        if points:
            go_to(points[0]["customdata"])

    st.plotly_chart(figure, key=key, config=widgets.QUIET, alt=alt, on_select=picked, selection_mode="points")
