"""State and controls of the Dead latents page: the report, the job that makes it, what is listed, tables with details."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import plotly.graph_objects as go
import pyarrow as pa
import streamlit as st
from streamlit.column_config import ButtonColumn, NumberColumn, TextColumn

from activations.errors import RunError
from activations.language_model import LanguageModel
from app import widgets
from app.session import choices, jobs, models, runs
from app.widgets import Missing
from sae.diagnosis.causes import CAUSES
from sae.diagnosis.report import INDEX, DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.report import dead as dead_report
from sae.report import render
from sae.runs.run import Run
from sae.workflows import diagnose

HEIGHT = 420  # of the table, in pixels
PAGE = "dead"  # in the keys of its choices
OPEN_DENSE = "open dense"  # key of the button in each row of the table of dense latents
COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=widgets.OPEN, help="Click it to open its page."),
    "cause": TextColumn(width="medium", help="The main reason, by the first rule that applies."),
    "fires on": TextColumn(help="The data on which it does fire."),
    "in training": TextColumn(help="What happened to it in training."),
    "margin": NumberColumn(
        format="%.3g", help="How close it came to firing on any row; at 0 or above it would fire."
    ),
    "positive on": NumberColumn(
        format="%.3g %%", help="Share of rows on which its pre-activation is above 0."
    ),
    "best rank": NumberColumn(format="localized", help="Its best rank among the latents of a row; 0: none."),
    "norm": NumberColumn(format="%.3g", help="Norm of its encoder column."),
    "bias": NumberColumn(format="%.3g", help="Its encoder bias, as if b_dec were subtracted from the row."),
    "cos mean": NumberColumn(format="%.2f", help="Cosine between its encoder and the mean activation."),
    "cos nearest": NumberColumn(format="%.2f", help="Decoder cosine with the nearest live latent."),
    "died at": NumberColumn(format="localized", help="Step of its last death in training."),
    "revived": NumberColumn(format="localized", help="Number of times it was revived in training."),
}
DENSE_COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=OPEN_DENSE, help="Click it to open its page."),
    "kind": TextColumn(width="medium", help="The kind of signal, by the first rule that applies."),
    "density": NumberColumn(format="%.3g %%", help="Share of tokens it fires on."),
    "position": NumberColumn(format="%.2f", help="Correlation of its value with the position in the window."),
    "first direction": NumberColumn(format="%.2f", help="Decoder cosine with the first principal direction."),
    "mean": NumberColumn(format="%.2f", help="Decoder cosine with the mean activation."),
    "token class": NumberColumn(
        format="%.3g %%", help="Share of its variance that the token's class explains."
    ),
    "prefers": TextColumn(help="The class of tokens it prefers most."),
    "of its firings": NumberColumn(format="%.3g %%", help="Share of its firings on that class."),
    "of all tokens": NumberColumn(format="%.3g %%", help="Share of that class among all tokens."),
    "antipode": NumberColumn(help="The dense latent that points in the opposite direction."),
    "antipodality": NumberColumn(
        format="%.2f", help="1: another latent reads and writes the opposite direction."
    ),
    "variance": NumberColumn(
        format="%.3g %%", help="Share of the activations' variance that its own term has."
    ),
}


def report(run: Run) -> DeadReport | None:
    """Return the run's report; None if it has not been made of the weights that the run has now.

    Raises Missing when the run's training has not finished, RunError when the report is damaged."""
    if not run.finished:
        why = f"{run.path.name} has not finished training. Dead latents can be looked into after that."
        raise Missing("No report yet", why, run.resume)
    made = _made(run)
    return made if made and made.record.sae_sha256 == run.digest else None


def nothing(run: Run) -> tuple[str, str]:
    """Return what a report would tell, and the command line that makes it."""
    return runs.from_store("dead", run, "Which latents never fire, and why?" + jobs.usual_time("dead"))


def of_other_weights(run: Run) -> list[str]:
    """Return a warning where the run has a report that was made of other weights than it has now; else nothing."""
    made = _made(run)
    if not made or made.record.sae_sha256 == run.digest:
        return []
    return [f"{made.path} is of other weights than {run.path} has now, and is not shown"]


def begin(run: Run) -> None:
    """Start to make the report in the background, with the defaults of `sae dead`."""
    jobs.start(_key(run), partial(_make, run), f"looking into the dead latents of {run.name}")


def job(run: Run) -> jobs.Job[DeadReport] | None:
    """Return this visitor's job that makes the report, running or finished; None if none was started."""
    return jobs.find(_key(run))


def readable(run: Run) -> DeadReport | None:
    """Return the run's report for another page; None without one, and where it is damaged, which is reported in the page."""
    try:
        return report(run) if run.finished else None
    except RunError as damage:
        widgets.error(damage.message, damage.fix)
        return None


def remark(run: Run, known: DeadReport | None, latent: int) -> str:
    """Return why a latent never fires, in a line, or the command that finds out."""
    row = None if known is None else known.row(latent)
    return dead_report.remark(row) if row else "" if known else f"Why: {nothing(run)[1]}"


def badge(known: DeadReport | None, latent: int, name: str) -> str:
    """Return the kind of a dense latent and its antipode as HTML; empty for others and without a report."""
    return dead_report.badge(known.row(latent) if known else None, name)


def _key(run: Run) -> str:
    return f"dead {run.path}"


def _make(run: Run, report: jobs.Report) -> DeadReport:
    report(0.0, "opening the store")

    @contextmanager
    def borrow() -> Iterator[LanguageModel]:
        report(0.0, "running the language model on off-distribution text")
        with models.using(run, report) as (model, _):
            yield model

    # Where a run reads another program's files, there is no model to run
    return diagnose.diagnose_run(
        run, DeadConfig(), None if run.reads_files else borrow, jobs.progress(report)
    )


def _made(run: Run) -> DeadReport | None:
    path = diagnose.folder(run)
    return _report(str(path), runs.stamp(path / INDEX)) if diagnose.is_there(run) else None


@st.cache_resource(max_entries=4, show_spinner=False)
def _report(path: str, stamp: tuple[int, int]) -> DeadReport:
    return DeadReport(path)


def kind(tally: dict[str, int]) -> str:
    """Return the kind of latents to list: the visitor's choice, or else the first kind that has any. `tally` counts them."""
    first = next((name for name, count in tally.items() if count), next(iter(tally)))
    return choices.control(
        st.segmented_control,
        "Show",
        PAGE,
        "kind",
        list(tally),
        first,
        key="dead kind",
        required=True,
        format_func=lambda name: f"{name} {tally[name]:,}",
    )


def cause(names: Sequence[str]) -> str | None:
    """Return the one cause to list, or None for all. A cause chosen in another run that this run lacks is dropped."""
    if not names:
        return None
    return choices.control(
        st.pills,
        "Cause",
        PAGE,
        "cause",
        names,
        None,
        known=CAUSES,
        key="dead cause",
        format_func=render.markdown,
    )


def chosen_cause() -> str | None:
    """Return the one cause that is listed, before its control is drawn; None for all."""
    return choices.current(PAGE, "cause", "", CAUSES) or None


def bar_chooser(figure: go.Figure, alt: str, key: str) -> None:
    """Show bars of causes. A click on one lists only this cause, another click lists all."""

    def clicked() -> None:
        points = st.session_state[key].selection.points
        choices.change(PAGE, "cause", "", points[0]["customdata"][0] if points else "")

    st.plotly_chart(
        figure, key=key, config=widgets.QUIET, alt=alt, on_select=clicked, selection_mode="points"
    )


def detailed_rows(table: pa.Table, kind: str, cause: str | None) -> int:
    """Show the table of latents and return the row whose details are shown: that of the URL's latent, or else the first."""
    key, listed = f"dead rows {kind} {cause}", [text.strip() for text in table["feature"].to_pylist()]
    asked = st.query_params.get(
        "latent"
    )  # one that is not listed, as after a change of the kind, is passed over
    rows = [listed.index(asked)] if asked in listed else []

    def picked() -> None:
        chosen = st.session_state[key].selection.rows
        choices.change(PAGE, "latent", "", listed[chosen[0]] if chosen else "")

    st.session_state[key] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    widgets.long_table(table, COLUMNS, HEIGHT, key=key, on_select=picked, selection_mode="single-row")
    return next(iter(rows), 0)
