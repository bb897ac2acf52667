"""Ratios of sums with bootstrap intervals over documents: tokens of one document are not independent."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 1000


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Estimate:
    """Sum of numerators over sum of denominators, both given per document, and where it lies in 95 % of resamples.

    Documents are drawn with replacement, 1000 times; the interval is between the 2.5th and the 97.5th
    percentile. With one document low = high = value: nothing is known of the spread. Efron 1979."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = above.sum() / below.sum()
    # a resample is how often each document was drawn
    drawn = np.random.default_rng(seed).multinomial(len(above), np.full(len(above), 1 / len(above)), DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (drawn @ above) / (drawn @ below)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
