"""The families of runs' features (`sae families`)."""

from app.session import beside
from sae.features.families import INDEX, Families, families_of
from sae.features.feature import FeatureStore


def of(store: FeatureStore) -> Families | None:
    """Return the families of these features; None where they have not been looked for. Damage is reported in the page."""
    return beside.kept(store, INDEX, _whole)


def _whole(store: FeatureStore) -> Families | None:
    """Return the families with their table read, so that damage to either file is told once, here."""
    found = families_of(store)
    if found is not None:
        _ = found.table
    return found
