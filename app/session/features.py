"""The features folders of runs, opened once: their tables, texts, and the labels that people gave."""

from pathlib import Path

import pyarrow as pa
import streamlit as st

from app.session import explanations, lenses
from app.session.runs import from_store, stamp
from app.widgets import Missing
from sae.features.feature import FeatureStore, describer, features_of
from sae.features.folder import INDEX
from sae.features.latent_labels import Label
from sae.features.lenses import INDEX as LENS
from sae.report import features as features_report
from sae.report.feature import Describe
from sae.runs.run import Run


def collected(run: Run) -> bool:
    """Return whether the run has a features folder."""
    return _index(run).exists()


def of(run: Run) -> FeatureStore:
    """Return the run's features.

    Raises Missing when they have not been collected, RunError when they are damaged or of other weights than the run has now."""
    if not collected(run) and not run.finished:
        why = f"{run.path.name} has not finished training. Features can be collected after that."
        raise Missing("No features yet", why, run.resume)
    if not collected(run):
        why = "Nobody has collected what its features fire on."
        if not run.record.imported:
            why = f"{run.path.name} is trained, but nobody has collected what its features fire on."
        raise Missing("No features yet", *from_store("features", run, why))
    return _features(run.path, run.digest if run.finished else None, stamp(_index(run)), run)


def identity(run: Run) -> tuple[str, str]:
    """Return the hashes of the run's weights and features, by which what was made of them is not taken for that of others under
    the same name; empty where there are none. Raises RunError when either is damaged."""
    return run.digest if run.finished else "", of(run).digest if collected(run) else ""


def table(store: FeatureStore) -> pa.Table:
    """Return the table of all features as the Features page shows it."""
    return _table(store.path, _table_stamps(store), store, lenses.raised(store))


def haystack(store: FeatureStore) -> features_report.Haystack:
    """Return the text of each feature that is searched for words."""
    return _haystack(store.path, _table_stamps(store), store, table(store))


def live(store: FeatureStore) -> list[int]:
    """Return the features that fire."""
    return store.table["density"].to_numpy().nonzero()[0].tolist()


def labels(store: FeatureStore) -> dict[int, Label]:
    """Return all labels and notes of the run as they are now."""
    return _labels(store.labels.path, stamp(store.labels.path), store)


def label(store: FeatureStore, latent: int) -> Label:
    """Return one feature's label and note; both are empty where nobody gave one."""
    return labels(store).get(latent, Label())


def lists(store: FeatureStore) -> dict[str, dict[int, str]]:
    """Return all lists of the run's features as they are now: by name, the notes by feature."""
    return _lists(store.lists.path, stamp(store.lists.path), store)


def labels_and_tokens(store: FeatureStore) -> Describe:
    """Return a function from a feature to its label, or else its rule, and the tokens it fires most on."""
    return describer(store, labels(store), explanations.names(store))


def _table_stamps(store: FeatureStore) -> tuple[object, ...]:
    """Return what tells whether the table of all features has changed: it shows the lens that predicts best."""
    return stamp(store.path / INDEX), stamp(store.path / LENS)


def _index(run: Run) -> Path:
    return run.path / "features" / INDEX


# The stamp is part of each key, so that the result of another `sae features` shows up; old entries are dropped.
@st.cache_resource(max_entries=4, show_spinner="Opening features")
def _features(path: Path, digest: str | None, stamp: tuple[int, int], _run: Run) -> FeatureStore:
    return features_of(_run) if digest else FeatureStore(path / "features")


@st.cache_resource(max_entries=4, show_spinner="Reading features")
def _table(
    path: Path, stamps: tuple[object, ...], _store: FeatureStore, _raised: pa.ChunkedArray | None
) -> pa.Table:
    return features_report.features(_store.table, _raised)


@st.cache_resource(max_entries=4, show_spinner="Reading features")
def _haystack(
    path: Path, stamps: tuple[object, ...], _store: FeatureStore, _table: pa.Table
) -> features_report.Haystack:
    return features_report.haystack(_table, _store.texts)


@st.cache_resource(max_entries=8, show_spinner=False)
def _labels(path: Path, stamp: tuple[int, int], _store: FeatureStore) -> dict[int, Label]:
    return _store.labels.all()


@st.cache_resource(max_entries=8, show_spinner=False)
def _lists(path: Path, stamp: tuple[int, int], _store: FeatureStore) -> dict[str, dict[int, str]]:
    return _store.lists.all()
