"""State of the Dead latents page: the report of `sae dead` on a run, which is opened once, and the job that makes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import streamlit as st

from activations.errors import quoted
from activations.language_model import LanguageModel
from app.session import jobs, models, runs
from app.session.problems import Missing
from sae.diagnosis import causes
from sae.diagnosis.report import INDEX, KINDS, DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.report import dead as dead_report
from sae.runs.run import Run
from sae.workflows import diagnose

__all__ = ["CAUSES", "KINDS", "begin", "command", "job", "remark", "report"]
CAUSES = causes.CAUSES


def report(run: Run) -> DeadReport | None:
    """Return the run's report; None if it has not been made.

    Raises Missing when the run's training has not finished, RunError when the report is damaged."""
    if not run.finished:
        why = f"{run.path.name} has not finished training. Dead latents can be looked into after that."
        raise Missing("No report yet", why, f"sae train … --out {quoted(run.path)} --resume")
    if not diagnose.is_there(run):
        return None
    return _report(str(diagnose.folder(run)), runs.stamp(diagnose.folder(run) / INDEX))


def command(run: Run) -> str:
    """Return the command line that makes the report."""
    return runs.command("dead", run)


def begin(run: Run) -> None:
    """Start to make the report in the background, with the defaults of `sae dead`."""
    jobs.start(_key(run), partial(_make, run))


def job(run: Run) -> jobs.Job[DeadReport] | None:
    """Return this visitor's job that makes the report, running or ended; None if none was started."""
    return jobs.find(_key(run))


def remark(run: Run, latent: int) -> str:
    """Return why a latent never fires, in a line, or the command that finds out."""
    known = report(run) if run.finished else None
    row = None if known is None else known.row(latent)
    return dead_report.remark(row) if row else "" if known else f"Why: {command(run)}"


def _key(run: Run) -> str:
    return f"dead {run.path}"


def _make(run: Run, report: jobs.Report) -> DeadReport:
    report(0.0, "opening the store")

    @contextmanager
    def borrow() -> Iterator[LanguageModel]:
        report(0.0, "running the language model on off-distribution text")
        with models.using(run) as (model, _):
            yield model

    return diagnose.diagnose_run(run, DeadConfig(), borrow, jobs.progress(report))


@st.cache_resource(max_entries=4, show_spinner=False)
def _report(path: str, stamp: tuple[int, int]) -> DeadReport:
    return DeadReport(path)
