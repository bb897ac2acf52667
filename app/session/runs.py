"""The runs under the folder that the app shows, with their logs, evaluations and problems."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import streamlit as st

from activations.errors import RunError, quoted
from app.widgets import Missing, error
from sae.runs.problems import problems as problems_of
from sae.runs.records import Evaluation
from sae.runs.run import Run, find_runs
from sae.runs.saved_sae import read_log
from sae.runs.scaling import ScalingRecord, changed, scaling_of

T = TypeVar("T")
REFRESH_SECONDS = 3.0  # a new run shows up at the first click after this time


def folder() -> Path:
    """Return the folder of runs, from the command line: `streamlit run app/server.py -- RUNS`."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs")


def by_name() -> dict[str, Run]:
    """Return every run under its name, which is its path below the folder; empty when there are no runs."""
    return _runs(folder())


def require_any() -> dict[str, Run]:
    """Return every run under its name. Raises Missing when there are no runs."""
    if not by_name():
        why = f"{folder()} has no runs. The demo trains one in runs/demo, on a small model and text that it fetches."
        raise Missing("No runs yet", why, "sae demo")
    return by_name()


def command(name: str, run: Run) -> str:
    """Return a command line for a run, such as `sae evaluate runs/demo`."""
    return f"sae {name} {quoted(run.path)}"


def lacks_store(run: Run) -> bool:
    """Return whether the run is an SAE that was imported without a store, so that nothing can be measured on its activations."""
    return run.record.imported is not None and not run.config.store


def from_store(name: str, run: Run, why: str) -> tuple[str, str]:
    """Return why something is missing that is made from the run's store, and the command line `sae NAME RUN` that makes it, or for
    an SAE that was imported without a store, why and how to import it with one."""
    if run.record.imported is None or not lacks_store(run):
        return why, command(name, run)
    why += (
        f" {run.name} was imported without a store of activations: harvest {run.hook} of {run.record.model} (sae harvest), and import "
        f"it with that store, into another folder."
    )
    imported = run.record.imported
    return why, f"sae import {imported.format} {quoted(imported.path)} --store … --out …"


def evaluations(runs: dict[str, Run]) -> dict[str, Evaluation]:
    """Return the evaluations of the runs that have one. A damaged evaluation is reported in the page and left out."""
    evaluated = {}
    for name, run in runs.items():
        try:
            evaluated[name] = run.evaluation
        except RunError as damage:
            error(damage.message, damage.fix)
    return {name: evaluation for name, evaluation in evaluated.items() if evaluation}


def scaling(run: Run) -> ScalingRecord | None:
    """Return the scaling laws fitted to the folder of runs that a run lies in, None where none were. A damaged file is reported
    in the page and left out."""
    try:
        return scaling_of(run.path.parent)
    except RunError as damage:
        error(damage.message, damage.fix)
        return None


def changed_since_fit(record: ScalingRecord, run: Run) -> list[str]:
    """Return a warning when runs beside this one are not those that the laws were fitted to, else nothing."""
    names = changed(record, run.path.parent)
    return (
        [f"The laws were fitted to other weights than {', '.join(names)} now has. Fit them again."]
        if names
        else []
    )


def problems(run: Run) -> list[str]:
    """Return what makes the run's SAE useless as it is, a line for each problem. A damaged evaluation or log is ignored here."""
    evaluation, entries = None, []
    with suppress(RunError):
        evaluation = run.evaluation
    with suppress(RunError):
        entries = log(run) if run.finished else []
    return problems_of(run.record, entries, evaluation)


def logs(runs: dict[str, Run]) -> dict[str, list[dict[str, float]]]:
    """Return the logs of runs as they are now. A damaged log is reported in the page and left out."""
    read = {}
    for name, run in runs.items():
        try:
            read[name] = log(run)
        except RunError as damage:
            error(damage.message, damage.fix)
    return read


def log(run: Run) -> list[dict[str, float]]:
    """Return the rows of the run's log as it is now."""
    path = run.path / "log.jsonl"
    now, newest = stamp(path), _newest_reading(path)
    if newest.stamp != now:
        newest.stamp, newest.rows = now, read_log(path)
    return newest.rows


def quiet_for(run: Run) -> float:
    """Return the seconds since the run's last log entry; 0 before the first."""
    path = run.path / "log.jsonl"
    return max(time.time() - path.stat().st_mtime, 0.0) if path.exists() else 0.0


class Made(NamedTuple, Generic[T]):
    """What a job made and wrote into a file."""

    what: T
    written: tuple[int, int]
    """The file's stamp when the job ended. Where it has another one, a command has written the file since."""


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's time and size, which change when it is written again; zeros for a missing file. It is part of cache keys."""
    if not path.exists():
        return 0, 0
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@dataclass
class _LogReading:
    """The rows of a log, and the stamp that the file had when they were read; None before the first reading."""

    stamp: tuple[int, int] | None = None
    rows: list[dict[str, float]] = field(default_factory=list)


@st.cache_resource(ttl=REFRESH_SECONDS, show_spinner=False)
def _runs(root: Path) -> dict[str, Run]:
    runs = find_runs(root)
    return {run.name if run.path == root else run.path.relative_to(root).as_posix(): run for run in runs}


@st.cache_resource(max_entries=64, show_spinner=False)
def _newest_reading(path: Path) -> _LogReading:
    """Return where the newest reading of a log is kept. Caching every reading of a growing log would fill the memory."""
    return _LogReading()
