"""What `sae features` found out about a run's latents, opened once."""

from pathlib import Path
from shlex import quote

import numpy as np
import pyarrow as pa
import streamlit as st

from app.session.problems import Missing
from app.session.runs import command, stamp
from sae.features.store import INDEX, FeatureStore
from sae.report import features as features_report
from sae.runs.run import Run


def collected(run: Run) -> bool:
    """Whether the run has features."""
    return _index(run).exists()


def of(run: Run) -> FeatureStore:
    """The run's features. Raises Missing when they have not been collected, RunError when they are damaged."""
    if not collected(run) and not run.finished:
        why = f"{run.path.name} has not finished training: features are collected when it is finished."
        raise Missing("No features yet", why, f"sae train … --out {quote(str(run.path))} --resume")
    if not collected(run):
        why = f"{run.path.name} is trained, but what its features fire on has not been collected."
        raise Missing("No features yet", why, command("features", run))
    return _features(run.path, stamp(_index(run)))


def table(store: FeatureStore) -> pa.Table:
    """All features of a run as the Features page shows them."""
    return _table(store.path, stamp(store.path / INDEX))


def haystack(store: FeatureStore) -> features_report.Haystack:
    """What of each feature is searched for words."""
    return _haystack(store.path, stamp(store.path / INDEX))


def mapped(store: FeatureStore) -> bool:
    """Whether there is a map."""
    return "map_x" in store.table.column_names


def places(store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """The map: x and y of each feature, NaN where it has none."""
    x, y = (store.table[name].to_numpy().astype(float) for name in ("map_x", "map_y"))
    return x, y


def colours(store: FeatureStore, by_cluster: bool) -> list[int | None] | np.ndarray:
    """Of each feature the cluster, None for none, or else its density."""
    return store.table["cluster"].to_pylist() if by_cluster else store.table["density"].to_numpy()


def captions(store: FeatureStore) -> list[str]:
    """A line about each feature: its number, peak tokens and cluster."""
    return _captions(store.path, stamp(store.path / INDEX))


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
    return features_report.features(FeatureStore(path).table)


@st.cache_resource(max_entries=4, show_spinner="Reading features")
def _haystack(path: Path, stamp: tuple[int, int]) -> features_report.Haystack:
    store = FeatureStore(path)
    return features_report.haystack(_table(path, stamp), store.texts)


@st.cache_resource(max_entries=4, show_spinner=False)
def _captions(path: Path, stamp: tuple[int, int]) -> list[str]:
    store = FeatureStore(path)
    lines = []
    for latent, (tokens, cluster) in enumerate(
        zip(store.table["peak_tokens"].to_pylist(), store.table["cluster"].to_pylist(), strict=True)
    ):
        near = "" if cluster is None else f" · cluster {cluster}: {', '.join(store.clusters[cluster])}"
        lines.append(f"{latent}: {' '.join(dict.fromkeys(tokens))}{near}")
    return lines
