"""The runs under the folder that the app shows, their logs and their evaluations."""

import sys
import time
from pathlib import Path
from shlex import quote
from typing import Any

import streamlit as st

from activations.errors import RunError
from app import widgets
from app.session.problems import Missing
from sae.runs.log import read as read_log
from sae.runs.problems import problems as told
from sae.runs.records import Evaluation
from sae.runs.run import Run, find_runs

REFRESH_SECONDS = 3.0  # a new run shows up at the next click after this


def folder() -> Path:
    """The folder of runs, from the command line: `streamlit run app/main.py -- RUNS`."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs")


def found() -> dict[str, Run]:
    """Every run by its name, its path below the folder; none is an empty dictionary."""
    return _runs(folder())


def needed() -> dict[str, Run]:
    """Every run by its name. Raises Missing when there is none."""
    if not found():
        why = f"There is no run in {folder()}. The demo makes one in runs/demo, with a model and a text that come along."
        raise Missing("No runs yet", why, "sae demo")
    return found()


def command(name: str, run: Run) -> str:
    """A command line of `sae` for a run, such as `sae evaluate runs/demo`."""
    return f"sae {name} {quote(str(run.path))}"


def evaluations(runs: dict[str, Run]) -> dict[str, Evaluation]:
    """What `sae evaluate` found, of those runs it has seen; a damaged one is reported in the page and left out."""
    measured = {}
    for name, run in runs.items():
        try:
            measured[name] = run.evaluation
        except RunError as error:
            widgets.error(str(error))
    return {name: evaluation for name, evaluation in measured.items() if evaluation}


def problems(run: Run) -> list[str]:
    """What makes the run's SAE useless as it is, a line each; a damaged evaluation says nothing here."""
    try:
        measured = run.evaluation
    except RunError:
        measured = None
    return told(run.record, log(run) if run.finished else [], measured)


def log(run: Run) -> list[dict[str, float]]:
    """Rows of the run's log, as it is now."""
    path = run.path / "log.jsonl"
    now, last = stamp(path), _last_read(path)
    if last.get("stamp") != now:
        last |= {"stamp": now, "rows": read_log(path)}
    return last["rows"]


def steps_done(run: Run) -> int:
    """The last step in the run's log; 0 before the first entry."""
    entries = log(run)
    return int(entries[-1]["step"]) if entries else 0


def quiet_for(run: Run) -> float:
    """Seconds since the run last logged something; 0 before it has."""
    path = run.path / "log.jsonl"
    return max(time.time() - path.stat().st_mtime, 0.0) if path.exists() else 0.0


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written again; zeros when it is not there. To be part of a cache's key."""
    if not path.exists():
        return 0, 0
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@st.cache_resource(ttl=REFRESH_SECONDS, show_spinner=False)
def _runs(where: Path) -> dict[str, Run]:
    runs = find_runs(where)
    return {run.name if run.path == where else run.path.relative_to(where).as_posix(): run for run in runs}


@st.cache_resource(max_entries=64, show_spinner=False)
def _last_read(path: Path) -> dict[str, Any]:
    """Where the newest reading of a log is kept: of one that grows, a reading for each look would fill the memory."""
    return {}
