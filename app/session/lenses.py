"""What `sae lens` found out about a run's features, read once: the tokens of its lenses, and how well these predict."""

from pathlib import Path

import streamlit as st

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX as FEATURES
from sae.features.lenses import INDEX, Lenses, lenses_of
from sae.report import lens as report


def sections(store: FeatureStore, latent: int) -> list[report.Section]:
    """Return the lenses of a feature, the one that predicts best first. Damage is reported in the page."""
    row = store.row(latent)
    try:
        found = _lenses(store.path, stamp(store.path / FEATURES), stamp(store.path / INDEX), store)
        if found is not None:
            return report.sections(row, found.of(latent), found.record, report.FEW)
    except RunError as damage:
        error(damage.message, damage.fix)
    return report.sections(row, None, None, report.FEW)


# The stamps are part of the key, so that the result of another `sae lens` shows up, and those of other features do not.
@st.cache_resource(max_entries=4, show_spinner=False)
def _lenses(
    path: Path, features: tuple[int, int], stamp: tuple[int, int], _store: FeatureStore
) -> Lenses | None:
    return lenses_of(_store)
