"""Intervals: of a ratio of sums, or of the difference of two, by the bootstrap over documents; of a share of trials, by Wilson's formula."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
Z = 1.959963984540054  # of a 95 % interval


class Estimate(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Estimate:
    """Return the sum of numerators over the sum of denominators, both given per document, with a bootstrap interval.

    Documents are resampled with replacement 1000 times; the interval lies between the 2.5th and the 97.5th percentile of
    the resampled ratios, leaving out those whose denominator is 0. With a single document low = high = value, though nothing is
    known about the spread: whoever shows the interval says so. Efron 1979, "Bootstrap Methods"."""
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
    counts = draws(len(above), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(above.sum() / below.sum()), (counts @ above) / (counts @ below)


def draws(n_documents: int, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each document is drawn in each of RESAMPLES resamples, [RESAMPLES, n]; the sums of a resample are a product with it.

    A resample is fully described by these counts, so that all of them are one matrix product: about a hundred times faster than
    scipy's general bootstrap."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), RESAMPLES)
    return counts.astype(np.float64)


def limits(resampled: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 95 % interval of each column of [RESAMPLES, …]. Resamples without a finite value, as those whose denominator
    is 0, are left out; a column of nothing else has NaN."""
    ends, finite = [2.5, 97.5], np.isfinite(resampled)
    # nanpercentile goes column by column, which takes a hundred times as long
    if finite.all():
        low, high = np.percentile(resampled, ends, axis=0)
        return low, high
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of columns of NaN
        low, high = np.nanpercentile(np.where(finite, resampled, np.nan), ends, axis=0)
    return low, high


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = limits(resampled)
    return Estimate(value, float(low), float(high))


def wilson(share: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of Wilson's 95 % interval of shares of n trials, which need not be whole numbers; 0 and 1 for no trials. Wilson 1927."""
    share, n = np.asarray(share, np.float64), np.asarray(n, np.float64)
    trials = np.maximum(n, 1.0)
    half = Z * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    middle, scale = share + Z**2 / (2 * trials), 1 + Z**2 / trials
    low, high = (np.clip((middle + sign * half) / scale, 0.0, 1.0) for sign in (-1, 1))
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)
