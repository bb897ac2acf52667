"""Search latents by meaning, without a model: static embeddings of the words that each fires on, and of its label.

The words are those at the peaks of a latent's strongest examples and of windows drawn at random (`sae.features.peak_words`). A word is
about a query as far as its embedding's cosine says, up to `ALIKE`, and belongs to what the query names as far as WordNet says
(`sae.features.belonging`). A latent's score is halfway between the median over its words and the mean of their upper half: most of them
have to be about the query, and where fewer are, those count too. Of the scores tried this found most (LOG.md)."""

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from activations import embeddings, wordnet
from activations.disk import files
from activations.errors import BusyError, ModelError, RunError, quoted
from activations.progress import Progress, no_progress
from sae.features.belonging import Belonging
from sae.features.folder import FeaturesFolder
from sae.features.peak_words import WORDS, words_of_latents
from sae.runs.saved_sae import read_tensors

log = logging.getLogger(__name__)

FORMAT = 1
FILE = "meaning.safetensors"
ALIKE = 0.4  # a word with this cosine is about the query, and a larger one says no more; to belong to it counts as much


class Match(NamedTuple):
    """A latent that fits a query."""

    latent: int
    score: float
    """From -1 to 2 `ALIKE` by its words; up to 1 by its label."""
    words: list[str]
    """The commonest of the words that it fires on."""


class Meanings:
    """The words that the latents of a features folder fire on, with their embeddings."""

    def __init__(
        self, words: list[str], vectors: Float[np.ndarray, "W E"], of_latent: Int[np.ndarray, "F m"]
    ):
        self.words, self.vectors, self.of_latent = words, _unit(vectors), of_latent
        self._count = (of_latent >= 0).sum(1)
        self._belonging: Belonging | None = None

    def scores(
        self, query: Float[np.ndarray, "E"], belonging: Float[np.ndarray, "W"] | float = 0.0
    ) -> NDArray[np.float32]:
        """Return each latent's score for an embedded query [F]; -inf for a latent that never fires.

        `belonging` says how much each word belongs to the query, from 0 to 1."""
        about = np.minimum(self.vectors @ _unit(query), ALIKE) + ALIKE * belonging
        # Missing words have number -1, which is the last entry: so low that they lie before all others
        found = np.append(about, np.float32(-np.inf)).astype(np.float32)[self.of_latent]
        scores = np.full(len(found), -np.inf, np.float32)
        for count in np.unique(self._count[self._count > 0]):  # most latents have all their words
            rows, upper = self._count == count, (count + 1) // 2
            # a partition is faster than sorting; the middle is the place below the upper half too, where the number is even
            middle = [-upper] if count % 2 else [-upper - 1, -upper]
            ordered = np.partition(found[rows], middle, axis=1)
            scores[rows] = (ordered[:, middle].mean(1) + ordered[:, -upper:].mean(1)) / 2
        return scores

    def belonging(self, query: str) -> NDArray[np.float32]:
        """Return how much each word belongs to what a query names [W], from 0 to 1; zeros where WordNet has not been fetched."""
        if self._belonging is None and (known := wordnet.kept()) is not None:
            self._belonging = Belonging(known, self.words)
        return np.zeros(len(self.words), np.float32) if self._belonging is None else self._belonging(query)

    def commonest(self, latent: int, n: int = 5) -> list[str]:
        """Return a latent's words, the commonest first."""
        numbers, counts = np.unique(self.of_latent[latent][self.of_latent[latent] >= 0], return_counts=True)
        return [self.words[numbers[place]] for place in np.argsort(-counts, kind="stable")[:n]]

    def prepare(self) -> None:
        """Compute what `neighbours` needs, which is kept."""
        _ = self._means

    def neighbours(self, latent: int, n: int) -> list[tuple[int, float]]:
        """Return the other latents that fire on words of the most similar meaning, with cosines, the most similar first.

        Compared are the means of their words' embeddings, less what the latents have in common. None for a latent without words."""
        if not self._count[latent]:
            return []
        cosines = self._means @ self._means[latent]
        cosines[latent] = -np.inf
        cosines[self._count == 0] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:n]
        return [(other, float(cosines[other])) for other in best.tolist() if np.isfinite(cosines[other])]

    def often(self, share: float) -> Any:
        """Return which latent fires on which word often [F, W], as a sparse matrix of ones: on `share` of its words and on two at least."""
        often = self._counts.copy()
        least = np.repeat(np.maximum(share * self._count, 2), np.diff(often.indptr))
        often.data = (often.data >= least).astype(np.float32)
        often.eliminate_zeros()
        return often

    @cached_property
    def _counts(self) -> Any:
        """How often each latent has each word [F, W], as a sparse matrix."""
        rows = np.repeat(np.arange(len(self.of_latent)), self._count)
        entries = np.ones(len(rows), np.float32), (rows, self.of_latent[self.of_latent >= 0])
        return sparse.csr_matrix(entries, shape=(len(self.of_latent), len(self.words)))

    @cached_property
    def _means(self) -> NDArray[np.float32]:
        """The mean of each latent's word embeddings less the mean over latents [F, E], of norm 1; zeros without words."""
        means = np.asarray(self._counts @ self.vectors) / np.maximum(self._count, 1)[:, None]
        means[self._count > 0] -= means[self._count > 0].mean(0)
        return _unit(means.astype(np.float32))


def scores_for(
    features: FeaturesFolder, meanings: Meanings, labels: Mapping[int, str], query: str
) -> NDArray[np.float32]:
    """Return how well each latent fits a query in words [F]: the larger of the scores of its words and of its label, if it has one.

    -inf for a latent that never fires and has no label. Raises RunError for a query without words, ModelError when the word
    embeddings cannot be fetched."""
    vectors = embeddings.of_texts([query, *labels.values()])
    if not vectors[0].any():
        raise RunError(f"{query!r} has no words to search for")
    if vectors.shape[1] != meanings.vectors.shape[1]:
        path = features.path / FILE
        raise RunError(f"{path} is damaged: its embeddings have another width", fix=f"rm {quoted(path)}")
    scores = meanings.scores(vectors[0], meanings.belonging(query))
    if labels:
        latents = list(labels)
        scores[latents] = np.maximum(scores[latents], _unit(vectors[1:]) @ _unit(vectors[0]))
    return scores


def search(features: FeaturesFolder, meanings: Meanings, query: str, most: int = 10) -> list[Match]:
    """Return the latents that fit a query in words best, the best first (`scores_for`)."""
    labels = {latent: label.label for latent, label in features.labels.all().items() if label.label}
    scores = scores_for(features, meanings, labels, query)
    best = np.argsort(-scores, kind="stable")[:most]
    return [
        Match(latent, float(scores[latent]), meanings.commonest(latent))
        for latent in best.tolist()
        if np.isfinite(scores[latent])
    ]


def fetch_what_is_needed() -> None:
    """Fetch the word embeddings, some 19 MB, and WordNet, some 10 MB, where they are missing. Without WordNet it says so and goes on.

    Raises ModelError when the word embeddings cannot be fetched."""
    embeddings.folder()
    try:
        wordnet.fetch()
    except ModelError as error:
        log.warning(
            "%s; the search goes by word embeddings alone, and finds fewer members of what a query names",
            error.message,
        )


def meanings_of(features: FeaturesFolder, progress: Progress = no_progress) -> Meanings:
    """Return the words of a features folder with their embeddings; they are collected at the first call and kept in the folder.

    Raises RunError for a damaged file, ModelError when the word embeddings cannot be fetched, BusyError when words have to be collected
    and another process works in the folder."""
    if kept := kept_meanings(features):
        return kept
    embeddings.of_texts([])  # it may need the network, and the work would be lost
    with files.alone_in(features.path):
        if kept := kept_meanings(features):
            return kept
        words, of_latent = words_of_latents(features, progress)
        return save_meanings(features, words, embeddings.of_texts(words), of_latent)


def collect_where_possible(features: FeaturesFolder, progress: Progress = no_progress) -> bool:
    """Collect the words if the embeddings have been fetched before, and return whether the folder has them now. Needs no network.

    Embeddings that are damaged and another process that works in the folder are a warning. Raises RunError for a damaged file."""
    try:
        if not embeddings.fetched():
            return kept_meanings(features) is not None
        meanings_of(features, progress)
    except (ModelError, BusyError) as error:  # the features are there all the same
        log.warning("%s", error)
        return False
    return True


def kept_meanings(features: FeaturesFolder) -> Meanings | None:
    """Return what is kept in the folder; None where nothing is, or of other features. Raises RunError when it is damaged."""
    path = features.path / FILE
    if not path.exists():
        return None
    fix = f"rm {quoted(path)}"
    tensors = read_tensors(path, fix)
    try:
        if bytes(tensors["identity"].tolist()) != _identity(features):
            return None
        content, lengths = bytes(tensors["bytes"].tolist()), tensors["lengths"].numpy()
        vectors, of_latent = tensors["vectors"].float().numpy(), tensors["of_latent"].numpy()
        fits = (
            lengths.ndim == 1
            and {lengths.dtype.kind, of_latent.dtype.kind} == {"i"}
            and (lengths >= 0).all()
            and int(lengths.sum()) <= len(content)
            and vectors.ndim == 2
            and len(vectors) == len(lengths)
            and np.isfinite(vectors).all()
            and of_latent.shape == (len(features), WORDS)
            and of_latent.min() >= -1
            and of_latent.max() < len(lengths)
        )
        if not fits:
            raise ValueError("its tensors do not fit together")
        ends = np.cumsum(lengths)
        words = [content[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
        raise RunError(f"{path} is damaged: {error}", fix=fix) from error
    return Meanings(words, vectors, of_latent)


def save_meanings(
    features: FeaturesFolder,
    words: list[str],
    vectors: Float[np.ndarray, "W E"],
    of_latent: Int[np.ndarray, "F m"],
) -> Meanings:
    """Write what `kept_meanings` reads, and return it."""
    spelled = [word.encode() for word in words]
    texts = {"identity": _identity(features), "bytes": b"".join(spelled)}
    tensors = {
        # safetensors has no empty tensors of bytes
        name: torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        for name, content in texts.items()
    }
    tensors |= {
        "lengths": torch.tensor([len(word) for word in spelled], dtype=torch.int32),
        "vectors": torch.from_numpy(vectors.astype(np.float16)),
        "of_latent": torch.from_numpy(of_latent),
    }
    files.write_tensors(features.path / FILE, tensors, f"sae-meaning-{FORMAT}")
    return Meanings(words, vectors.astype(np.float16).astype(np.float32), of_latent)


def _identity(features: FeaturesFolder) -> bytes:
    """Return what the words and their embeddings depend on."""
    return f"{features.digest} {embeddings.VERSION} {FORMAT}".encode()


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
