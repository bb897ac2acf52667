"""Search by meaning beside search for strings, on fifty concepts written down before either was looked at.

    python -m benchmarks.meaning runs/demo

A latent belongs to a concept when, of the windows drawn at random from all in which it fires (ten at least), enough have a word of the
concept's list at their peak. The lists are in benchmarks/concepts.py; the search's embeddings have no part in them."""

import argparse
import re
import time
from pathlib import Path

import numpy as np

from activations import embeddings
from benchmarks.concepts import CONCEPTS
from sae.features.explanations import explanations_of
from sae.features.feature import FeatureStore
from sae.features.meaning import meanings_of
from sae.features.peak_words import word_at
from sae.report import features as features_report
from sae.report import search

FEWEST, BEST = 10, 10  # random windows of a latent that counts, and latents that a search returns
SHARES = (0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    features = FeatureStore(parser.parse_args().run / "features")
    meanings = meanings_of(features)
    shares = concept_shares(features)
    queries = embeddings.of_texts(list(CONCEPTS))
    started = time.perf_counter()
    ranks = [np.argsort(-meanings.scores(query))[:BEST].tolist() for query in queries]
    each = (time.perf_counter() - started) / len(queries)
    strings, words = string_search(features)
    for share in SHARES:
        relevant = [set(np.flatnonzero(row >= share).tolist()) for row in shares]
        known = [place for place, latents in enumerate(relevant) if latents]
        print(
            f"share of {share:.0%}: {len(known)} of {len(CONCEPTS)} concepts have latents, {sum(map(len, relevant))} in all"
        )
        for name, lists in (
            ("by meaning", ranks),
            ("string", strings),
            ("each of its words as a string, in turn", words),
        ):
            found = [
                len(set(lists[place]) & relevant[place]) / min(BEST, len(relevant[place])) for place in known
            ]
            draws = np.random.default_rng(0).choice(found, (1000, len(found))).mean(1)
            low, high = np.percentile(draws, [2.5, 97.5])
            print(f"  recall@{BEST} {name}: {np.mean(found):.3f} ({low:.3f} to {high:.3f})")
    print(f"{1000 * each:.1f} ms a query, {len(features):,} latents")


def concept_shares(features: FeatureStore) -> np.ndarray:
    """Return, for each concept and latent, the share of its random windows with a word of the list at the peak; 0 for few windows."""
    lists = [set(words.split()) for words in CONCEPTS.values()]
    shares = np.zeros((len(lists), len(features)))
    for latent in range(len(features)):
        words = [
            re.sub(r"\W", "", word_at(example.tokens, example.peak)) for example in features.sampled(latent)
        ]
        if len(words) >= FEWEST:
            shares[:, latent] = [np.mean([word in listed for word in words]) for listed in lists]
    return shares


def string_search(features: FeatureStore) -> tuple[list[list[int]], list[list[int]]]:
    """Return what the Features page's search for strings finds for each query, and the union over its words, the best of each in turn."""
    table = features_report.features(features.table)
    haystack = features_report.haystack(table, features.texts)
    if (found := explanations_of(features)) is not None:
        table = features_report.with_explanations(table, found.texts, found.f1)

    def best(words: str) -> list[int]:
        shown = features_report.filtered(table, features_report.Wanted(words), haystack)
        return search.ranked(shown, words, features.texts)["feature"].to_pylist()[:BEST] if len(shown) else []

    def in_turn(lists: list[list[int]]) -> list[int]:
        places = range(max(map(len, lists), default=0))
        return list(dict.fromkeys(one[place] for place in places for one in lists if place < len(one)))[:BEST]

    of_words = [in_turn([best(word) for word in re.findall(r"\w{3,}", query)]) for query in CONCEPTS]
    return [best(query) for query in CONCEPTS], of_words


if __name__ == "__main__":
    main()
