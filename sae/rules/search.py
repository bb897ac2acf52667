"""Choose for each of many latents the rule that best says where it fires, on the choosing half of a text.

A rule is chosen by an F1 in which every key costs a firing: 2 (TP - S) / (n + P) with P firings, n rows that the rule matches,
TP of both and S keys. The keys of a rare token each explain the one firing that suggested them, so that without the cost a long
list of them would fit noise. Within a family of disjoint keys the best set is exact: a ratio of sums is largest for all keys
above some (TP - 1) / n, so that it is found among the beginnings of the list sorted by that. Conditions are then added as long
as they help; each is chosen from all families, by counts that sparse products give for all latents at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from sae.rules.families import Family, Keys
from sae.rules.rule import Rule

MOST_KEYS = 12  # in a condition, so that it can be read
LEAST_HITS = 3  # firings that a key must explain
LEAST_Z = 3.0  # standard deviations by which they must exceed what chance gives
CHANCE = 1e-8  # and how likely so many may be by chance: a text has some 10^5 keys, of which hardly one then fits noise
LEAST_SHARE = 0.02  # of the latent's firings that a key must explain
GAIN = 0.02  # by which a further condition must raise the F1
PLAINER = 0.005  # by which a family must beat those before it
DEPTH = 2  # conditions that may be added to the first
MOST_TIMES, MOST_ROWS = (
    100,
    60_000,
)  # rows of a rule to which conditions are added: so many times the firings, and so many


@dataclass(frozen=True)
class Chosen:
    """A rule under construction: its conditions by family and keys, and its F1 with the cost of keys."""

    parts: tuple[tuple[Family, Keys], ...] = ()
    value: float = 0.0

    @property
    def n_keys(self) -> int:
        """The number of keys in all conditions, at least 1."""
        return max(sum(len(keys) for _, keys in self.parts), 1)

    def rows(self, n_rows: int) -> NDArray[np.int64]:
        """Return the rows of the text [N] that meet all conditions, ascending."""
        if not self.parts:
            return np.arange(n_rows)
        rows = [family.rows(keys) for family, keys in self.parts]
        met = min(rows, key=len)
        for other in rows:
            met = met if other is met else np.intersect1d(met, other, assume_unique=True)
        return met

    def rule(self) -> Rule:
        """Return the rule in words and data."""
        return Rule(tuple(family.condition(keys) for family, keys in self.parts))


class Best(NamedTuple):
    """The best condition of one family for each of n latents."""

    values: NDArray[np.float64]
    """The F1 with the cost of keys [n]; -inf where no key explains enough."""
    keys: list[Keys]


def choose(fires: Any, families: Sequence[Family], choosing: NDArray[np.bool_]) -> list[Chosen]:
    """Return the best rule for each of n latents. `fires` [n, N] (CSR of ones) has their firings on the choosing half alone."""
    fired = np.diff(fires.indptr).astype(np.float64)
    n_choosing = int(choosing.sum())
    totals = [np.asarray(choosing.astype(np.int64) @ family.matrix).ravel() for family in families]
    always = [Chosen((), 2 * max(p - 1, 0) / (n_choosing + p)) for p in fired.tolist()]
    of_token, of_place = list(always), list(always)
    for family, total in zip(families, totals, strict=True):
        counts = (fires @ family.matrix).tocsr()
        best = best_sets(
            counts, total[counts.indices], fired, fired / n_choosing, np.zeros(len(fired)), family.disjoint
        )
        _improve(of_token if family.of_token else of_place, family, best, always)
    chosen = _better(always, of_token, of_place)
    for start in (of_token, of_place):
        chosen = _better(chosen, _refined(start, fires, fired, families, choosing, chosen))
    for _ in range(DEPTH - 1):
        chosen = _better(chosen, _refined(chosen, fires, fired, families, choosing, chosen))
    return chosen


def best_sets(
    counts: Any,
    matched: NDArray[np.int64],
    fired: NDArray[np.float64],
    rate: NDArray[np.float64],
    spent: NDArray[np.float64],
    disjoint: bool,
) -> Best:
    """Return the best condition of a family for each latent, from how often each key explains one.

    `counts` [n, K] (CSR) has the firings with each key, `matched` the rows that have the key, one for each entry of it; `rate`
    is the share of all rows that could have a key on which the latent fires; `spent` are the keys of the conditions that these
    are added to. A key has to explain at least LEAST_HITS firings, LEAST_SHARE of them, and so many that a binomial gives them with
    a probability of at most CHANCE."""
    n = len(fired)
    owner = np.repeat(np.arange(n), np.diff(counts.indptr))
    expected = matched * rate[owner]
    enough = (counts.data >= LEAST_HITS) & (counts.data >= LEAST_SHARE * fired[owner])
    enough &= counts.data - expected >= LEAST_Z * np.sqrt(expected * (1 - rate[owner]))
    # the exact tail of the binomial is slow, and only for few of the keys in doubt
    doubtful = np.flatnonzero(enough)
    tail = special.betainc(
        counts.data[doubtful],
        matched[doubtful] - counts.data[doubtful] + 1,
        rate[owner[doubtful]],
    )
    enough[doubtful] = tail <= CHANCE
    owner, keys = owner[enough], counts.indices[enough]
    hits, rows = counts.data[enough].astype(np.float64), matched[enough].astype(np.float64)
    alone = 2 * (hits - 1 - spent[owner]) / (rows + fired[owner])
    order = np.lexsort((keys, -((hits - 1) / rows if disjoint else alone), owner))
    owner, keys, hits, rows = owner[order], keys[order], hits[order], rows[order]
    starts = np.searchsorted(owner, np.arange(n + 1))
    first = np.arange(len(owner)) - starts[owner] < (MOST_KEYS if disjoint else 1)
    gained, covered = (_running(column * first, starts, owner) for column in (hits - 1, rows))
    values = np.where(first, 2 * (gained - spent[owner]) / (covered + fired[owner]), -np.inf)
    best = np.full(n, -np.inf)
    np.maximum.at(best, owner, values)
    chosen: list[Keys] = [np.zeros(0, np.int64)] * n
    at_best = np.flatnonzero(values == best[owner])
    for at in at_best[::-1].tolist():  # of equal ones the first, which has the fewest keys, is written last
        chosen[owner[at]] = keys[starts[owner[at]] : at + 1].astype(np.int64)
    return Best(best, chosen)


def _running(
    column: NDArray[np.float64], starts: NDArray[np.int64], owner: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return running sums within each owner's run of entries."""
    total = np.concatenate([[0.0], column.cumsum()])
    return total[1:] - total[starts[owner]]


def _improve(best: list[Chosen], family: Family, found: Best, start: Sequence[Chosen]) -> None:
    """Put a family's condition, added to each rule of `start`, in the place of those in `best` that it beats."""
    for latent in np.flatnonzero(np.isfinite(found.values)).tolist():
        value, margin = float(found.values[latent]), PLAINER if best[latent].parts else 0.0
        if value > best[latent].value + margin:
            best[latent] = Chosen((*start[latent].parts, (family, found.keys[latent])), value)


def _better(*candidates: Sequence[Chosen]) -> list[Chosen]:
    """Return for each latent the candidate with the largest value, of equal ones the first."""
    return [max(several, key=lambda one: one.value) for several in zip(*candidates, strict=True)]


def _refined(
    start: Sequence[Chosen],
    fires: Any,
    fired: NDArray[np.float64],
    families: Sequence[Family],
    choosing: NDArray[np.bool_],
    beaten: Sequence[Chosen],
) -> list[Chosen]:
    """Return the rules with one more condition each, where that gains enough over the rule in `beaten`, else as they are."""
    n, n_rows = fires.shape
    rows = [_refinable(one, choosing, fired[latent]) for latent, one in enumerate(start)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
    if not offsets[-1]:
        return list(start)
    met: Any = sparse.csr_matrix(
        (np.ones(offsets[-1], np.int32), np.concatenate(rows).astype(np.int32), offsets), shape=(n, n_rows)
    )
    both = fires.multiply(met).tocsr()
    spent = np.array([one.n_keys for one in start], np.float64)
    rate = np.diff(both.indptr) / np.maximum(np.diff(met.indptr), 1)
    best = list(start)
    for family in families:
        counts = both @ family.matrix
        totals = _at_entries(counts, met @ family.matrix)
        found = best_sets(counts, totals, fired, rate, spent, family.disjoint)
        _improve(best, family, found, start)
    return [
        longer if longer.value > before.value + GAIN else one
        for longer, before, one in zip(best, beaten, start, strict=True)
    ]


def _refinable(chosen: Chosen, choosing: NDArray[np.bool_], fired: float) -> NDArray[np.int64]:
    """Return the choosing rows of a rule to which a condition can be added; none for one that matches far too much."""
    if not chosen.parts or chosen.value >= 1 - GAIN:
        return np.zeros(0, np.int64)
    rows = chosen.rows(len(choosing))
    rows = rows[choosing[rows]]
    return rows if len(rows) <= min(MOST_TIMES * max(fired, 1), MOST_ROWS) else rows[:0]


def _at_entries(counts: Any, totals: Any) -> NDArray[np.int64]:
    """Return the entries of `totals` where `counts` has entries; both are CSR, and the first's entries are among the second's."""
    width = counts.shape[1]
    wanted, known = (
        np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr)) * width + matrix.indices
        for matrix in (counts, totals)
    )
    order = known.argsort()
    return totals.data[order][np.searchsorted(known[order], wanted)]
