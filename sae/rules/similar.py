"""Scores without an explanation: whether the contexts that a latent fires on are like each other, by static word embeddings.

A context is a token and the seven before it; its embedding is the mean over its tokens, scaled to length 1. Following
arXiv:2507.08473, which has language models and sentence embeddings judge:

- intruder: of four contexts of the scoring half on which the latent fires and one on which it does not, the one that is least
  like the others is taken for the intruder; the share of trials in which it is. Chance is 1 in 5.
- example embedding: how likely a context of the scoring half on which it fires is more like those of the choosing half on which
  it fires, less those on which it does not, than one on which it does not fire (an AUC). Chance is 1 in 2."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.rules.corpus import Corpus

CONTEXT = 8  # tokens, the last of which is the one on which the latent fires
CONTEXTS = 128  # at most, of either kind and half
SHOWN = 4  # contexts on which the latent fires in a trial of the intruder


class Similar(NamedTuple):
    """Numerators and denominators of both scores, per latent and group of documents [n, G]."""

    intruder: tuple[NDArray[np.float64], NDArray[np.float64]]
    examples: tuple[NDArray[np.float64], NDArray[np.float64]]


def similar(
    fires: Any, embeddings: NDArray[np.float32] | None, corpus: Corpus, seeds: list[tuple[int, ...]]
) -> Similar:
    """Return the sums of both scores for n latents, whose firings are `fires` [n, N] (CSR); zeros without embeddings [V, E].

    What is drawn for a latent depends on its seed alone."""
    n, groups = fires.shape[0], corpus.n_groups
    intruder, examples = (
        (np.zeros((n, groups)), np.zeros((n, groups))),
        (np.zeros((n, groups)), np.zeros((n, groups))),
    )
    if embeddings is None:
        return Similar(intruder, examples)
    halves = [(inside, np.flatnonzero(inside)) for inside in (corpus.choosing, corpus.scoring)]
    for place, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        firings = fires.indices[fires.indptr[place] : fires.indptr[place + 1]]
        (query, not_query), (own, other) = (
            _drawn(rng, firings[inside[firings]], half) for inside, half in halves
        )
        if not (len(query) and len(own) and len(not_query) and len(other)):
            continue
        contexts = [embedded(rows, embeddings, corpus) for rows in (query, not_query, own, other)]
        like = contexts[0].mean(0) - contexts[1].mean(0)
        # Each context has a partner or a trial of its own: trials that shared some would make the intervals too narrow.
        n_pairs = min(len(own), len(other))
        difference = (contexts[2][:n_pairs] - contexts[3][:n_pairs]) @ like
        wins = np.where(difference == 0, 0.5, difference > 0)
        np.add.at(examples[0][place], corpus.groups[own[:n_pairs]], wins)
        np.add.at(examples[1][place], corpus.groups[own[:n_pairs]], 1)
        trials = min(len(own) // SHOWN, len(other))
        shown = contexts[2][: trials * SHOWN].reshape(trials, SHOWN, embeddings.shape[1])
        fives = np.concatenate([shown, contexts[3][:trials, None]], 1)
        # the sum of a context's cosines with the other four, but for its own 1
        closeness = np.einsum("tie,te->ti", fives, fives.sum(1))
        groups_of_trials = corpus.groups[own[: trials * SHOWN : SHOWN]]
        np.add.at(intruder[0][place], groups_of_trials, closeness.argmin(1) == SHOWN)
        np.add.at(intruder[1][place], groups_of_trials, 1)
    return Similar(intruder, examples)


def embedded(rows: NDArray[np.int64], embeddings: NDArray[np.float32], corpus: Corpus) -> NDArray[np.float32]:
    """Return the embeddings [m, E] of the contexts that end at these rows, of length 1; zeros where no token has any."""
    back = np.arange(CONTEXT)
    exists = (rows % corpus.tokens.shape[1])[:, None] >= back
    tokens = corpus.tokens.ravel()[np.maximum(rows[:, None] - back, 0)]
    total = (embeddings[tokens] * exists[:, :, None]).sum(1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _drawn(
    rng: np.random.Generator, firings: NDArray[np.int64], half: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return some of a latent's firings in a half, and some rows of the half on which it does not fire."""
    own = rng.choice(firings, min(CONTEXTS, len(firings)), replace=False)
    other = rng.choice(half, min(CONTEXTS, len(half)), replace=False)
    return own, other[~np.isin(other, firings)]
