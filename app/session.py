"""The app's door to the disk: cached loaders, and which run and feature the URL asks for.

The only file that knows both Streamlit and sae. A name from the URL is looked up among the runs that were
found; it never becomes a path."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import streamlit as st

from app import feature_rows, frame
from sae.errors import RunError, SAEError
from sae.features.store import INDEX, FeatureStore
from sae.runs import Run, find_runs
from sae.training import logs

REFRESH_SECONDS = 3.0  # a new run shows up at the next click after this


class Missing(Exception):
    """There is nothing to show yet: what, why, and the command that changes it."""

    def __init__(self, title: str, why: str, command: str):
        super().__init__(title)
        self.title, self.why, self.command = title, why, command


@contextmanager
def readable_errors() -> Iterator[None]:
    """Show what the block raises on purpose as one line in the page; nothing below it is shown."""
    try:
        yield
    except Missing as missing:
        frame.empty(missing.title, missing.why, missing.command, level=1)
    except SAEError as error:
        frame.error(str(error))


def folder() -> Path:
    """The folder of runs, from the command line: `streamlit run app/main.py -- RUNS`."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else "runs")


def runs() -> dict[str, Run]:
    """Every run by its name: its path below the folder. Raises Missing when there is none."""
    found = _runs(folder())
    if not found:
        why = f"There is no run in {folder()}. The demo makes one in runs/demo, with a model and a text that come along."
        raise Missing("No runs yet", why, "sae demo")
    return found


def current_run() -> tuple[str, Run]:
    """The run the URL names, or without one the run last shown, or the first with features.

    Raises Missing when there is no run, RunError when the URL names one that is not there."""
    found = runs()
    asked = st.query_params.get("run")
    name = asked or st.session_state.get("last run")
    if name not in found and not asked:
        name = next((name for name, run in found.items() if _index(run).exists()), next(iter(found)))
    if name not in found:
        raise RunError(f"there is no run {name!r} in {folder()}: the Runs page lists those there are")
    st.session_state["last run"] = name
    return name, found[name]


def choice() -> dict[str, str]:
    """The run and the feature on show, as links to pages carry them; empty where nothing is chosen yet."""
    run = st.query_params.get("run") or st.session_state.get("last run", "")
    if run not in _runs(folder()):
        return {}
    feature = st.query_params.get("feature") or st.session_state.get(f"last feature of {run}")
    return {"run": run} if feature is None else {"run": run, "feature": feature}


def command(name: str, run: Run) -> str:
    """A command line of `sae` for a run, such as `sae evaluate runs/demo`."""
    return f"sae {name} {quote(str(run.path))}"


def choose_run(name: str) -> None:
    """Go to another run, on the same page."""
    st.query_params.from_dict({"run": name})


def evaluations(found: dict[str, Run]) -> dict[str, dict[str, Any]]:
    """What `sae evaluate` found, of those runs it has seen; a damaged one is reported in the page and left out."""
    measured = {}
    for name, run in found.items():
        try:
            measured[name] = run.evaluation
        except RunError as error:
            frame.error(str(error))
    return {name: evaluation for name, evaluation in measured.items() if evaluation}


def steps_done(run: Run) -> int:
    """The last step in the run's log; 0 before the first entry."""
    entries = log(run)
    return int(entries[-1]["step"]) if entries else 0


def log(run: Run) -> list[dict[str, float]]:
    """Rows of the run's log, as it is now."""
    path = run.path / "log.jsonl"
    return _log(path, _stamp(path))


def features(run: Run) -> FeatureStore:
    """The run's features. Raises Missing when they have not been collected, RunError when they are damaged."""
    if not _index(run).exists() and not run.finished:
        why = f"{run.path.name} is still training: features are collected when it is finished."
        raise Missing("No features yet", why, f"sae train … --out {quote(str(run.path))} --resume")
    if not _index(run).exists():
        why = f"{run.path.name} is trained, but what its features fire on has not been collected."
        raise Missing("No features yet", why, command("features", run))
    return _features(run.path, _stamp(_index(run)))


def table(store: FeatureStore) -> pa.Table:
    """All features of a run as the Features page shows them."""
    return _table(store.path, _stamp(store.path / INDEX))


def current_feature(run: str, store: FeatureStore) -> int:
    """The feature the URL names, or without one the feature last shown of this run, or the first alive one.

    Raises RunError when the URL names one that is not there."""
    alive = _alive(store)
    asked = st.query_params.get("feature") or st.session_state.get(
        f"last feature of {run}", f"{(alive or [0])[0]}"
    )
    if not (asked.isascii() and asked.isdigit() and len(asked) < 12 and int(asked) < len(store)):
        raise RunError(f"feature {asked[:40]} does not exist: this run has 0 to {len(store) - 1}")
    st.session_state[f"last feature of {run}"] = asked
    return int(asked)


def show_feature(latent: int) -> None:
    """Go to another feature, on the Feature page."""
    st.query_params["feature"] = str(latent)


def show_random_feature(store: FeatureStore) -> None:
    """Go to a feature that fires, any."""
    show_feature(random.choice(_alive(store) or [0]))


def open_feature(run: str, latent: int) -> None:
    """Leave for the page of a feature."""
    st.switch_page("views/feature.py", query_params={"run": run, "feature": str(latent)})


@st.cache_resource(ttl=REFRESH_SECONDS, show_spinner=False)
def _runs(where: Path) -> dict[str, Run]:
    found = find_runs(where)
    return {run.name if run.path == where else run.path.relative_to(where).as_posix(): run for run in found}


@st.cache_resource(max_entries=64, show_spinner=False)
def _log(path: Path, stamp: tuple[int, int]) -> list[dict[str, float]]:
    return logs.read(path)


# The stamp is part of each key, so that `sae features`, run again, shows; old entries make room.
@st.cache_resource(max_entries=4, show_spinner="Opening features")
def _features(run: Path, stamp: tuple[int, int]) -> FeatureStore:
    return FeatureStore(run / "features")


@st.cache_resource(max_entries=4, show_spinner="Reading features")
def _table(path: Path, stamp: tuple[int, int]) -> pa.Table:
    return feature_rows.features(FeatureStore(path).table)


def _alive(store: FeatureStore) -> list[int]:
    density = store.table["density"].to_numpy()
    return density.nonzero()[0].tolist()


def _index(run: Run) -> Path:
    return run.path / "features" / INDEX


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written again; zeros when it is not there."""
    if not path.exists():
        return 0, 0
    about = path.stat()
    return about.st_mtime_ns, about.st_size
