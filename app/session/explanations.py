"""The rules that explain features (`sae explain`), read once: in the tables, as names of features without a label, on a feature's page."""

from pathlib import Path

import pyarrow as pa
import streamlit as st

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.features.explanations import INDEX, Explanations, explanations_of
from sae.features.feature import FeatureStore
from sae.report import explanations as report
from sae.report import features as features_report


def of(store: FeatureStore) -> Explanations | None:
    """Return what explains these features; None where they have not been explained. Damage is reported in the page."""
    try:
        return _explanations(store.path, stamp(store.path / INDEX), store)
    except RunError as damage:
        error(damage.message, damage.fix)
        return None


def names(store: FeatureStore) -> dict[int, str]:
    """Return the rules that are good enough to stand for a label, by feature."""
    found = of(store)
    return {} if found is None else found.names


def with_explanations(table: pa.Table, store: FeatureStore) -> pa.Table:
    """Add the columns of rules to the table of all features, where there are rules."""
    found = of(store)
    return table if found is None else features_report.with_explanations(table, found.texts, found.f1)


def head(store: FeatureStore, latent: int) -> str:
    """Return a feature's rules with their scores as HTML; empty where it has none."""
    found = of(store)
    return "" if found is None else report.head(found.of(latent), report.beside(found.record))


# The stamp is part of the key, so that the result of another `sae explain` shows up.
@st.cache_resource(max_entries=4, show_spinner=False)
def _explanations(path: Path, stamp: tuple[int, int], _store: FeatureStore) -> Explanations | None:
    return explanations_of(_store)
