"""Search by meaning beside search for strings, on concepts written down before either was looked at.

    python -m benchmarks.meaning runs/demo

A latent belongs to a concept when, of the windows drawn at random from all in which it fires (ten at least), enough have a word of the
concept's list at their peak. The lists are in benchmarks/concepts.py; the search's embeddings have no part in them."""

import argparse
import re
import time
from pathlib import Path

import numpy as np

from activations import embeddings, wordnet
from benchmarks.concepts import CONCEPTS, HELD_OUT
from sae.features.explanations import explanations_of
from sae.features.feature import FeatureStore
from sae.features.meaning import Meanings, meanings_of
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
    wordnet.fetch()
    meanings.belonging("anything")  # the first query looks up all words
    for name, concepts in (("the fifty concepts", CONCEPTS), ("the held-out concepts", HELD_OUT)):
        print(name)
        compare(features, meanings, concepts)


def compare(features: FeatureStore, meanings: Meanings, concepts: dict[str, str]) -> None:
    """Print the recall of each search, and the time of a query."""
    shares = concept_shares(features, concepts)
    queries = embeddings.of_texts(list(concepts))
    started = time.perf_counter()
    ranks = [
        best_of(meanings.scores(vector, meanings.belonging(query)))
        for query, vector in zip(concepts, queries, strict=True)
    ]
    each = (time.perf_counter() - started) / len(queries)
    lists = {
        "by meaning": ranks,
        "word embeddings alone": [best_of(meanings.scores(query)) for query in queries],
    }
    lists["string"], lists["each of its words as a string, in turn"] = string_search(features, concepts)
    for share in SHARES:
        relevant = [set(np.flatnonzero(row >= share).tolist()) for row in shares]
        known = [place for place, latents in enumerate(relevant) if latents]
        print(
            f"share of {share:.0%}: {len(known)} of {len(concepts)} concepts have latents, {sum(map(len, relevant))} in all"
        )
        recalls = {
            name: np.array(
                [
                    len(set(found[place]) & relevant[place]) / min(BEST, len(relevant[place]))
                    for place in known
                ]
            )
            for name, found in lists.items()
        }
        for name, recall in recalls.items():
            print(f"  recall@{BEST} {name}: {interval(recall)}")
        print(
            f"  by meaning less word embeddings alone: {interval(recalls['by meaning'] - recalls['word embeddings alone'])}"
        )
    print(f"{1000 * each:.1f} ms a query, {len(features):,} latents")


def best_of(scores: np.ndarray) -> list[int]:
    """Return the latents with the largest scores, the largest first."""
    return np.argsort(-scores)[:BEST].tolist()


def interval(values: np.ndarray) -> str:
    """Return a mean over concepts with its 95 % interval (bootstrap)."""
    draws = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def concept_shares(features: FeatureStore, concepts: dict[str, str]) -> np.ndarray:
    """Return, for each concept and latent, the share of its random windows with a word of the list at the peak; 0 for few windows."""
    lists = [set(words.split()) for words in concepts.values()]
    shares = np.zeros((len(lists), len(features)))
    for latent in range(len(features)):
        words = [
            re.sub(r"\W", "", word_at(example.tokens, example.peak)) for example in features.sampled(latent)
        ]
        if len(words) >= FEWEST:
            shares[:, latent] = [np.mean([word in listed for word in words]) for listed in lists]
    return shares


def string_search(
    features: FeatureStore, concepts: dict[str, str]
) -> tuple[list[list[int]], list[list[int]]]:
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

    of_words = [in_turn([best(word) for word in re.findall(r"\w{3,}", query)]) for query in concepts]
    return [best(query) for query in concepts], of_words


if __name__ == "__main__":
    main()
