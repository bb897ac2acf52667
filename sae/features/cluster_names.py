"""Names of the map's clusters: what the latents of each have in common and other latents have not."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sae.features.explanations import Explanations
from sae.features.folder import FeaturesFolder
from sae.features.meaning import Meanings

NAMES = 3  # terms that name a cluster
SHARED = 2  # latents of a cluster that a term must have in common
OFTEN = 0.1  # share of a latent's words from which on it fires on a word
# Kinds of rules that say what no single token says. A rule of kind "token" is left out: its token stands among the terms already.
BARE = {"position", "property", "ending", "beginning"}


def cluster_names(
    features: FeaturesFolder, meanings: Meanings | None, explanations: Explanations | None
) -> dict[int, list[str]]:
    """Return for each cluster of a folder's map its name, NAMES terms at most, the most distinctive first; empty for no map.

    Terms are the words that a latent fires on often, or, where `meanings` is None, the tokens at the peaks of its strongest
    examples; and its rule, where that is a property, a place or a part of a word and holds well."""
    if "cluster" not in features.table.column_names:
        return {}
    clusters = features.table["cluster"].to_numpy(zero_copy_only=False).astype(float)
    if meanings is None:
        having, terms = _of_tokens(features.table["peak_tokens"].to_pylist())
    else:
        having, terms = meanings.often(OFTEN), meanings.words
    if explanations is not None:
        rules: list[list[str]] = [[] for _ in range(len(features))]
        for latent, text in explanations.names.items():
            if explanations.of(latent)[0].rule_kind in BARE:
                rules[latent] = [text]
        of_rules, texts = _of_tokens(rules)
        having, terms = sparse.hstack([having, of_rules], "csr"), [*terms, *texts]
    return distinctive(np.where(np.isnan(clusters), -1, clusters).astype(int), having, terms)


def cluster_tokens(clusters: Sequence[int | None], peak_tokens: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return for each cluster the peak tokens that distinguish its latents (`distinctive`).

    Tokens that differ in case or surrounding spaces only are counted as one. `clusters` are numbers from 0 on, None for a
    latent without a cluster."""
    having, terms = _of_tokens(peak_tokens)
    numbers = np.array([-1 if cluster is None else cluster for cluster in clusters], int)
    names = distinctive(numbers, having, terms)
    return [names[cluster] for cluster in range(len(names))]


def distinctive(clusters: NDArray[np.int64], having: Any, terms: Sequence[str]) -> dict[int, list[str]]:
    """Return for each cluster the terms that most tell its latents from all latents, at most NAMES, best first.

    `clusters` [F] are numbers from 0 on, -1 for none; `having` [F, T] is a sparse matrix of ones where a latent has a term. A
    term's score is p ln(p / q), p the share of the cluster's latents that have it and q that of all latents that have any term: its part in the
    divergence of the cluster from the rest, which is tf-idf with shares of latents in place of counts. Terms that fewer than SHARED of the cluster's latents
    have, and those that are not more frequent in it than elsewhere, name nothing. Equal scores are in alphabetical order."""
    placed = np.flatnonzero(clusters >= 0)
    known, own = np.unique(clusters[placed], return_inverse=True)
    sizes = np.bincount(own, minlength=len(known))
    entries = np.ones(len(placed)), (own, placed)
    counts: Any = (sparse.csr_matrix(entries, shape=(len(sizes), len(clusters))) @ having).tocsr()
    with_any = max(int((np.diff(having.indptr) > 0).sum()), 1)
    everywhere = np.asarray(having.sum(0)).ravel() / with_any
    names = {}
    for place, (cluster, size) in enumerate(zip(known.tolist(), sizes.tolist(), strict=True)):
        own = slice(*counts.indptr[place : place + 2])
        numbers, count = counts.indices[own], counts.data[own]
        shared = count >= SHARED
        numbers, share = numbers[shared], count[shared] / size
        scores = share * np.log(share / everywhere[numbers])
        best = sorted(
            (-score, terms[number])
            for score, number in zip(scores.tolist(), numbers.tolist(), strict=True)
            if score > 0
        )
        names[cluster] = [term for _, term in best[:NAMES]]
    return names


def _of_tokens(lists: Sequence[Collection[str]]) -> tuple[Any, list[str]]:
    """Return which row has which text [n, T], in lower case without surrounding spaces, as a sparse matrix of ones, and the texts."""
    terms: dict[str, int] = {}
    starts, numbers = [0], []
    for texts in lists:
        own = {word for text in texts if (word := text.strip().lower())}
        numbers += sorted(terms.setdefault(word, len(terms)) for word in own)
        starts.append(len(numbers))
    matrix: Any = sparse.csr_matrix(
        (np.ones(len(numbers)), np.array(numbers, int), starts), shape=(len(lists), len(terms))
    )
    return matrix, list(terms)
