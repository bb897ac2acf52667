"""What `sae lens` found out about a run's features: the tokens of its lenses, and how well these predict."""

import pyarrow as pa

from activations.errors import RunError
from app.session import beside
from app.widgets import error
from sae.features.feature import FeatureStore
from sae.features.lenses import INDEX, lenses_of
from sae.report import lens as report


def raised(store: FeatureStore) -> pa.ChunkedArray | None:
    """Return the tokens that each feature raises by the Jacobian lens, where that predicts best; None elsewhere. Damage is reported in the page."""

    def read() -> pa.ChunkedArray | None:
        found = beside.opened(store, INDEX, lenses_of)
        return found.table["raised_tokens"] if found is not None and found.record.best == "jacobian" else None

    return beside.reported(read)


def sections(store: FeatureStore, latent: int) -> list[report.Section]:
    """Return the lenses of a feature, the one that predicts best first. Damage is reported in the page."""
    row = store.row(latent)
    try:
        found = beside.opened(store, INDEX, lenses_of)
        if found is not None:
            return report.sections(row, found.of(latent), found.record, report.FEW)
    except RunError as damage:
        error(damage.message, damage.fix)
    return report.sections(row, None, None, report.FEW)
