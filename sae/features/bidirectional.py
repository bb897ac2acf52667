"""Latents that fire with both signs: one latent for two opposites, as AbsTopK allows (arXiv:2510.00404)."""

from typing import NamedTuple

from sae.features.store import FeatureStore


class Bidirectional(NamedTuple):
    """How one latent uses its two signs; `FeatureStore.strongest(latent, sign)` shows either."""

    latent: int
    positive: int
    """Firings above zero."""
    negative: int
    """Firings below zero."""

    @property
    def rarer_share(self) -> float:
        """Share of its firings that have the rarer sign, at most a half."""
        return min(self.positive, self.negative) / (self.positive + self.negative)


def bidirectional(
    features: FeatureStore, least_share: float = 0.1, least_firings: int = 10
) -> list[Bidirectional]:
    """The latents whose rarer sign has at least this share of their firings, and this number of them.

    Most balanced first, then those that fire more often. None where codes cannot be negative. Use of both signs
    does not make two opposites: whether the examples of either sign are, is for a reader to judge."""
    table = features.table.select(["latent", "fired", "positive_share"]).to_pylist()
    found = []
    for row in table:
        positive = round(row["fired"] * (row["positive_share"] or 0.0))
        one = Bidirectional(row["latent"], positive, row["fired"] - positive)
        if min(one.positive, one.negative) >= max(least_firings, 1) and one.rarer_share >= least_share:
            found.append(one)
    return sorted(found, key=lambda one: (-one.rarer_share, -one.positive - one.negative, one.latent))
