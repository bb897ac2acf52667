"""Estimates of the geometry of a cloud of points, in float64: its intrinsic dimension, and how linear the map to another is."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from activations.geometry.records import Interval

KEPT = 0.9  # share of the ratios that TwoNN fits: the largest tenth is noise (Facco et al. 2017)
RESAMPLES = 1000
BLOCK = 1024  # points whose distances to all others are held at once
ROUNDING = 1e-12  # an eigenvalue below this share of the largest is rounding
Vector = NDArray[np.float64]


def nearest_distances(points: Float[Tensor, "n D"], k: int) -> NDArray[np.float64]:
    """Return the distances [n, k] of each of n distinct points to its k nearest others, ascending, in float64.

    The products of all pairs are computed, so that the time grows with n^2 D; a block of 1024 n distances is held."""
    points = points.double()
    points = points - points.mean(0)  # distances are differences of squares: smaller ones round less
    squares = points.square().sum(1)
    rows = []
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squares[block, None] + squares - 2 * points[block] @ points.T
        itself = torch.arange(len(distances))
        distances[itself, itself + start] = torch.inf
        rows.append(distances.topk(k, largest=False).values.clamp_min(0).sqrt())
    return torch.cat(rows).numpy()


def two_nn(log_ratios: Vector) -> float:
    """Return the TwoNN estimate of intrinsic dimension from log(r2 / r1) of each point, sorted ascending.

    r1 and r2 are the distances to the two nearest points. Locally the points are assumed to have a constant density: the
    ratio then has the distribution function F(r) = 1 - r^-d. d is the slope of -log(1 - F) against log r through the origin,
    without the tenth of points with the largest ratios. Facco et al. 2017, arXiv:1803.06992."""
    n = len(log_ratios)
    kept = int(KEPT * n)
    x, y = log_ratios[:kept], -np.log1p(-np.arange(1, kept + 1) / n)
    return float(x @ y / (x @ x))


def inverse_dimensions(distances: NDArray[np.float64]) -> Vector:
    """Return for each point the inverse of its maximum-likelihood dimension, from its distances [n, k] to its k nearest.

    It is the mean of log(T_k / T_j) over j < k, where T_j is the distance to the j-th nearest. Levina and Bickel 2004,
    equation 8. The dimension of the cloud is the inverse of the mean of these (MacKay and Ghahramani 2005), because a mean of
    the points' dimensions would be governed by the few largest."""
    return np.log(distances[:, -1:] / distances[:, :-1]).mean(1)


def dimensions(
    distances: NDArray[np.float64], windows: NDArray[np.int64], seed: int = 0
) -> tuple[Interval, Interval]:
    """Return the intrinsic dimension by TwoNN and by maximum likelihood, from the distances [n, k] to the k nearest points.

    The 95 % intervals are of a bootstrap: the windows that the points are from, given by number [n], are drawn with
    replacement 1000 times, because tokens of one window are not independent. Each point keeps its neighbours. The interval
    therefore tells how the estimate varies with the text, not how far it is from the true dimension."""
    ratios = np.log(distances[:, 1] / distances[:, 0])
    order = np.argsort(ratios, kind="stable")
    ratios, inverse = ratios[order], inverse_dimensions(distances)
    _, window = np.unique(windows, return_inverse=True)
    n_windows = int(window.max()) + 1
    rng = np.random.default_rng(seed)
    by_ratio, by_likelihood = [], []
    for _ in range(RESAMPLES):
        drawn = rng.multinomial(n_windows, np.full(n_windows, 1 / n_windows))[window]
        by_ratio.append(two_nn(np.repeat(ratios, drawn[order])))
        by_likelihood.append(drawn.sum() / (drawn @ inverse))
    return (
        Interval(two_nn(ratios), *_percentiles(by_ratio)),
        Interval(float(1 / inverse.mean()), *_percentiles(by_likelihood)),
    )


def _percentiles(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def participation(eigenvalues: Float[Tensor, "D"]) -> float | None:
    """Return the participation ratio of a covariance, (sum of eigenvalues)^2 / sum of their squares; None where all are 0.

    It is D where the variance is the same in all directions and 1 where there is a single one."""
    squares = eigenvalues.square().sum().item()
    return eigenvalues.sum().item() ** 2 / squares if squares else None


def linearity(
    values: Float[Tensor, "D"], vectors: Float[Tensor, "D D"], xy: Float[Tensor, "D E"], y_square: float
) -> tuple[float, float | None]:
    """Return how linear the map from X to Y is, and that from X to Y - X (None where their widths differ or they are equal).

    Both are 1 - min_A |X A - Y|^2 for X and Y centred and divided by their Frobenius norms: 1 is a linear map, 0 means that
    X tells nothing of Y linearly. Razzhigaev et al. 2024, "Your Transformer is Secretly Linear", arXiv:2405.12250; the second
    is that of the residual stream's update, without the stream itself. Given are the eigenvalues, ascending, and eigenvectors of
    X^T X, the product X^T Y and the sum of squares of Y, all of centred rows. `y_square` must not be 0."""
    kept = values > ROUNDING * values[-1]
    explained = ((vectors[:, kept].T @ xy).square().sum(1) / values[kept]).sum().item()
    stream = explained / y_square
    if len(xy) != xy.shape[1]:
        return stream, None
    # A fits Y exactly as well as A - 1 fits Y - X, so that the error is the same and only the scale differs
    update_square = values.sum().item() + y_square - 2 * xy.trace().item()
    if update_square <= ROUNDING * y_square:
        return stream, None
    return stream, 1 - (y_square - explained) / update_square
