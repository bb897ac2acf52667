"""Ratios of sums with bootstrap intervals over documents, because tokens of one document are not independent."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Estimate:
    """Return the sum of numerators over the sum of denominators, both given per document, with a bootstrap interval.

    Documents are resampled with replacement 1000 times; the interval lies between the 2.5th and the 97.5th percentile of
    the resampled ratios, leaving out those whose denominator is 0. With a single document low = high = value, because
    nothing is known about the spread. Efron 1979, "Bootstrap Methods"."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = above.sum() / below.sum()
    # A resample is fully described by how often each document was drawn, so that all of them are two matrix products:
    # about a hundred times faster than scipy's general bootstrap
    counts = np.random.default_rng(seed).multinomial(
        len(above), np.full(len(above), 1 / len(above)), RESAMPLES
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (counts @ above) / (counts @ below)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
