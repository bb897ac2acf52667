"""The families of runs' features (`sae families`), read once for each state of the file."""

from pathlib import Path

import streamlit as st

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.features.families import INDEX, Families, families_of
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX as FEATURES


def of(store: FeatureStore) -> Families | None:
    """Return the families of these features; None where they have not been looked for. Damage is reported in the page."""
    try:
        found = _families(store.path, stamp(store.path / FEATURES), stamp(store.path / INDEX), store)
        if found is not None:
            _ = found.table  # reads and checks it, so that whatever is damaged is told here
        return found
    except RunError as damage:
        error(damage.message, damage.fix)
        return None


# The stamps are part of the key, so that the result of another `sae families` shows up, and those of other features do not.
@st.cache_resource(max_entries=4, show_spinner=False)
def _families(
    path: Path, features: tuple[int, int], stamp: tuple[int, int], _store: FeatureStore
) -> Families | None:
    return families_of(_store)
