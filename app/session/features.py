"""What `sae features` found out about a run's latents, opened once."""

from pathlib import Path
from shlex import quote

import pyarrow as pa
import streamlit as st

from app import feature_rows
from app.session.errors import Missing
from app.session.runs import command, stamp
from sae.features.store import INDEX, FeatureStore
from sae.runs import Run


def collected(run: Run) -> bool:
    """Whether the run has features."""
    return _index(run).exists()


def of(run: Run) -> FeatureStore:
    """The run's features. Raises Missing when they have not been collected, RunError when they are damaged."""
    if not collected(run) and not run.finished:
        why = f"{run.path.name} is still training: features are collected when it is finished."
        raise Missing("No features yet", why, f"sae train … --out {quote(str(run.path))} --resume")
    if not collected(run):
        why = f"{run.path.name} is trained, but what its features fire on has not been collected."
        raise Missing("No features yet", why, command("features", run))
    return _features(run.path, stamp(_index(run)))


def table(store: FeatureStore) -> pa.Table:
    """All features of a run as the Features page shows them."""
    return _table(store.path, stamp(store.path / INDEX))


def alive(store: FeatureStore) -> list[int]:
    """Features that fire."""
    return store.table["density"].to_numpy().nonzero()[0].tolist()


def _index(run: Run) -> Path:
    return run.path / "features" / INDEX


# The stamp is part of each key, so that `sae features`, run again, shows; old entries make room.
@st.cache_resource(max_entries=4, show_spinner="Opening features")
def _features(run: Path, stamp: tuple[int, int]) -> FeatureStore:
    return FeatureStore(run / "features")


@st.cache_resource(max_entries=4, show_spinner="Reading features")
def _table(path: Path, stamp: tuple[int, int]) -> pa.Table:
    return feature_rows.features(FeatureStore(path).table)
