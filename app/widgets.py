"""What all pages share around their content: sidebar, headings, rows of numbers, empty states, errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.navigation.page import StreamlitPage

from sae.report import render

ROW = 35  # pixels of a table's row
OPEN = "open"  # key of the button in each row of a long table
ALL = 0  # as a choice of how many
REFRESH = 1.0  # seconds between looks at a job
QUIET = {"displayModeBar": False}  # plotly's toolbar
STYLE, ICON = Path(render.__file__).with_name("style.css"), Path(__file__).with_name("icon.svg")


class Job(Protocol):
    """Work under way in the background (`app.session.jobs.Job` is one)."""

    heard: bool
    """Whether the page has run again since it ended."""

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        ...

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        ...

    @property
    def note(self) -> str:
        """What it is at."""
        ...

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take, if that can be told."""
        ...

    @property
    def error(self) -> str | None:
        """What went wrong, in one line."""
        ...

    def stop(self) -> None:
        """Ask it to end."""
        ...


def sidebar(pages: Iterable[tuple[StreamlitPage, Mapping[str, str | list[str]]]]) -> None:
    """Name of the app and links to the pages, each with what its URL is to carry."""
    with st.sidebar:
        st.html('<div class="sae brand"><b>SAE</b> workbench</div>')
        for page, query in pages:
            st.page_link(page, query_params=query, width="stretch")


def box(
    widget: Callable[..., Any],
    label: str,
    shown: Any,
    changed: Callable[[Any], None],
    key: str | None = None,
    **options: Any,
) -> None:
    """A widget that shows a value held elsewhere and tells of changes; its key is its label where none is given.

    It is set only to what it does not show already: setting it again would undo what is being typed. Otherwise the value
    is its default: a browser that draws the widget anew, as a slow one may that first sees the second run of a page,
    begins from the default and sends it with the next press, which would be taken for the visitor's change."""
    name = key or label
    if st.session_state.get(name) != shown:
        st.session_state[name] = shown
    elif widget.__name__ == "selectbox":
        options["index"] = list(options["options"]).index(shown)
    else:
        options["default" if widget.__name__ == "segmented_control" else "value"] = shown
    widget(label, key=name, on_change=lambda: changed(st.session_state[name]), **options)


def run_chooser(names: Sequence[str], current: str, choose: Callable[[str], None], about: str) -> None:
    """A box in the sidebar to go to another run; beneath it HTML about the current one."""
    with st.sidebar:
        box(st.selectbox, "Run", current, choose, "run box", options=names, format_func=render.visible)
        st.html(about)


def heading(title: str, about: str, tokens: Sequence[str] = (), level: int = 1) -> None:
    """A title with token texts beside and a quiet line beneath; all plain text. Level 1 is the page's."""
    above = f"<h{level}>{render.escaped(title)} <span>{render.chips(tokens)}</span></h{level}>"
    st.html(f'<header class="sae">{above}<p>{render.escaped(about)}</p></header>')


def header(
    title: str, about: str, tokens: Sequence[str] = (), level: int = 1, key: str = "header"
) -> DeltaGenerator:
    """A heading with room for controls at its right, which the caller fills; each on a page has a key of its own."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}-{level}"):
        heading(title, about, tokens, level)
        return st.container(
            horizontal=True,
            vertical_alignment="center",
            width="content",
            gap="small",
            key=f"controls-{key}-{level}",
        )


def stepper(index: int, last: int, go_to: Callable[[int], None], surprise: Callable[[], None]) -> None:
    """Previous, next, a box for a number, and any; for features 0 to `last`."""
    step("Previous", "Left", index == 0, go_to, index - 1)
    limits = {"min_value": 0, "max_value": last}
    box(
        st.number_input,
        "feature",
        index,
        go_to,
        "number box",
        **limits,
        width=130,
        label_visibility="collapsed",
    )
    step("Next", "Right", index == last, go_to, index + 1)
    st.button("Random", icon=":material/casino:", help="any feature that fires", on_click=surprise)


def example_controls(legend: str) -> tuple[int | None, int | None]:
    """How many tokens of a window to show (None: all), and how many examples of a group; a legend beside."""
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom", key="example-controls"):
        around = _how_many("Tokens shown", (16, 32, 64, ALL), 32, key="around")
        most = _how_many("Examples each", (5, 10, ALL), 5, key="most")
        st.html(legend)
    return around or None, most or None


def pick_row(
    table: pa.Table, columns: dict[str, Any], names: Sequence[str], chosen: str, choose: Callable[[str], None]
) -> None:
    """A table of which one row is chosen, by the mark before it; `names` are the rows'."""

    def picked() -> None:
        row: int = st.session_state["rows"].selection.rows[0]
        choose(names[row])

    st.session_state["rows"] = {"selection": {"rows": [names.index(chosen)], "columns": [], "cells": []}}
    st.dataframe(
        table,
        column_config=columns,
        hide_index=True,
        placeholder="–",
        key="rows",
        selection_mode="single-row-required",
        on_select=picked,
    )


def long_table(table: pa.Table, columns: dict[str, Any], height: int = 560, **selection: Any) -> Any:
    """A table, at most so many pixels high; `selection` is what `st.dataframe` is told about choosing rows, and what
    was chosen is returned."""
    return st.dataframe(
        table,
        column_config=columns,
        hide_index=True,
        placeholder="–",
        height="content" if ROW * (len(table) + 1) < height else height,
        lazy=False,
        **selection,
    )


def pressed(key: str = OPEN) -> int | None:
    """The row of a table whose button, in the column of that key, was just pressed, or None.

    Clicks on cells would not do: sorting by a header selects a cell too."""
    press = st.session_state.get(key)
    return press.row if press else None


def download(about: str, content: Callable[[], bytes], name: str) -> None:
    """A remark with a button that saves a CSV file, made when it is pressed."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.caption(render.markdown(about))
        st.download_button("CSV", content, name, "text/csv", icon=":material/download:", on_click="ignore")


def section(title: str, about: str = "") -> None:
    """A part's title with a quiet remark beside; both plain text."""
    remark = f"<small>{render.escaped(about)}</small>" if about else ""
    st.html(f'<h3 class="sae">{render.escaped(title)}{remark}</h3>')


def note(about: str) -> None:
    """A quiet line of plain text; nothing for an empty one."""
    if about:
        st.caption(render.markdown(about))


def page_button(
    page: str, label: str, icon: str, query: Mapping[str, str | list[str]], key: str = "page-button"
) -> None:
    """A link to another page that looks like a button; keys begin with page-button."""
    with st.container(key=key, width="content"):
        st.page_link(page, label=label, icon=icon, query_params=query)


def metrics(numbers: Iterable[tuple[str, str, str]], key: str = "metrics") -> None:
    """A row of (name, value, explanation)."""
    with st.container(horizontal=True, gap="large", key=key):
        for name, value, why in numbers:
            st.metric(name, value, help=why, width="content")


def chart(figure: go.Figure, about: str, key: str) -> None:
    """A plotly figure without its toolbar; `about` is for readers who cannot see it."""
    st.plotly_chart(figure, key=key, config=QUIET, alt=about)


def job(job: Job) -> None:
    """How far a job is, with the time left and a button that stops it; the page runs again when it ends.

    That is so, too, when it ends while the page is drawn, of which a part may have looked for its result already. Of
    one that failed, one line; of one that was stopped or is done, nothing."""

    @st.fragment(run_every=REFRESH)
    def progress() -> None:
        if not job.running:
            job.heard = True
            st.rerun()
        left = "" if job.seconds_left is None else f" · {job.seconds_left:.0f} s left"
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.progress(job.share, render.markdown(f"{job.note or 'starting'}{left}"))
            # two jobs of a page may run at once
            st.button("Stop", icon=":material/stop:", on_click=job.stop, key=f"stop {id(job)}")

    if job.running:
        progress()
    elif not job.heard:
        job.heard = True
        st.rerun()
    elif job.error:
        error(job.error)


def empty(title: str, why: str, command: str = "", level: int = 3) -> None:
    """There is nothing here yet, and the command that changes it, if there is one."""
    heading(title, why, level=level)
    if command:
        st.code(command, language="bash", width="content")


def html_or_note(html: str, otherwise: str, command: str = "") -> None:
    """HTML of the renderer; where there is none a quiet line, and the command that changes it, if there is one."""
    if html:
        st.html(html)
        return
    note(otherwise)
    if command:
        st.code(command, language="bash", width="content")


def error(message: str) -> None:
    """One line about what went wrong; plain text."""
    st.error(render.markdown(message), icon=":material/error:")


def warnings(messages: Sequence[str]) -> None:
    """A line for each thing to beware of on this page; plain text."""
    for message in messages:
        st.warning(render.markdown(message), icon=":material/warning:")


def step(name: str, key: str, at_end: bool, go_to: Callable[[int], None], target: int) -> None:
    """A button to the one before or after, also pressed by a key; of no use at the end."""
    st.button(name, shortcut=key, disabled=at_end, on_click=go_to, args=[target])


def _how_many(label: str, options: Sequence[int], default: int, key: str) -> int:
    return st.segmented_control(
        label,
        options,
        default=default,
        required=True,
        key=key,
        persist_state="session",
        format_func=lambda n: "all" if n == ALL else str(n),
    )
