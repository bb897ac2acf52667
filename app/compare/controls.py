"""Controls of the Compare page: the other run, the measure, the kind of features listed."""

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from app import widgets
from sae.report import render


def other_chooser(names: Sequence[str], current: str, choose: Callable[[str], None]) -> None:
    """A box to go to another second run."""
    options = {"options": names, "format_func": render.visible, "width": 360}
    widgets.box(st.selectbox, "Compared with", current, choose, "other box", **options)


def match_button(begin: Callable[[], None], running: bool) -> None:
    """What matching is for, and a button that begins it; nothing while it is under way."""
    if not running:
        st.button("Match the features", icon=":material/compare_arrows:", type="primary", on_click=begin)


def measure_chooser(measures: Mapping[str, tuple[str, str]]) -> str:
    """Which similarity the page speaks of; kept while pages change."""
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
    """Which features are listed, with how many there are; kept while pages change."""
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
