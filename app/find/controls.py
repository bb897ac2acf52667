"""Controls of the Find page: two boxes for texts, files to upload, the table of latents, a form that saves a monitor."""

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from activations.errors import WorkbenchError
from app import widgets
from app.find import state
from app.session import features, runs
from app.widgets import Missing
from sae.report import find as find_report
from sae.report import render
from sae.report.feature import Describe
from sae.report.numbers import percent
from sae.runs.run import Run
from sae.workflows.find import Search, save_monitor

SHOWN = "what the boxes show"  # key of the session
SIDES = ("First", "Second")
HINTS = ("One text a line, with what you look for", "One text a line, without it, alike in everything else")
MOST_MEGABYTES = 5  # of an uploaded file
COLUMNS = {
    "feature": ButtonColumn(
        width=80, alignment="left", key=widgets.OPEN, help="Click it to open the feature's page."
    ),
    "rank": NumberColumn(help="By AUC on the half of the texts that chose the candidates."),
    "AUC": NumberColumn(
        format="%.3f",
        help="On held-out texts: how often a text of the one set has a higher value than one of the other.",
    ),
    "q": NumberColumn(
        format="%.2g", help="Smallest false-discovery rate at which it is kept (Benjamini and Hochberg)."
    ),
    "found": "found",
    "higher on": "higher on",
    "fires on first": NumberColumn(format="%.0f %%", help="Share of the first set's held-out texts."),
    "fires on second": NumberColumn(format="%.0f %%", help="Share of the second set's held-out texts."),
    "label": "label",
    "fires on": ListColumn(width="medium", help="Tokens that it fires most on."),
}


def example_boxes(run: Run) -> None:
    """Show two boxes for texts with an upload below each, and a button that begins the search."""
    if not run.finished:
        why = f"{run.path.name} has not finished training. Latents can be searched after that."
        raise Missing("No SAE yet", why, run.resume)
    asked = state.current()
    if st.session_state.get(SHOWN) != asked or _box(0) not in st.session_state:
        st.session_state[SHOWN] = asked
        for place, texts in enumerate(asked.sets if asked else ((), ())):
            st.session_state[_box(place)] = "\n".join(texts)
        st.session_state["find pooling"] = asked.pooling if asked else "max"
    with st.form("find form", border=False):
        for place, side in enumerate(st.columns(2, gap="large")):
            with side:
                st.text_area(f"{SIDES[place]} set", key=_box(place), height=180, placeholder=HINTS[place])
                st.file_uploader(
                    f"… or a file of texts, one a line (set {place + 1})",
                    type=["txt", "md"],
                    max_upload_size=MOST_MEGABYTES,
                    key=_upload(place),
                )
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
            st.segmented_control(
                "Value of a text",
                [*state.POOLINGS],
                required=True,
                key="find pooling",
                format_func=lambda name: state.POOLINGS[name],
                help="How a latent's values on a text's tokens become one number.",
            )
            pressed = st.form_submit_button(
                "Find", icon=":material/search:", type="primary", shortcut="Mod+Enter"
            )
    if pressed:
        first, second = (_texts(place) for place in range(2))
        state.ask(first, second, st.session_state["find pooling"])
        st.session_state[SHOWN] = state.current()  # the boxes stay as they are, and the files beside them


def describe(run: Run) -> Describe | None:
    """Return a function from a feature to its label and tokens; None if the run's features have not been collected."""
    return features.labels_and_tokens(features.of(run)) if features.collected(run) else None


def monitor_form(run: Run, search: Search) -> None:
    """Show a form that saves one of the latents as a monitor, and what the monitor was measured to do."""
    with st.form("monitor form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        latent = st.selectbox("Latent", [each.latent for each in search.found.latents], key="monitor latent")
        rate = st.selectbox(
            "May fire on",
            find_report.RATES,
            index=2,
            key="monitor rate",
            format_func=lambda share: f"{percent(share)} of the second set",
        )
        name = st.text_input("Name", key="monitor name", placeholder="praise", max_chars=64)
        pressed = st.form_submit_button("Save monitor", icon=":material/notifications:")
    if not pressed:
        return
    try:
        monitor = save_monitor(run, name.strip(), search, latent, rate)
    except WorkbenchError as error:
        widgets.error(error.message, error.fix)
        return
    st.success(render.markdown(find_report.monitor_line(monitor)), icon=":material/notifications_active:")
    widgets.shell(f"{runs.command('monitor', run)} {monitor.name} FILE")


def _texts(place: int) -> list[str]:
    """Return the texts of one set: the lines in its box, and those of its file."""
    lines = str(st.session_state.get(_box(place)) or "").splitlines()
    if file := st.session_state.get(_upload(place)):
        lines += file.getvalue().decode("utf-8-sig", "replace").splitlines()
    return lines


def _box(place: int) -> str:
    return f"find box {place}"


def _upload(place: int) -> str:
    return f"find upload {place}"
