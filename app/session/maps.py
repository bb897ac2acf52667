"""The map of a run's features: places, colours, the names of clusters, and a line about each feature. Worked out once."""

from pathlib import Path

import numpy as np
import streamlit as st

from app.session import explanations, meanings
from app.session.runs import stamp
from sae.features.cluster_names import cluster_names
from sae.features.explanations import INDEX as EXPLAINED
from sae.features.explanations import Explanations
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX
from sae.features.meaning import FILE, Meanings
from sae.report import feature_map
from sae.report.charts import plain_text

Stamps = tuple[tuple[int, int], ...]


def mapped(store: FeatureStore) -> bool:
    """Return whether the features have a map."""
    return "map_x" in store.table.column_names


def places(store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each feature on the map, NaN for a feature without a place."""
    x, y = (store.table[name].to_numpy().astype(float) for name in ("map_x", "map_y"))
    return x, y


def colours(store: FeatureStore, by_cluster: bool) -> np.ndarray:
    """Return the number of the colour of each feature's cluster, or each feature's density."""
    if not by_cluster:
        return store.table["density"].to_numpy()
    return _colours(store.path, stamp(store.path / INDEX), store)


def captions(store: FeatureStore) -> list[str]:
    """Return a line about each feature, as plain text: its number, peak tokens, and the number and name of its cluster."""
    return _captions(store.path, _stamps(store), store, _named(store))


def labels(store: FeatureStore) -> list[tuple[float, float, str]]:
    """Return the names of the largest clusters with their places on the map."""
    return _labels(store.path, _stamps(store), store, _named(store))


def _named(store: FeatureStore) -> dict[int, list[str]]:
    """Return the names of clusters. Damage is reported in the page, and not inside what is cached, which would report it again."""
    return _names(store.path, _stamps(store), store, meanings.of(store), explanations.of(store))


def _stamps(store: FeatureStore) -> Stamps:
    """Return what tells the state of the files that names come from."""
    return tuple(stamp(store.path / name) for name in (INDEX, FILE, EXPLAINED))


# The stamps are part of each key, so that names change as rules or words are there.
@st.cache_resource(max_entries=4, show_spinner="Naming clusters")
def _names(
    path: Path,
    stamps: Stamps,
    _store: FeatureStore,
    _known: Meanings | None,
    _explained: Explanations | None,
) -> dict[int, list[str]]:
    return cluster_names(_store, _known, _explained)


@st.cache_resource(max_entries=4, show_spinner=False)
def _labels(
    path: Path, stamps: Stamps, _store: FeatureStore, _named: dict[int, list[str]]
) -> list[tuple[float, float, str]]:
    clusters = _store.table["cluster"].to_pylist()
    return feature_map.labels(places(_store), clusters, _named)


@st.cache_resource(max_entries=4, show_spinner=False)
def _colours(path: Path, stamp: tuple[int, int], _store: FeatureStore) -> np.ndarray:
    return feature_map.cluster_colours(places(_store), _store.table["cluster"].to_pylist())


@st.cache_resource(max_entries=4, show_spinner=False)
def _captions(path: Path, stamps: Stamps, _store: FeatureStore, _named: dict[int, list[str]]) -> list[str]:
    table = _store.table
    lines = []
    for latent, (tokens, cluster) in enumerate(
        zip(table["peak_tokens"].to_pylist(), table["cluster"].to_pylist(), strict=True)
    ):
        name = ": ".join(filter(None, [f"cluster {cluster}", ", ".join(_named.get(cluster, ()))]))
        near = "" if cluster is None else f" · {name}"
        lines.append(plain_text(f"{latent}: {' '.join(dict.fromkeys(tokens))}{near}"))
    return lines
