"""Find latents that fire with both signs, as AbsTopK allows: one latent for two opposites (arXiv:2510.00404)."""

from typing import NamedTuple

from sae.features.folder import FeaturesFolder


class Bidirectional(NamedTuple):
    """Counts of one latent's firings with either sign; `FeaturesFolder.strongest(latent, sign)` gives its examples."""

    latent: int
    positive: int
    """Firings above zero."""
    negative: int
    """Firings below zero."""

    @property
    def rarer_share(self) -> float:
        """Share of its firings that have the rarer sign, from 0 to 0.5."""
        return min(self.positive, self.negative) / (self.positive + self.negative)


def bidirectional(
    features: FeaturesFolder, least_share: float = 0.1, least_firings: int = 10
) -> list[Bidirectional]:
    """Return the latents whose rarer sign has at least `least_share` of their firings, and at least `least_firings`.

    The most balanced come first, then those that fire more often. The list is empty where codes cannot be negative. A latent
    that uses both signs need not stand for two opposites: whether its examples do is for a reader to judge."""
    table = features.table.select(["latent", "fired", "positive_share"]).to_pylist()
    both_signs = []
    for row in table:
        positive = round(row["fired"] * (row["positive_share"] or 0.0))
        use = Bidirectional(row["latent"], positive, row["fired"] - positive)
        if min(use.positive, use.negative) >= max(least_firings, 1) and use.rarer_share >= least_share:
            both_signs.append(use)
    return sorted(both_signs, key=lambda use: (-use.rarer_share, -use.positive - use.negative, use.latent))
