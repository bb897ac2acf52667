"""Score rules on the half of the text that did not choose them, with intervals over documents.

With R the rows that a rule matches, L those on which the latent fires, both on the scoring half:

- precision |R L| / |R|, recall |R L| / |L|, F1 = 2 |R L| / (|R| + |L|); chance is the F1 that is expected where the latent fires as
  often anywhere: 2 |R| |L| / (N (|R| + |L|)).
- discrimination: t / (t + o), where t is the share of the latent's firings that the rule matches and o that of the firings of its
  nearest latents on which it does not fire itself. 1: the rule never fits them; .5: it fits them as well (arXiv:2605.12874 asks
  for such a score: one label often fits many latents).
- sensitivity: for each firing of the choosing half, the share of those rows of the scoring half with the same two last tokens on
  which the latent fires, weighted mean over the firings that have any such row. It needs no rule. 2509.23717 asks the same of
  texts that a language model writes; here the near contexts are the corpus's own.

Intervals: documents, in at most 200 groups, are resampled 1000 times as in `sae.evaluation.bootstrap`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sae.evaluation import bootstrap
from sae.rules.corpus import Corpus
from sae.rules.search import Chosen
from sae.rules.similar import Similar

Sums = NDArray[np.float64]
"""A count per latent and group of documents [n, G]."""


class Interval(NamedTuple):
    """A score of each of n latents with its 95 % interval; NaN where it is not defined."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Scores(NamedTuple):
    """The scores of n rules."""

    fired: NDArray[np.int64]
    """Firings on the scoring half."""
    matched: NDArray[np.int64]
    """Rows of the scoring half that the rule matches."""
    chance: NDArray[np.float64]
    strong_recall: NDArray[np.float64]
    """Recall on the firings of at least half the largest value; NaN where there are none."""
    confused_with: NDArray[np.int64]
    """Of the nearest latents the one that the rule fits best; -1 where none fires without the latent."""
    near: NDArray[np.int64]
    """Firings of the choosing half whose last two tokens come again in the scoring half."""
    precision: Interval
    recall: Interval
    f1: Interval
    discrimination: Interval
    sensitivity: Interval
    intruder: Interval
    examples: Interval


def score(
    rules: Sequence[Chosen],
    fires: Any,
    strong: Any,
    others: Sequence[Sequence[tuple[int, NDArray[np.int64]]]],
    corpus: Corpus,
    alike: Similar,
) -> Scores:
    """Score n rules, whose latents fire as `fires` [n, N] (CSR of ones, on both halves) says.

    `strong` are the firings of at least half the largest value. `others` are, for each latent, its nearest latents with the rows
    on which they fire; `alike` are the sums of the scores that need no rule."""
    n, n_groups = len(rules), corpus.n_groups
    hits, matched, fired, foreign, taken = (np.zeros((n, n_groups)) for _ in range(5))
    strong_recall, confused = np.full(n, np.nan), np.full(n, -1)
    inside, own = np.zeros(corpus.n_rows, bool), np.zeros(corpus.n_rows, bool)

    def counted(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        groups = corpus.groups[rows]
        return np.bincount(groups[groups >= 0], minlength=n_groups).astype(np.float64)

    for place, rule in enumerate(rules):
        rows, firings = rule.rows(corpus.n_rows), _row(fires, place)
        inside[rows], own[firings] = True, True
        matched[place], fired[place] = counted(rows), counted(firings)
        hits[place] = counted(firings[inside[firings]])
        strongest = _row(strong, place)
        strongest = strongest[corpus.groups[strongest] >= 0]
        if len(strongest):
            strong_recall[place] = inside[strongest].mean()
        most = -1.0
        for latent, firings_of_other in others[place]:
            theirs = firings_of_other[(corpus.groups[firings_of_other] >= 0) & ~own[firings_of_other]]
            if len(theirs):
                fitted = theirs[inside[theirs]]
                foreign[place] += counted(theirs)
                taken[place] += counted(fitted)
                if len(fitted) / len(theirs) > most:
                    most, confused[place] = len(fitted) / len(theirs), latent
        inside[rows], own[firings] = False, False
    r, p = matched.sum(1), fired.sum(1)
    n_scored = max(int(corpus.scoring.sum()), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = 2 * r * p / (n_scored * (r + p))
    above, below, near = _near_contexts(fires, corpus)
    return Scores(
        p.astype(np.int64), r.astype(np.int64), chance, strong_recall, confused, near,
        _of_ratio(hits, matched),
        _of_ratio(hits, fired),
        _of_ratio(2 * hits, matched + fired),
        _interval(_balanced, (hits, fired, taken, foreign), (fired, foreign)),
        _of_ratio(above, below),
        _of_ratio(*alike.intruder),
        _of_ratio(*alike.examples),
    )  # fmt: skip


def _near_contexts(fires: Any, corpus: Corpus) -> tuple[Sums, Sums, NDArray[np.int64]]:
    """Return sensitivity's numerators and denominators per latent and group, and the number of firings behind them."""
    n, n_groups, key = fires.shape[0], corpus.n_groups, corpus.contexts
    n_keys = int(key.max(initial=-1)) + 1
    rows = np.flatnonzero(key >= 0)
    contexts: Any = sparse.csr_matrix(
        (np.ones(len(rows), np.int32), (rows, key[rows])), shape=(corpus.n_rows, n_keys)
    )
    chosen, scoring = fires.multiply(corpus.choosing[None].astype(np.int32)), corpus.scoring
    examples = (chosen @ contexts).tocsr()
    examples.sort_indices()
    scored = np.flatnonzero(scoring)
    of_groups: Any = sparse.csr_matrix(
        (np.ones(len(scored)), (corpus.groups[scored], scored)), shape=(n_groups, corpus.n_rows)
    )
    by_group = (of_groups @ contexts).T.tocsr()
    totals = np.asarray(by_group.sum(1)).ravel()  # at least 1: every context is in both halves
    near = np.asarray(examples.sum(1)).ravel().astype(np.int64)
    weights = examples.astype(np.float64)
    weights.data = examples.data / totals[examples.indices]
    below = (weights @ by_group).toarray()
    # the firings of the scoring half, each with the weight of its last two tokens
    code = _owner(examples) * n_keys + examples.indices
    owner, rows = _owner(fires), fires.indices
    kept = scoring[rows] & (key[rows] >= 0)
    owner, rows = owner[kept], rows[kept]
    wanted = owner * n_keys + key[rows]
    place = np.searchsorted(code, wanted).clip(max=max(len(code) - 1, 0))
    known = code[place] == wanted if len(code) else np.zeros(len(wanted), bool)
    owner, rows, place = owner[known], rows[known], place[known]
    flat = np.bincount(owner * n_groups + corpus.groups[rows], weights.data[place], minlength=n * n_groups)
    return flat.reshape(n, n_groups).astype(np.float64), below, near


def _row(matrix: Any, place: int) -> NDArray[np.int64]:
    return matrix.indices[matrix.indptr[place] : matrix.indptr[place + 1]]


def _owner(matrix: Any) -> NDArray[np.int64]:
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))


def _ratio(above: Sums, below: Sums) -> Sums:
    return above / below


def _balanced(hits: Sums, fired: Sums, taken: Sums, foreign: Sums) -> Sums:
    own, other = hits / fired, taken / foreign
    return own / (own + other)


def _of_ratio(above: Sums, below: Sums) -> Interval:
    return _interval(_ratio, (above, below), (below,))


def _interval(formula: Callable[..., Sums], sums: Sequence[Sums], bases: Sequence[Sums]) -> Interval:
    """Return a formula of sums over groups, with the interval that resampling groups gives.

    `bases` are the sums that the formula divides by. A base that comes from one group alone says nothing of how much groups
    differ: every resampling gives the same number or 0 / 0, and the interval is unknown."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = formula(*(one.sum(1) for one in sums))
        counts = bootstrap.draws(sums[0].shape[1])
        resampled = formula(*(counts @ one.T for one in sums))
    low, high = bootstrap.limits(resampled)
    unknown = ~np.isfinite(value)
    without_spread = unknown | np.any([(base > 0).sum(1) < 2 for base in bases], 0)
    low, high = (np.where(without_spread, np.nan, limit) for limit in (low, high))
    return Interval(np.where(unknown, np.nan, value), low, high)
