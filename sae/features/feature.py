"""One latent of a features folder with everything known about it; a notebook shows it as a card."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sae.features.effects import Effect, load_effect
from sae.features.latent_labels import Label

if TYPE_CHECKING:
    from sae.features.store import Band, Example, FeatureStore, Histogram, Partner


@dataclass(frozen=True)
class Feature:
    """One latent of a `FeatureStore`, whose methods document each part. Every part is read when it is accessed."""

    store: "FeatureStore"
    latent: int

    def __repr__(self) -> str:
        return f"Feature({str(self.store.path)!r}, {self.latent})"

    @cached_property
    def row(self) -> dict[str, Any]:
        """Its row of the table, by column."""
        return self.store.row(self.latent)

    @property
    def strongest(self) -> "list[Example]":
        """Windows with its largest positive values, best first."""
        return self.store.strongest(self.latent)

    @property
    def most_negative(self) -> "list[Example]":
        """Windows with its most negative values, best first."""
        return self.store.strongest(self.latent, -1)

    @property
    def bands(self) -> "list[Band]":
        """Windows drawn uniformly from all in which it fires, in five bands by value."""
        return self.store.bands(self.latent)

    @property
    def histogram(self) -> "Histogram":
        """Histogram of its nonzero values."""
        return self.store.histogram(self.latent)

    @property
    def partners(self) -> "list[Partner]":
        """Latents that fire on the same tokens."""
        return self.store.partners(self.latent)

    @property
    def effect(self) -> Effect | None:
        """Its measured effect on the model's predictions; None where it has not been measured."""
        return load_effect(self.store, self.latent)

    @property
    def label(self) -> Label:
        """The label and note that people gave it, read from the disk anew; both empty where there are none."""
        return self.store.labels.get(self.latent)

    def _repr_html_(self) -> str:
        from sae.features.html_page import notebook

        return notebook(self)
