"""What commands keep beside a run's features, such as rules, lenses and families, read once for each state of the files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX

T = TypeVar("T")


def kept(store: FeatureStore, name: str, read: Callable[[FeatureStore], T | None]) -> T | None:
    """Return what `read` makes of the file `name` of a features folder, or None, as `opened` does. Damage is reported in the page."""
    return reported(lambda: opened(store, name, read))


def reported(read: Callable[[], T | None]) -> T | None:
    """Return what `read` returns; where it raises RunError, report that in the page and return None."""
    try:
        return read()
    except RunError as damage:
        error(damage.message, damage.fix)
        return None


def opened(store: FeatureStore, name: str, read: Callable[[FeatureStore], T | None]) -> T | None:
    """Return what `read` makes of the file `name` of a features folder; None where it finds nothing of these features.

    Raises RunError when the file is damaged."""
    return _read(store.path, stamp(store.path / INDEX), name, stamp(store.path / name), store, read)


# The stamps are part of the key, so that a file that a command writes shows up, and one of features collected before does not.
@st.cache_resource(max_entries=16, show_spinner=False)
def _read(
    path: Path,
    features: tuple[int, int],
    name: str,
    stamp: tuple[int, int],
    _store: FeatureStore,
    _read: Callable[[FeatureStore], Any],
) -> Any:
    return _read(_store)
