"""Lists of features on the Features and the Feature page: collect, annotate, show, share as a file."""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath

import streamlit as st

from activations.errors import WorkbenchError
from app import widgets
from app.session import features
from sae.features.feature import FeatureStore
from sae.features.lists import LONGEST_NAME, LONGEST_NOTE
from sae.report import render

LISTED = "list"  # parameter of the URL: the list that the Features page shows
EVERY = ""  # the choice that shows all features
MOST_MEGABYTES = 5  # of a list from a file


def chosen(lists: dict[str, dict[int, str]]) -> str:
    """Return the list that the URL names, or EVERY. Where there is none of this name, such as a list that has been emptied since
    the address was made, the page says so, with a button that takes it out of the address."""
    asked = st.query_params.get(LISTED, EVERY)
    if asked and asked not in lists:
        widgets.warnings(
            [
                f"There is no list {asked[:60]!r} of this run's features, or no longer: the page shows all features."
            ]
        )
        st.button(
            "Show all features", icon=":material/close:", key="no such list", on_click=_show, args=[EVERY]
        )
        return EVERY
    return asked


def chooser(lists: dict[str, dict[int, str]], current: str) -> None:
    """Show a box that chooses a list, if there is any."""
    if lists:
        widgets.box(
            st.selectbox,
            "List",
            current,
            _show,
            "features list",
            options=[EVERY, *lists],
            format_func=lambda name: render.visible(
                f"{name} · {len(lists[name])}" if name else "all features"
            ),
            label_visibility="collapsed",
            width=200,
        )


def menu(store: FeatureStore, current: str, shown: Sequence[int]) -> None:
    """Show a button that opens what can be done with lists: add the features shown, save the chosen list, read one from a file."""
    with st.popover("Lists", icon=":material/playlist_add:"):
        with st.form("collect", border=False):
            name = _name_box(store, current, "collect")
            what = f"{len(shown):,} features" if len(shown) > 1 else "feature"
            if st.form_submit_button(f"Add the {what} shown", type="primary"):
                _change(store, partial(store.lists.add, name or "", dict.fromkeys(shown, "")))
        if current:
            file = f"{PurePath(current).name or 'list'}.json"
            st.download_button(
                "Save the list as a file",
                partial(store.lists.export, current),
                file,
                "application/json",
                icon=":material/download:",
                on_click="ignore",
            )
        with st.form("list from a file", border=False, clear_on_submit=True):
            file = st.file_uploader("A list from a file", type=["json"], max_upload_size=MOST_MEGABYTES)
            if st.form_submit_button("Read it") and file is not None:
                _change(store, partial(store.lists.load, file.getvalue(), file.name))


def editor(store: FeatureStore, latent: int) -> None:
    """Show a button that opens the lists that a feature is in, with its notes, and a form that adds it to one."""
    with st.popover("Lists", icon=":material/playlist_add:"):
        for name, notes in features.lists(store).items():
            if latent in notes:
                with st.container(horizontal=True, vertical_alignment="center"):
                    note = f": {notes[latent]}" if notes[latent] else ""
                    st.caption(render.markdown(f"In {name}{note}"), width="stretch")
                    remove = partial(_change, store, partial(store.lists.remove, name, latent), again=False)
                    st.button("Remove", icon=":material/close:", key=f"unlist {name}", on_click=remove)
        with st.form(f"list {latent}", border=False, clear_on_submit=True):
            name = _name_box(store, EVERY, f"of {latent}")
            note = st.text_area(
                "Note", max_chars=LONGEST_NOTE, placeholder="why it is in the list", height=80
            )
            if st.form_submit_button("Add to the list", type="primary"):
                _change(store, partial(store.lists.add, name or "", {latent: note}))


def _name_box(store: FeatureStore, current: str, key: str) -> str | None:
    """Show a box for the name of a list, with `current` in it. Each list of each run has a box of its own: in one box Streamlit
    would keep the name of the list that was shown when it was first drawn."""
    names = list(features.lists(store))
    return st.selectbox(
        "List",
        names,
        index=names.index(current) if current else None,
        key=f"list name {key} {store.path} {current}",
        accept_new_options=True,
        placeholder=f"its name, up to {LONGEST_NAME} characters",
        format_func=render.visible,
    )


def _change(store: FeatureStore, change: partial[object], again: bool = True) -> None:
    """Change lists and run the page again, unless a callback does that by itself; show what does not work."""
    try:
        change()
    except WorkbenchError as error:
        widgets.error(error.message, error.fix)
        return
    if again:
        st.rerun()


def _show(name: str) -> None:
    if name:
        st.query_params[LISTED] = name
    else:
        st.query_params.pop(LISTED, None)
