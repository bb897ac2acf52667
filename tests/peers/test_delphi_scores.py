"""The example-embedding score of `sae explain --embeddings` orders latents as delphi's own scorer does, on the same embeddings."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from sae.rules.corpus import Corpus, corpus
from sae.rules.similar import embedded, similar

pytest.importorskip("delphi", reason="delphi is needed, in an environment of its own: make test-peers")

pytestmark = pytest.mark.peers

LATENTS, TOPICS, WORDS, WINDOWS, LENGTH, FIRINGS, EACH, BATCHES = 200, 20, 30, 400, 16, 200, 128, 100


class Contexts:
    """The sentence embedder that delphi asks: an example's text is the number of the row that its context ends at."""

    def __init__(self, embeddings: NDArray[np.float32], text: Corpus):
        self._embeddings, self._text = embeddings, text

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the embeddings [n, E] of contexts."""
        rows = [int("".join(letter for letter in text if letter.isdigit())) for text in texts]
        return embedded(np.array(rows), self._embeddings, self._text)

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Return all cosines."""
        return torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=-1)


def test_latents_are_ordered_as_by_delphi(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    topics = rng.integers(TOPICS, size=WINDOWS)
    tokens = (topics[:, None] * WORDS + rng.integers(WORDS, size=(WINDOWS, LENGTH))).astype(np.int32)
    documents = np.repeat(np.arange(WINDOWS, dtype=np.int32)[:, None], LENGTH, 1)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape).copy()
    text: Any = None  # no rule is made
    world = corpus(tokens, documents, positions, np.ones_like(tokens, bool), text)
    vectors = rng.normal(size=(TOPICS, 32))[np.arange(TOPICS * WORDS) // WORDS] + 3 * rng.normal(
        size=(TOPICS * WORDS, 32)
    )
    embeddings = vectors.astype(np.float32)
    fires = np.zeros((LATENTS, world.n_rows), bool)
    for latent in range(LATENTS):
        # from latents that fire anywhere to latents of one topic
        own = rng.random(FIRINGS) < latent / (LATENTS - 1)
        of_topic = np.flatnonzero(np.repeat(topics == latent % TOPICS, LENGTH))
        fires[
            latent, np.where(own, rng.choice(of_topic, FIRINGS), rng.integers(world.n_rows, size=FIRINGS))
        ] = True
    won, of = similar(
        csr_matrix(fires), embeddings, world, [(0, latent) for latent in range(LATENTS)]
    ).examples
    ours = won.sum(1) / of.sum(1)
    delphi = _scorer(monkeypatch)
    scorer = delphi.ExampleEmbeddingScorer(Contexts(embeddings, world), number_batches=BATCHES)
    theirs = np.array([_auc(delphi, scorer, fires[latent], rng) for latent in range(LATENTS)])
    assert np.ptp(theirs) > 0.4  # there is something to agree about
    # Theirs are lower (.70 against .72 in the mean): a query is compared with ten examples of either kind, and here with all
    assert np.corrcoef(ours, theirs)[0, 1] >= 0.9


def _auc(delphi: Any, scorer: Any, fires: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """Return how likely a firing query lies closer to delphi's firing examples, less the others, than a silent one."""
    own, other = (
        rng.permutation(np.flatnonzero(which))[:count] for which, count in ((fires, EACH), (~fires, 2 * EACH))
    )
    # The second token does not fire: delphi marks tokens below its threshold in silent examples
    positive = [
        delphi.ActivatingExample(torch.tensor([0, 0]), torch.tensor([1.0, 0.0]), str_tokens=[f"{row} ", "x"])
        for row in own
    ]
    negative = [
        delphi.NonActivatingExample(torch.tensor([0, 0]), torch.tensor([0.0, 0.0]), [f"{row} ", "x"])
        for row in other
    ]
    record = delphi.LatentRecord(None, not_active=negative, train=positive, test=positive)
    outputs = scorer.call_sync(record).score
    plus, minus = (
        np.array([getattr(one, name) for one in outputs]) for name in ("delta_plus", "delta_minus")
    )
    difference = plus[:, None] - minus[None]
    return float(np.where(difference == 0, 0.5, difference > 0).mean())


def _scorer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return delphi's module of the scorer, with its examples. The rest of the package asks for vLLM and faiss, and is left out."""
    found = importlib.util.find_spec("delphi")
    assert found is not None and found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    for name in ("latents", "scorers", "scorers/classifier", "scorers/embedding"):
        package = types.ModuleType(".".join(["delphi", *name.split("/")]))
        package.__path__ = [str(root / name)]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    latents = importlib.import_module("delphi.latents.latents")
    names = ("ActivatingExample", "NonActivatingExample", "LatentRecord")
    for name in names:
        setattr(sys.modules["delphi.latents"], name, getattr(latents, name))
    module = importlib.import_module("delphi.scorers.embedding.example_embedding")
    for name in names:
        setattr(module, name, getattr(latents, name))
    return module
