"""FeatureStore: what `sae features` collected about a run's latents, opened for the app and for notebooks."""

from sae.features.feature import Feature
from sae.features.folder import FeaturesFolder


class FeatureStore(FeaturesFolder):
    """A features folder, opened (see `FeaturesFolder`); `feature` gives one latent with everything that is known about it."""

    def feature(self, latent: int) -> Feature:
        """Return one latent's row, examples, histogram, partners, effect and label. Raises RunError for a number out of range."""
        self.check_latent(latent)
        return Feature(self, latent)
