"""Controls of the Dead latents page: the kind and cause to list, bars that choose a cause, a table with details."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st

from app import widgets
from sae.report import render

HEIGHT = 420  # of the table, in pixels
CAUSE, KIND = "dead cause", "dead kind"  # keys of the controls


def kind(tally: dict[str, int]) -> str:
    """Return the kind of latents to list: the visitor's choice, or else the first kind that has any. `tally` counts them."""
    first = next((name for name, count in tally.items() if count), next(iter(tally)))
    return st.segmented_control(
        "Show",
        list(tally),
        default=first,
        required=True,
        key=KIND,
        format_func=lambda name: f"{name} {tally[name]:,}",
    )


def cause(names: Sequence[str]) -> str | None:
    """Return the one cause to list, or None for all. A cause chosen in another run that this run lacks is forgotten."""
    if st.session_state.get(CAUSE) not in names:
        st.session_state[CAUSE] = None
    return st.pills("Cause", names, key=CAUSE, format_func=render.markdown) if names else None


def chosen_cause() -> str | None:
    """Return the one cause that is listed, before its control is drawn; None for all."""
    return st.session_state.get(CAUSE)


def bar_chooser(figure: go.Figure, about: str, key: str) -> None:
    """Show bars of causes. A click on one lists only this cause, another click lists all."""

    def clicked() -> None:
        points = st.session_state[key].selection.points
        st.session_state[CAUSE] = points[0]["customdata"][0] if points else None

    st.plotly_chart(
        figure, key=key, config=widgets.QUIET, alt=about, on_select=clicked, selection_mode="points"
    )


def detailed_rows(table: pa.Table, columns: dict[str, Any]) -> int:
    """Show a table and return the row whose details are shown: the chosen one, at first the first."""
    key = f"dead rows {st.session_state.get(KIND)} {st.session_state.get(CAUSE)}"
    shown = widgets.long_table(
        table, columns, HEIGHT, key=key, on_select="rerun", selection_mode="single-row"
    )
    return next(iter(shown.selection.rows), 0)
