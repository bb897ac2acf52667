"""The bootstrap over documents: intervals of a ratio of sums, and of the difference between two ratios on the same documents."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    value, resampled = _resampled(numerators, denominators, seed)
    return _estimate(value, resampled)


def difference(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> Estimate:
    """Return the first ratio minus the second with a paired bootstrap interval: each resample draws the same documents for both.

    Each is (numerators, denominators) as `ratio` takes them, over the same documents in the same order."""
    (value, resampled), (other, others) = (_resampled(*sums, seed) for sums in (first, second))
    return _estimate(value - other, resampled - others)


def _resampled(
    numerators: ArrayLike, denominators: ArrayLike, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """Return a ratio, and its values in RESAMPLES draws of documents, which depend on the seed and their number alone."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    # A resample is fully described by how often each document was drawn, so that all of them are two matrix products:
    # about a hundred times faster than scipy's general bootstrap
    counts = np.random.default_rng(seed).multinomial(
        len(above), np.full(len(above), 1 / len(above)), RESAMPLES
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(above.sum() / below.sum()), (counts @ above) / (counts @ below)


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
