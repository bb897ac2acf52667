"""Widgets that several pages share: sidebar, headings, rows of numbers, tables, charts, jobs, empty states, errors."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.navigation.page import StreamlitPage

from activations.errors import WorkbenchError
from activations.progress import clock
from app.box import box
from sae.report import glossary, render
from sae.report.numbers import DASH

if TYPE_CHECKING:  # Streamlit has no public name for this type
    from streamlit.elements.lib.column_types import ColumnConfig

ROW = 35  # height of a table's row in pixels
LAST_RUN = "last run"  # key of the name of the run seen last in this session
ERRORS = "errors shown"  # key of the messages that this run of the page has shown
OPEN = "open"  # key of the button in each row of a long table
NAME = "SAE workbench"  # of the app, in the titles of the browser's tabs
REFRESH = 1.0  # seconds between updates of a job's progress
QUIET = {"displayModeBar": False}  # plotly without its toolbar
STYLE, ICON = Path(render.__file__).with_name("style.css"), Path(__file__).with_name("icon.svg")


class Job(Protocol):
    """The part of an `app.session.jobs.Job`, work in the background, that a progress bar needs."""

    title: str
    """What the work is, in a few words."""
    end_shown: bool
    """Whether the page has run again since the work ended."""
    drawn: float
    """When a page last drew the progress, by the monotonic clock."""

    running: bool
    """Whether the work has not ended yet."""
    share: float
    """The share done, 0 to 1."""
    note: str
    """A short text about what the work is doing now."""
    stopping: bool
    """Whether the work was asked to end."""
    stopped: bool
    """Whether the work was ended before it was done."""
    partial: Any
    """What is done so far; None where the work does not hand that in."""
    result: Any
    """The result; of work that was stopped, what was done by then."""
    error: WorkbenchError | None
    """The error that ended the work; None if there was none."""

    @property
    def seconds(self) -> float:
        """Seconds that the work has been running."""
        ...

    @property
    def address(self) -> str:
        """The address of the page that shows the work, relative to any other page; empty where there is none."""
        ...

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take; None before anything is done."""
        ...

    def stop(self) -> None:
        """Ask the work to end."""
        ...


def sidebar(pages: Iterable[tuple[StreamlitPage, Mapping[str, str | list[str]]]]) -> None:
    """Show the app's name and links to its pages, each with the query its URL carries."""
    with st.sidebar:
        st.html('<div class="sae brand"><b>SAE</b> workbench</div>')
        for page, query in pages:
            st.page_link(page, query_params=query, width="stretch")


def run_chooser(names: Sequence[str], current: str, choose: Callable[[str], None], facts: str) -> None:
    """Show a box in the sidebar that leads to another run, and below it HTML about the current run."""
    with st.sidebar:
        box(st.selectbox, "Run", current, choose, "run box", options=names, format_func=render.visible)
        st.html(facts)


def heading(title: str, remark: str, tokens: Sequence[str] = (), level: int = 1) -> None:
    """Show a title with texts of tokens beside it and a remark below, all plain text. Level 1 is the page's title,
    which the browser's tab shows too, with the run."""
    if level == 1:
        st.set_page_config(page_title=" · ".join(filter(None, [title, _run_shown(), NAME])))
    above = f"<h{level}>{render.term(title, glossary.explained(title))} <span>{render.chips(tokens)}</span></h{level}>"
    st.html(f'<header class="sae">{above}<p>{render.escaped(remark)}</p></header>')


def header(
    title: str, remark: str, tokens: Sequence[str] = (), level: int = 1, key: str = "header"
) -> DeltaGenerator:
    """Show a heading and return the container at its right for controls. Each header of a page needs its own key."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}-{level}"):
        heading(title, remark, tokens, level)
        return st.container(
            horizontal=True,
            vertical_alignment="center",
            width="content",
            gap="small",
            key=f"controls-{key}-{level}",
        )


def long_table(
    table: pa.Table, columns: "Mapping[str, ColumnConfig]", height: int = 560, **selection: Any
) -> Any:
    """Show a table at most `height` pixels high and return its selection, which the options `selection` describe.

    A column without a help of its own has that of the glossary, where it is a term there."""
    return st.dataframe(
        table,
        column_config=dict(columns)
        | {name: _explained(name, columns.get(name)) for name in table.column_names},
        hide_index=True,
        placeholder=DASH,
        height="content" if ROW * (len(table) + 1) < height else height,
        lazy=False,
        **selection,
    )


def _explained(name: str, column: Any) -> Any:
    """Return how a column of a table is shown, with the glossary's help where it has none."""
    shown = st.column_config.Column(column) if column is None or isinstance(column, str) else column
    # a column of buttons is no dictionary, and has a help here
    if not isinstance(shown, dict) or shown.get("help"):
        return shown
    return {**shown, "help": glossary.explained(shown.get("label") or name)}


def pressed(key: str = OPEN) -> int | None:
    """Return the row of a table whose button, in the column with this key, was just pressed, or None.

    Selecting cells instead would not work: sorting by a column's head selects a cell too."""
    press = st.session_state.get(key)
    return press.row if press else None


def _run_shown() -> str:
    """Return the name of the run that the page shows; empty before one is chosen."""
    return st.query_params.get("run") or st.session_state.get(LAST_RUN, "")


def download(remark: str, content: Callable[[], bytes], name: str) -> None:
    """Show a remark and a button that saves a CSV file, which is made when the button is pressed."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.caption(render.markdown(remark))
        st.download_button("CSV", content, name, "text/csv", icon=":material/download:", on_click="ignore")


def section(title: str, remark: str = "", level: int = 2) -> None:
    """Show the title of a part of the page with a remark beside it, both plain text. The level is 3 below a heading of level 2.

    Pointing at a title that is a term of the glossary tells what it means."""
    st.html(render.section(title, remark, level, glossary.explained(title)))


def note(text: str) -> None:
    """Show a line of plain text in grey; nothing for an empty one."""
    if text:
        st.caption(render.markdown(text))


def page_button(
    page: str, label: str, icon: str, query: Mapping[str, str | list[str]], key: str = "page-button"
) -> None:
    """Show a link to another page that looks like a button. Its key begins with page-button, by which it is styled."""
    with st.container(key=key, width="content"):
        st.page_link(page, label=label, icon=icon, query_params=query)


def metrics(numbers: Iterable[tuple[str, str, str]], key: str = "metrics") -> None:
    """Show key numbers in a row, from (name, value, explanation)."""
    with st.container(horizontal=True, gap="large", key=key):
        for name, value, why in numbers:
            st.metric(name, value, help=why or glossary.explained(name), width="content")


def chart(figure: go.Figure, alt: str, key: str) -> None:
    """Show a plotly figure without its toolbar. `alt` is the alternative text for screen readers."""
    st.plotly_chart(figure, key=key, config=QUIET, alt=alt)


def job(job: Job, draw: Callable[[Any], None] | None = None) -> None:
    """Show a job's progress, the time left and a button that stops it; when the job ends, the page runs again.

    `draw` shows what is done so far, below the progress. The page runs again also when the job ends while the page is being
    drawn, since part of it may have looked for the result already. A failed job shows its error, a stopped one that it was
    stopped; a job that is done shows nothing."""

    @st.fragment(run_every=REFRESH)
    def progress() -> None:
        if not job.running:
            job.end_shown = True
            st.rerun()
        job.drawn = time.monotonic()
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.progress(job.share, render.markdown(f"{job.note or 'starting'} · {_times(job)}"))
            _stop_button(job, "stop")
        if draw and job.partial is not None:
            draw(job.partial)

    if job.running:
        progress()
    elif not job.end_shown:
        job.end_shown = True
        st.rerun()
    elif job.error:
        error(job.error.message, job.error.fix)
    elif job.stopped:
        kept = "" if job.result is None else "; what was done by then is kept"
        note(f"Stopped after {clock(job.seconds)}{kept}.")


def jobs_elsewhere(jobs: Callable[[], Sequence[Job]]) -> None:
    """Show in the sidebar the jobs of this visitor that no open page draws: a link to each one's page, its time, a Stop."""

    @st.fragment(run_every=2 * REFRESH)
    def listed() -> None:
        for job in jobs():
            if time.monotonic() - job.drawn > 3 * REFRESH:
                with st.container(key=f"elsewhere-{id(job)}", gap="xsmall"):
                    state = f"{job.share:.0%} · {_times(job)}" if job.running else "done"
                    st.html(
                        f'<p class="sae elsewhere"><a href="{render.escaped(job.address)}" target="_self">'
                        f"{render.escaped(job.title)}</a> <small>{render.escaped(state)}</small></p>"
                    )
                    if job.running:
                        _stop_button(job, "stop elsewhere")

    if jobs():
        with st.sidebar:
            listed()


def _stop_button(job: Job, key: str) -> None:
    """Show a button that stops the job. Work ends at its next report, which may take a while, as when a model is being loaded."""
    label = "Stopping" if job.stopping else "Stop"
    # a page may run two jobs at once, so the buttons need keys of their own
    st.button(label, icon=":material/stop:", on_click=job.stop, disabled=job.stopping, key=f"{key} {id(job)}")


def _times(job: Job) -> str:
    """Return how long a job has been running and how long it will take yet."""
    left = "" if job.seconds_left is None else f", {clock(job.seconds_left)} left"
    return f"{clock(job.seconds)} so far{left}"


def empty(title: str, why: str, command: str = "", level: int = 2) -> None:
    """Show that something does not exist yet, why, and the command that makes it, if there is one."""
    if level == 1:
        heading(title, why)
    else:
        st.html(
            f'<header class="sae">{render.section(title, "", level)}<p>{render.escaped(why)}</p></header>'
        )
    if command:
        shell(command)


def shell(command: str) -> None:
    """Show a shell command, ready to copy. A long one wraps, so that none of it is cut off on a narrow screen."""
    st.code(command, language="bash", width="content", wrap_lines=True)


def html_or_note(html: str, otherwise: str, command: str = "") -> None:
    """Show HTML from `sae.report`; if it is empty, a remark and the command that makes it, if there is one."""
    if html:
        st.html(html)
        return
    note(otherwise)
    if command:
        shell(command)


def error(message: str, fix: str | None = None) -> None:
    """Show what went wrong, as plain text, and the shell command that fixes it; once, even where several parts of a page meet it."""
    if message not in (shown := st.session_state.setdefault(ERRORS, set())):
        shown.add(message)
        st.error(render.markdown(message), icon=":material/error:")
        if fix:
            shell(fix)


class Missing(Exception):
    """A page has nothing to show yet: the title says what is missing, then come the reason and the command that makes it."""

    def __init__(self, title: str, why: str, command: str):
        super().__init__(title)
        self.title, self.why, self.command = title, why, command


@contextmanager
def readable() -> Iterator[None]:
    """Show what the block raises on purpose in the page, which ends there."""
    try:
        yield
    except Missing as missing:
        empty(missing.title, missing.why, missing.command, level=1)
    except WorkbenchError as problem:
        error(problem.message, problem.fix)


def warnings(messages: Sequence[str]) -> None:
    """Show a warning for each message, as plain text."""
    for message in messages:
        st.warning(render.markdown(message), icon=":material/warning:")


def steps(place: int) -> DeltaGenerator:
    """Return the container for the steps from an item, by whose number the script in the page sees that a press was answered."""
    return st.container(
        horizontal=True, vertical_alignment="center", width="content", gap="small", key=f"step-{place}"
    )


def step(name: str, key: str, at_end: bool, go: Callable[[int], None], argument: int) -> None:
    """Show a button to the previous or next item, which a key presses too. It is disabled at the end."""
    st.button(name, shortcut=key, disabled=at_end, on_click=go, args=[argument])
