"""Fit the scaling laws of SAEs: loss by width and sparsity, L(N, K), and loss by compute, L(C).

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, sections 3.1 and 3.2. Errors are multiplicative:
both laws are fitted to the logarithm of the loss by least squares."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from activations.errors import ConfigError

Array = NDArray[np.float64]
T = TypeVar("T")
JOINT = ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")
"""Constants of L(N, K), in the order of the arrays below."""
COMPUTE = ("a", "b")
"""Constants of L(C)."""
FEWEST_RUNS = 9  # for six constants
FEWEST_LEVELS = 3  # of widths and of L0: a power law with a constant has three unknowns
FEWEST_ON_FRONTIER = 4  # for two constants
APART = 1.2  # ratio from which on two widths, or two L0, are two levels
SPREAD = 4.0  # least ratio of the largest compute to the smallest
RESAMPLES = 500
STARTS = 24
WEAK = 1e-6
"""Weight of the pull on the irreducible term towards a seventh of the loss at every L0, per unit of its two constants: far too weak
to be seen in a fit, and enough to stop a term that the runs do not show from drifting to minus infinity."""


@dataclass(frozen=True)
class Fit:
    """The constants of a law with what bootstrap resamples of the runs give for them."""

    constants: Array
    """The constants [p], in the order of JOINT or COMPUTE."""
    resampled: Array
    """The constants of each resample [RESAMPLES, p]."""
    spread: float
    """Standard deviation of the runs around the law, as a share of the loss."""

    def interval(self, function: Callable[[Array], ArrayLike]) -> tuple[Array, Array]:
        """Return the 95 % interval of a function of the constants: percentiles 2.5 and 97.5 over the resamples.

        `function` takes constants [..., p] and returns an array whose first axes are theirs."""
        low, high = np.percentile(np.asarray(function(self.resampled), np.float64), [2.5, 97.5], axis=0)
        return low, high


def joint_loss(constants: ArrayLike, n: ArrayLike, k: ArrayLike) -> Array:
    """Return exp(alpha + beta_k log k + beta_n log n + gamma log k log n) + exp(zeta + eta log k).

    `constants` [..., 6] in the order of JOINT broadcast against n and k: for several of them give shape [..., 1, 6]."""
    alpha, beta_k, beta_n, gamma, zeta, eta = np.moveaxis(np.asarray(constants, np.float64), -1, 0)
    log_n, log_k = np.log(n), np.log(k)
    reducible = np.exp(alpha + beta_k * log_k + beta_n * log_n + gamma * log_k * log_n)
    return np.asarray(reducible + np.exp(zeta + eta * log_k))


def compute_loss(constants: ArrayLike, flops: ArrayLike) -> Array:
    """Return exp(a + b log C), `constants` [..., 2] in the order of COMPUTE, broadcast as in `joint_loss`."""
    a, b = np.moveaxis(np.asarray(constants, np.float64), -1, 0)
    return np.exp(a + b * np.log(flops))


def fit_joint(n: ArrayLike, k: ArrayLike, loss: ArrayLike, seed: int = 0) -> Fit:
    """Fit L(N, K) to runs of `n` latents of which `k` fire on a token, with losses above 0; all [runs].

    The smallest sum of squared errors of the log loss over STARTS starts, which differ in how much of the loss is irreducible and
    are drawn with `seed`. Resamples add residuals to the fitted log losses (see `_resampled`).
    Raises ConfigError for fewer than FEWEST_RUNS runs, or fewer than FEWEST_LEVELS widths or L0s a ratio of APART from each other."""
    n, k, log_loss = (np.asarray(values, np.float64) for values in (n, k, np.log(loss)))
    _refuse_too_few(n, k)
    middle = np.array([np.log(n).mean(), np.log(k).mean()])
    # About their means the constants are nearly uncorrelated, which makes the fit well-conditioned.
    u, v = np.log(n) - middle[0], np.log(k) - middle[1]
    level = float(log_loss.mean())
    rng = np.random.default_rng(seed)
    starts = [_start(u, v, log_loss, share, rng.normal(0, 0.2)) for share in np.linspace(0.04, 0.96, STARTS)]
    fits = [_least_squares(u, v, log_loss, level, start) for start in starts]
    best = min(fits, key=lambda fit: fit[1])[0]

    def refit(log_loss: Array) -> Array:
        return _least_squares(u, v, log_loss, level, best, 1e-7)[0]

    fitted = _log_joint(best, u, v)[0]
    resampled, spread = _resampled(fitted, log_loss - fitted, len(JOINT), refit, rng)
    return Fit(_uncentred(best, *middle), _uncentred(resampled, *middle), spread)


def fit_compute(flops: ArrayLike, loss: ArrayLike, seed: int = 0) -> Fit:
    """Fit L(C) to runs on the frontier, which took `flops` operations to train; both [runs].

    Raises ConfigError for fewer than FEWEST_ON_FRONTIER runs, or where the largest compute is not SPREAD times the smallest."""
    flops, log_loss = np.asarray(flops, np.float64), np.log(np.asarray(loss, np.float64))
    if len(flops) < FEWEST_ON_FRONTIER or flops.max() < SPREAD * flops.min():
        ratio = flops.max() / flops.min() if len(flops) else 0.0
        raise ConfigError(
            f"{len(flops)} runs on the frontier, whose compute differs by a factor of {ratio:.3g}: needed are "
            f"{FEWEST_ON_FRONTIER} and a factor of {SPREAD:g}"
        )
    log_flops = np.log(flops)
    columns = np.stack([np.ones_like(log_flops), log_flops - log_flops.mean()], 1)

    def solve(log_loss: Array) -> Array:
        level, slope = np.linalg.lstsq(columns, log_loss, rcond=None)[0]
        return np.array([level - slope * log_flops.mean(), slope])

    best = solve(log_loss)
    fitted = np.log(compute_loss(best, flops))
    resampled, spread = _resampled(
        fitted, log_loss - fitted, len(COMPUTE), solve, np.random.default_rng(seed)
    )
    return Fit(best, resampled, spread)


def frontier(flops: Sequence[float], loss: Sequence[float]) -> list[int]:
    """Return the indices of the runs on the frontier, by rising compute: no other run has a loss as low for as little compute."""
    order = sorted(range(len(flops)), key=lambda run: (flops[run], loss[run]))
    best, on_frontier = np.inf, []
    for run in order:
        if loss[run] < best:
            best = loss[run]
            on_frontier.append(run)
    return on_frontier


def levels(values: ArrayLike) -> int:
    """Return how many levels values have (`by_level`)."""
    return len(by_level(np.asarray(values, np.float64).tolist(), float))


def by_level(items: Iterable[T], of: Callable[[T], float]) -> list[list[T]]:
    """Return items by levels of a number `of` each that is not below 0, rising.

    A level begins at an item whose number is at least APART times that of the first item of the level before."""
    groups: list[list[T]] = []
    for item in sorted(items, key=of):
        if not groups or (of(item) > of(groups[-1][0]) and of(item) >= APART * of(groups[-1][0])):
            groups.append([])
        groups[-1].append(item)
    return groups


def _refuse_too_few(n: Array, k: Array) -> None:
    there = {"runs": len(n), "widths": levels(n), "L0s": levels(k)}
    needed = {"runs": FEWEST_RUNS, "widths": FEWEST_LEVELS, "L0s": FEWEST_LEVELS}
    if any(there[what] < needed[what] for what in needed):
        counts = ", ".join(f"{count} {what}" for what, count in there.items())
        raise ConfigError(
            f"too few runs for six constants: {counts}; needed are {FEWEST_RUNS} runs, of {FEWEST_LEVELS} widths and "
            f"{FEWEST_LEVELS} L0s at least, each {APART:g} times the next smaller one"
        )


def _log_joint(theta: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Return the log of L(N, K) with centred constants [runs], and its derivatives by them [runs, 6]."""
    reducible = theta[0] + theta[1] * v + theta[2] * u + theta[3] * u * v
    irreducible = theta[4] + theta[5] * v
    total = np.logaddexp(reducible, irreducible)
    share = np.exp(reducible - total)
    rest = np.exp(irreducible - total)
    return total, np.stack([share, share * v, share * u, share * u * v, rest, rest * v], 1)


def _start(u: Array, v: Array, log_loss: Array, share: float, tilt: float) -> Array:
    """Return centred constants to start from: a share of the smallest loss is irreducible, and the rest fits without error."""
    irreducible = np.minimum(np.log(share) + log_loss.min() + tilt * v, log_loss - 0.05)
    rest = log_loss + np.log1p(-np.exp(irreducible - log_loss))
    columns = np.stack([np.ones_like(u), v, u, u * v], 1)
    reducible = np.linalg.lstsq(columns, rest, rcond=None)[0]
    return np.array([*reducible, np.log(share) + log_loss.min(), tilt])


def _least_squares(
    u: Array, v: Array, log_loss: Array, level: float, start: Array, tolerance: float = 1e-12
) -> tuple[Array, float]:
    """Return the centred constants of the nearest minimum, and its sum of squares."""
    prior, pull = np.array([level - 2.0, 0.0]), np.eye(6)[4:] * WEAK

    def jacobian(theta: Array) -> Array:
        return np.vstack([_log_joint(theta, u, v)[1], pull])

    found = least_squares(
        lambda theta: np.append(_log_joint(theta, u, v)[0] - log_loss, (theta[4:] - prior) * WEAK),
        start,
        jac=cast(Any, jacobian),  # scipy's types know its names for differences only
        method="lm",
        xtol=tolerance,
        ftol=tolerance,
        gtol=tolerance,
        max_nfev=150,
    )
    return found.x, float(found.cost)


def _uncentred(theta: Array, mean_n: float, mean_k: float) -> Array:
    """Return the constants of JOINT from those about the means of log n and log k, [..., 6]."""
    a, k, n, c, z, e = np.moveaxis(theta, -1, 0)
    alpha = a - k * mean_k - n * mean_n + c * mean_k * mean_n
    return np.stack([alpha, k - c * mean_n, n - c * mean_k, c, z - e * mean_k, e], -1)


def _resampled(
    fitted: Array,
    residuals: Array,
    constants: int,
    refit: Callable[[Array], Array],
    rng: np.random.Generator,
) -> tuple[Array, float]:
    """Return the constants of RESAMPLES fits [RESAMPLES, p], and the standard deviation of the runs around the law.

    Each is fitted to the law's own values with residuals drawn with replacement. Residuals of a fit are smaller than errors, and
    their scale is itself uncertain: they are enlarged by sqrt(runs / (runs - p)) and by the chi-square factor that turns a
    normal interval into Student's, without which a few runs give intervals that are too short. Whole runs are not drawn, because
    a draw would often lack a width. Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 9.4."""
    runs = len(fitted)
    free = runs - constants
    enlarged = residuals * np.sqrt(runs / free)
    spread = float(np.sqrt(np.sum(residuals**2) / free))
    drawn = rng.choice(enlarged, (RESAMPLES, runs)) * np.sqrt(free / rng.chisquare(free, (RESAMPLES, 1)))
    return np.stack([refit(fitted + errors) for errors in drawn]), spread
