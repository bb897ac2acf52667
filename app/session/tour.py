"""The tour of six steps, each a page with a few words above it, and the help on keys. Which step is shown is in the address."""

from collections.abc import Mapping

import streamlit as st

from app import widgets
from app.session import navigation
from app.session.navigation import Query
from sae.report import render

PARAMETER = "tour"  # of the URL: the number of the step
SEEN = "sae_tour"  # the cookie of a browser that was asked once
STEPS = (
    ("runs", "Runs", "Each row is a trained SAE. Below it are the curves of its training and its evaluation: FVU is the share of "
     "the variance that is lost, L0 the number of features that fire on a token."),
    ("features", "Features", "Every feature is a row. Search for a word, drag over a histogram to keep a range, or press a number "
     "to see what that feature fires on."),
    ("feature", "Feature", "The texts on which the feature fires most strongly come first, weaker ones follow. One that fires on the "
     "same thing in all of them deserves a name: give it a label, or add it to a list."),
    ("text", "Your text", "Type a sentence and press Read: each token with the features that fire on it. Press a token for its list, "
     "a disc to colour the text by one feature."),
    ("steering", "Steering", "Turn features up or down and press Steer: the model continues the prompt without and with them."),
    ("evidence", "Evidence", "Is the SAE better than one with random parts, than PCA, than itself with another seed? What can be said "
     "about the run, and what not."),
)  # fmt: skip
KEYS = (
    ("Tab", "the next control; first, a link to the main part of the page"),
    ("arrows", "in a table: another cell"),
    ("Enter", "on a feature's number in a table: its page; on a token or a disc: press it"),
    ("Shift Space", "in a table: tick the row"),
    ("← →", "on Feature: the previous, the next feature"),
    ("Ctrl Enter", "on Your text and Find: read, search"),
)


def step() -> int | None:
    """Return the step that the URL asks for, counted from 0; None where there is no such step."""
    asked = st.query_params.get(PARAMETER, "")
    return int(asked) - 1 if asked in map(str, range(1, len(STEPS) + 1)) else None


def sidebar(links: Mapping[str, Query]) -> None:
    """Show a link to the first step, and what the keys do, to unfold."""
    with st.sidebar, st.container(horizontal=True, vertical_alignment="center", key="help"):
        first = STEPS[0][0]
        query = {**links[first], PARAMETER: "1"}
        st.page_link(
            f"{first}/page.py", label="Tour", icon=":material/explore:", query_params=query, width="content"
        )
        with st.popover("Keys", icon=":material/keyboard:", type="tertiary"):
            st.html(render.facts(KEYS))


def show(page: str, links: Mapping[str, Query]) -> None:
    """Show the step of the tour that the URL asks for, or on the first page of a first visit an invitation to it.

    `links` has, for each page, what a link to it carries."""
    place = step()
    if place is not None and STEPS[place][0] == page:
        _remember()
        _, title, text = STEPS[place]
        with st.container(border=True, key="tour"):
            head = f"<b>Step {place + 1} of {len(STEPS)} · {title}.</b>"
            st.html(f'<p class="sae">{head} {render.escaped(text)}</p>')
            with st.container(horizontal=True):
                if place:
                    _to(place - 1, "Back", links)
                if place + 1 < len(STEPS):
                    _to(place + 1, f"Next: {STEPS[place + 1][1]}", links)
                st.button("End the tour", type="tertiary", on_click=_end)
    elif page == STEPS[0][0] and st.context.cookies.get(SEEN) != "1" and not st.session_state.get(SEEN):
        with st.container(horizontal=True, vertical_alignment="center", key="invitation"):
            widgets.note(f"New here? The tour shows what there is, in {len(STEPS)} steps.")
            # a link to the page that is shown would leave the step out of its address
            st.button("Take the tour", icon=":material/explore:", on_click=_begin)
            st.button("Not now", type="tertiary", on_click=_decline)
    elif st.session_state.get(SEEN):
        _remember()


def _to(place: int, label: str, links: Mapping[str, Query]) -> None:
    page = STEPS[place][0]
    query = {**links[page], PARAMETER: str(place + 1)}
    widgets.page_button(
        f"{page}/page.py", label, ":material/explore:", query, key=f"page-button-tour-{place}"
    )


def _begin() -> None:
    st.query_params[PARAMETER] = "1"


def _end() -> None:
    st.query_params.pop(PARAMETER, None)


def _decline() -> None:
    st.session_state[SEEN] = True


def _remember() -> None:
    """Let the browser remember that it was asked."""
    st.session_state[SEEN] = True
    navigation.keep_cookie(SEEN)
