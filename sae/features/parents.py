"""Find the parent of each latent: a latent that fires where the child fires, and that the child's rows need for their reconstruction.

Cao et al. 2026, "Tree SAE: Learning Hierarchical Feature Structures in Sparse Autoencoders", arXiv:2605.07922, show that coverage
of firings alone gives false parents and ask for a condition on the reconstruction beside it. The formulas here are ours
(docs/feature-families.md)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import betainc

from activations.errors import ConfigError
from activations.progress import Advance, ignore
from sae.evaluation.bootstrap import wilson
from sae.features.firings import Firings

PAIRS_AT_ONCE = 2**22  # of a block of children with all latents, some 100 bytes each where all fire together
MOST_TIMES = 1e6  # the largest ratio of costs that is told
NONE = -1


@dataclass(frozen=True)
class Rules:
    """What makes one latent the parent of another."""

    coverage: float = 0.8
    """Least lower 95 % bound of P(parent fires | child fires). A pair that covers each other so is one feature twice, no family."""
    level: float = 0.05
    """Chance, over all pairs together, that one of them covers so much though it fires independently (Bonferroni)."""
    times: float = 2.0
    """On the child's rows, taking the parent away must cost at least so many times what it costs by chance."""
    share: float = 0.1
    """What it costs there beyond chance must be at least this share of what taking the child itself away costs."""
    matched: int = 20
    """Latents nearest to the parent in frequency whose median cost on the child's rows counts as chance too."""

    def __post_init__(self) -> None:
        for name in ("coverage", "level", "share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie between 0 and 1")
        if not 1 <= self.times <= MOST_TIMES:
            raise ConfigError(f"times = {self.times} must be at least 1 and at most {MOST_TIMES:,.0f}")
        if self.matched < 1:
            raise ConfigError(f"matched = {self.matched} must be at least 1")


class Forest(NamedTuple):
    """For each of F latents its parent, and on how much that rests; counts of the pairs that met each condition."""

    parent: NDArray[np.int64]
    """[F]; -1 for none. Parents fire more often than their children, so that there are no cycles."""
    coverage: NDArray[np.float64]
    """P(parent fires | child fires), [F]; this and the following are NaN without a parent."""
    coverage_low: NDArray[np.float64]
    """Its lower 95 % bound."""
    chance: NDArray[np.float64]
    """P(parent fires): the coverage if both fired independently."""
    times: NDArray[np.float64]
    """How many times what it costs by chance it costs to take the parent away on the child's rows; at most MOST_TIMES."""
    share: NDArray[np.float64]
    """What that costs beyond chance as a share of what it costs to take the child away."""
    candidates: NDArray[np.int64]
    """Latents that meet all conditions of a parent, of which the one that fires most rarely is the parent, [F]."""
    children: int
    """Latents whose firings amount to enough independent windows for a lower bound of `Rules.coverage`."""
    pairs: int
    """Pairs of a child and another latent that were looked at."""
    covered: int
    """Pairs with enough coverage."""
    beyond_chance: int
    """Of these, pairs whose coverage is beyond chance."""
    reconstructed: int
    """Of these, pairs that meet the condition on the reconstruction."""

    @property
    def edges(self) -> int:
        """Number of latents that have a parent."""
        return int((self.parent != NONE).sum())


class Pairs(NamedTuple):
    """Pairs of a child and a latent that may be its parent, as columns; `Forest` says what the numbers are."""

    child: NDArray[np.int64]
    parent: NDArray[np.int64]
    coverage: NDArray[np.float64]
    coverage_low: NDArray[np.float64]
    times: NDArray[np.float64]
    share: NDArray[np.float64]

    def where(self, keep: NDArray[np.bool_]) -> "Pairs":
        """Return the pairs to keep."""
        child, parent, coverage, low, times, share = self
        return Pairs(child[keep], parent[keep], coverage[keep], low[keep], times[keep], share[keep])


def parents(
    firings: Firings, windows: NDArray[np.int64], rules: Rules | None = None, advance: Advance = ignore
) -> Forest:
    """Return the parent of each latent that has one.

    `firings` are all latents', and their values what it costs to take each away: the rise of the row's squared error. `windows` has
    the number of each row's window of text; it does not decrease. Rows of a window are not independent, so that bounds and tests count
    as many trials as the child's firings amount to in independent windows (`effective_windows`).
    On the child's rows, the cost of a latent is its mean there, rows on which it is silent included; its cost by chance is the larger
    of its mean over all rows (as if a latent of the same frequency and sizes fired anywhere) and the median cost, on the child's rows,
    of the latents of the most similar frequencies. `advance` is called with numbers of children. Memory: some 36 bytes a firing, beside
    the 8 of `firings`, and PAIRS_AT_ONCE pairs."""
    rules, n_latents, n_rows = rules or Rules(), len(firings.starts) - 1, len(windows)
    fires, costs = _matrices(firings, n_rows)
    fired = np.diff(firings.starts.numpy())
    trials = effective_windows(firings, windows)
    enough = np.flatnonzero((fired > 0) & (wilson(np.ones(n_latents), trials)[0] >= rules.coverage))
    alive = int((fired > 0).sum())
    pairs = len(enough) * max(alive - 1, 0)
    everywhere = np.asarray(costs.sum(0)).ravel() / n_rows
    alike = similar_frequency(fired, rules.matched)
    by_row, costs_by_row = fires.tocsr(), costs.tocsr()
    found: list[Pairs] = []
    covered = beyond = 0
    for block in np.split(enough, range(0, len(enough), max(1, PAIRS_AT_ONCE // n_latents))[1:]):
        together = (fires[:, block].T @ by_row).tocoo()
        child, other = block[together.row], together.col.astype(np.int64)
        coverage, unknown = together.data / fired[child], np.full(len(child), np.nan)
        some = Pairs(child, other, coverage, wilson(coverage, trials[child])[0], unknown, unknown)
        covers_back = together.data / fired[other] >= rules.coverage
        some = some.where((child != other) & (some.coverage_low >= rules.coverage) & ~covers_back)
        covered += len(some.child)
        by_chance = tail(some.coverage, trials[some.child], fired[some.parent] / n_rows)
        some = some.where(by_chance * pairs <= rules.level)
        beyond += len(some.child)
        found.append(_reconstructed(some, fires, costs_by_row, fired, everywhere, alike, rules))
        advance(len(block))
    accepted = Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return _nearest(accepted, fired, n_rows, Counts(len(enough), pairs, covered, beyond, len(accepted.child)))


class Counts(NamedTuple):
    """The counts of a `Forest`."""

    children: int
    pairs: int
    covered: int
    beyond_chance: int
    reconstructed: int


def _matrices(firings: Firings, n_rows: int) -> tuple[Any, Any]:
    """Return which latent fires on which row, and at what cost, as sparse matrices [n_rows, F]."""
    starts, rows, shape = firings.starts.numpy(), firings.rows.numpy(), (n_rows, len(firings.starts) - 1)
    ones = np.ones(len(rows), np.int32)
    return (
        sparse.csc_matrix((ones, rows, starts), shape=shape),
        sparse.csc_matrix((firings.values.numpy().astype(np.float64), rows, starts), shape=shape),
    )


def _reconstructed(
    pairs: Pairs,
    fires: Any,
    costs_by_row: Any,
    fired: NDArray[np.int64],
    everywhere: NDArray[np.float64],
    alike: NDArray[np.int64],
    rules: Rules,
) -> Pairs:
    """Return the pairs that meet the condition on the reconstruction, with `times` and `share`."""
    children, place = np.unique(pairs.child, return_inverse=True)
    if not len(children):
        return pairs
    sums = (fires[:, children].T @ costs_by_row).tocsr()
    cost, by_chance, own = (np.empty(len(pairs.child)) for _ in range(3))
    for at, child in enumerate(children):
        here = place == at
        others = pairs.parent[here]
        means = sums[[at]].toarray()[0] / fired[child]
        cost[here], own[here] = means[others], means[child]
        by_chance[here] = np.maximum(everywhere[others], np.median(means[alike[others]], axis=1))
    # What costs nothing by chance, or less, costs MOST_TIMES that, so that the ratio stays finite
    least = np.maximum(by_chance, np.abs(cost) / MOST_TIMES)
    times = np.divide(cost, least, out=np.zeros_like(cost), where=least > 0)
    share = (cost - by_chance) / np.where(own > 0, own, np.inf)
    keep = (times >= rules.times) & (share >= rules.share)
    return pairs._replace(times=times, share=share).where(keep)


def _nearest(pairs: Pairs, fired: NDArray[np.int64], n_rows: int, counts: Counts) -> Forest:
    """Return the forest in which each child has the nearest of its candidates: the one that fires most rarely.

    Ancestors cover a child as its parent does, and fire more often than the parent. Of two that fire equally often the one that covers
    more of the child is nearer, then the one with the lower number."""
    n = len(fired)
    order = np.lexsort((pairs.parent, -pairs.coverage, fired[pairs.parent], pairs.child))
    child, first = np.unique(pairs.child[order], return_index=True)
    chosen = order[first]
    parent = np.full(n, NONE, np.int64)
    parent[child] = pairs.parent[chosen]

    def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = np.full(n, np.nan)
        spread[child] = values[chosen]
        return spread

    return Forest(
        parent,
        column(pairs.coverage),
        column(pairs.coverage_low),
        column(fired[pairs.parent] / n_rows),
        column(pairs.times),
        column(pairs.share),
        np.bincount(pairs.child, minlength=n),
        *counts,
    )


def effective_windows(firings: Firings, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many independent windows each latent's firings amount to: (sum of w)² / sum of w², w being its firings in each window.

    A share of firings weighs each window by w. Where firings in a window are one event, it varies as the share of that many windows of
    equal weight does (Kish 1965, Survey Sampling): few, where few windows hold most firings. 0 for a silent latent."""
    starts, places = firings.starts.numpy(), windows[firings.rows.numpy()]
    new = np.ones(len(places), np.bool_)
    new[1:] = places[1:] != places[:-1]
    new[starts[:-1][starts[:-1] < len(places)]] = True
    begins = np.flatnonzero(new)
    squares = np.diff(begins, append=len(places)) ** 2
    running = np.concatenate([[0], squares.cumsum()])[np.searchsorted(begins, starts)]
    fired = np.diff(starts).astype(np.float64)
    return fired**2 / np.maximum(np.diff(running), 1)


def similar_frequency(fired: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return for each latent the n others, as far as there are, that fire most similarly often by rank: n / 2 more often, n / 2 less."""
    order = np.lexsort((np.arange(len(fired)), fired))
    rank = np.empty(len(fired), np.int64)
    rank[order] = np.arange(len(fired))
    n = min(n, len(fired) - 1)
    first = np.clip(rank - n // 2, 0, len(fired) - 1 - n)
    near = first[:, None] + np.arange(n)
    near += near >= rank[:, None]  # the latent itself is not among them
    return order[near]


def tail(share: NDArray[np.float64], n: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability that at least this share of n trials succeeds, each with probability p.

    It is the binomial distribution's upper tail, continued to numbers of successes and trials between the whole ones."""
    successes = share * n
    return np.where(successes > 0, betainc(np.maximum(successes, 1e-9), n - successes + 1, p), 1.0)


def shuffled(firings: Firings, windows: NDArray[np.int64], seed: int) -> Firings:
    """Return the firings with the windows (as in `parents`) of each latent in a random order of its own.

    How often a latent fires, at which places of a window and at what costs stays; with which others it fires is chance. Where windows
    have equally many rows their firings stay together; what a shorter window has no rows for goes on to the one that takes its place,
    and so on. A shift by whole windows would not do: where there are fewer windows than latents, some relatives are moved by the same
    number of them."""
    generator, starts = np.random.default_rng(seed), firings.starts.tolist()
    rows, values = firings.rows.numpy().copy(), firings.values.numpy().copy()
    _, first, number, length = np.unique(windows, return_index=True, return_inverse=True, return_counts=True)
    for start, stop in pairwise(starts):
        if start == stop:
            continue
        order, here = generator.permutation(len(first)), number[rows[start:stop]]
        place, here = rows[start:stop] - first[here], order[here]
        # Going on until there is a row permutes the windows that have this place, so that no two firings meet
        while len(short := np.flatnonzero(length[here] <= place)):
            here[short] = order[here[short]]
        moved = first[here] + place
        rising = moved.argsort()
        rows[start:stop], values[start:stop] = moved[rising], values[start:stop][rising]
    return firings._replace(rows=torch.from_numpy(rows), values=torch.from_numpy(values))
