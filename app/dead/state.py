"""What `sae dead` found out about a run, opened once; and the same begun from the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import streamlit as st

from activations.language_model import LanguageModel
from app.session import jobs, models, runs
from app.session.problems import Missing
from sae.diagnosis import causes
from sae.diagnosis.report import INDEX, KINDS, DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.report import dead as dead_report
from sae.runs.run import Run
from sae.workflows import diagnose

__all__ = ["CAUSES", "KINDS", "begin", "command", "found", "job", "remark"]
CAUSES = causes.CAUSES


def found(run: Run) -> DeadReport | None:
    """The run's report, if there is one. Raises Missing when its training has not finished, RunError when it is damaged."""
    if not run.finished:
        why = f"{run.path.name} has not finished training: who is dead is looked into when it is finished."
        raise Missing("No report yet", why, f"sae train … --out {run.path} --resume")
    if not diagnose.is_there(run):
        return None
    return _report(str(diagnose.folder(run)), runs.stamp(diagnose.folder(run) / INDEX))


def command(run: Run) -> str:
    """The command line that makes the report."""
    return runs.command("dead", run)


def begin(run: Run) -> None:
    """Make the report in the background, as `sae dead` does with what is left out."""
    jobs.start(_key(run), partial(_make, run))


def job(run: Run) -> jobs.Job[DeadReport] | None:
    """The run's report in the making, made or failed; None when nobody asked."""
    return jobs.find(_key(run))


def remark(run: Run, latent: int) -> str:
    """Why a latent never fires, in a line; where it was not looked into, the command that does."""
    report = found(run) if run.finished else None
    row = None if report is None else report.row(latent)
    return dead_report.remark(row) if row else "" if report else f"Why: {command(run)}"


def _key(run: Run) -> str:
    return f"dead {run.path}"


def _make(run: Run, report: jobs.Report) -> DeadReport:
    report(0.0, "opening the store")

    @contextmanager
    def borrow() -> Iterator[LanguageModel]:
        report(0.0, "reading off-distribution text")
        with models.using(run) as (model, _):
            yield model

    return diagnose.diagnose_run(run, DeadConfig(), borrow, jobs.progress(report))


@st.cache_resource(max_entries=4, show_spinner=False)
def _report(path: str, stamp: tuple[int, int]) -> DeadReport:
    return DeadReport(path)
