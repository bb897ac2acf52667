"""Controls of the Dead latents page: which kind and cause to list, bars that choose a cause, a table with details."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st

from app import widgets
from sae.report import render

HEIGHT = 420  # pixels of a long table
CAUSE, KIND = "dead cause", "dead kind"


def kind(tally: dict[str, int]) -> str:
    """Which kind of latents to list: with how many of each; the first that has any unless one was chosen."""
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
    """Which of the causes there are to list alone, or None for all; what was chosen in another run and is not here is forgotten."""
    if st.session_state.get(CAUSE) not in names:
        st.session_state[CAUSE] = None
    return st.pills("Cause", names, key=CAUSE, format_func=render.markdown) if names else None


def chosen_cause() -> str | None:
    """The cause that is listed alone, before its control is drawn."""
    return st.session_state.get(CAUSE)


def bar_chooser(figure: go.Figure, about: str, key: str) -> None:
    """Bars of causes; a click on one lists it alone, another click all."""

    def clicked() -> None:
        points = st.session_state[key].selection.points
        st.session_state[CAUSE] = points[0]["customdata"][0] if points else None

    config = {"displayModeBar": False}
    st.plotly_chart(figure, key=key, config=config, alt=about, on_select=clicked, selection_mode="points")


def detailed_rows(table: pa.Table, columns: dict[str, Any]) -> int:
    """A table with a row to look at more closely: the number of the one that is chosen, the first at first."""
    key = f"dead rows {st.session_state.get(KIND)} {st.session_state.get(CAUSE)}"
    shown = widgets.long_table(
        table, columns, HEIGHT, key=key, on_select="rerun", selection_mode="single-row"
    )
    return next(iter(shown.selection.rows), 0)
