"""Controls of the Compare page: the other run, the measure of similarity, the kind of features, the table's columns."""

from collections.abc import Callable, Mapping, Sequence

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from app import widgets
from sae.report import render

COLUMNS = {
    "feature": ButtonColumn(
        width=80, alignment="left", key=widgets.OPEN, help="Click it to see both features side by side."
    ),
    "similarity": NumberColumn(format="%.3f", help="Similarity to the nearest feature of the other run."),
    "nearest": NumberColumn(help="The nearest feature of the other run."),
    "density": NumberColumn(format="%.3g %%", help="Share of tokens on which the feature fires."),
    "fires on": ListColumn(width="medium"),
    "nearest density": NumberColumn(
        format="%.3g %%", help="Share of tokens on which the nearest feature fires."
    ),
    "nearest fires on": ListColumn(width="medium"),
    "partner": NumberColumn(help="The feature it is paired with when features are paired one to one."),
    "partner similarity": NumberColumn(format="%.3f"),
}


def other_chooser(names: Sequence[str], current: str, choose: Callable[[str], None]) -> None:
    """Show a box that leads to another second run."""
    options = {"options": names, "format_func": render.visible, "width": 360}
    widgets.box(st.selectbox, "Compared with", current, choose, "other box", **options)


def match_button(begin: Callable[[], None], running: bool) -> None:
    """Show a button that starts the matching; nothing while it runs."""
    if not running:
        st.button("Match the features", icon=":material/compare_arrows:", type="primary", on_click=begin)


def measure_chooser(measures: Mapping[str, tuple[str, str]]) -> str:
    """Return the measure of similarity that the visitor chose. Other pages do not reset it."""
    return st.segmented_control(
        "Similarity",
        list(measures),
        default=next(iter(measures)),
        required=True,
        key="similarity",
        format_func=lambda name: measures[name][0],
        help="\n\n".join(f"**{label}**: {why}" for label, why in measures.values()),
        persist_state="session",
    )


def kind_chooser(kinds: Mapping[str, tuple[str, str]], counts: Mapping[str, int]) -> str:
    """Return the kind of features that the visitor chose to list. Other pages do not reset it."""
    return st.segmented_control(
        "Features that are",
        list(kinds),
        default=next(iter(kinds)),
        required=True,
        key="kind",
        format_func=lambda kind: f"{kind} {counts[kind]:,}",
        help="\n\n".join(f"**{kind}**: {why}" for kind, (_, why) in kinds.items()),
        persist_state="session",
    )
