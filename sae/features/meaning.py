"""Search latents by meaning, without a model: static embeddings of the words that each fires on, and of its label.

The words are those at the peaks of a latent's strongest examples and of windows drawn at random, WORDS at most. A latent's score is the
median of their cosines with the query: most of its words have to be about it, and one that fits by chance does not count. Of the scores
tried this found most (LOG.md)."""

import re
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from activations import embeddings
from activations.disk import files
from activations.errors import RunError, quoted
from activations.progress import Progress, no_progress
from sae.features.folder import Example, FeaturesFolder
from sae.runs.saved_sae import read_tensors

FORMAT = 1
FILE = "meaning.safetensors"
WORDS, STRONGEST = 50, 10  # words of each latent, and how many of them are from its strongest examples
REACH = 6  # tokens to either side of a peak that its word may take in
LETTER = re.compile(r"\w")


class Match(NamedTuple):
    """A latent that fits a query."""

    latent: int
    score: float
    """Cosine, from -1 to 1."""
    words: list[str]
    """The commonest of the words that it fires on."""


class Meanings:
    """The words that the latents of a features folder fire on, with their embeddings."""

    def __init__(
        self, words: list[str], vectors: Float[np.ndarray, "W E"], of_latent: Int[np.ndarray, "F m"]
    ):
        self.words, self.vectors, self.of_latent = words, _unit(vectors), of_latent
        # Words of different numbers are put in one array: NaN in place of a missing one is left out of the median below
        self._count = (of_latent >= 0).sum(1)

    def scores(self, query: Float[np.ndarray, "E"]) -> NDArray[np.float32]:
        """Return each latent's score for an embedded query [F]; -inf for a latent that never fires."""
        cosines = np.append(self.vectors @ _unit(query), np.float32(np.inf)).astype(np.float32)
        # Missing words have number -1, which is the last entry: infinite, so that they lie behind all others
        found = cosines[self.of_latent]
        middle = np.maximum(self._count - 1, 0)
        for count in np.unique(
            self._count
        ):  # most latents have all their words; a partition is faster than sorting
            rows = self._count == count
            found[rows] = np.partition(
                found[rows], sorted({max(count - 1, 0) // 2, count // 2 if count else 0}), axis=1
            )
        rows = np.arange(len(found))
        median = (found[rows, middle // 2] + found[rows, (middle + 1) // 2]) / 2
        return np.where(self._count > 0, median, -np.inf).astype(np.float32)

    def commonest(self, latent: int, n: int = 5) -> list[str]:
        """Return a latent's words, the commonest first."""
        numbers, counts = np.unique(self.of_latent[latent][self.of_latent[latent] >= 0], return_counts=True)
        return [self.words[numbers[place]] for place in np.argsort(-counts, kind="stable")[:n]]


def search(features: FeaturesFolder, meanings: Meanings, query: str, most: int = 10) -> list[Match]:
    """Return the latents that fit a query in words best, the best first.

    A label that somebody gave counts too: a latent's score is the larger of its words' and its label's. Raises RunError for a query without
    words, ModelError when the word embeddings cannot be fetched."""
    labels = {latent: label.label for latent, label in features.labels.all().items() if label.label}
    vectors = embeddings.of_texts([query, *labels.values()])
    if not vectors[0].any():
        raise RunError(f"{query!r} has no words to search for")
    scores = meanings.scores(vectors[0])
    if labels:
        latents = list(labels)
        scores[latents] = np.maximum(scores[latents], _unit(vectors[1:]) @ _unit(vectors[0]))
    best = np.argsort(-scores, kind="stable")[:most]
    return [
        Match(latent, float(scores[latent]), meanings.commonest(latent))
        for latent in best.tolist()
        if np.isfinite(scores[latent])
    ]


def meanings_of(features: FeaturesFolder, progress: Progress = no_progress) -> Meanings:
    """Return the words of a features folder with their embeddings; they are collected at the first call and kept in the folder.

    Raises RunError for a damaged file, ModelError when the word embeddings cannot be fetched, BusyError when words have to be collected
    and another process works in the folder."""
    if kept := _read(features):
        return kept
    with files.alone_in(features.path):
        return _read(features) or _collected(features, progress)


def _identity(features: FeaturesFolder) -> str:
    """Return what the file of a features folder has to name to count."""
    return f"{features.digest} {embeddings.VERSION} {FORMAT}"


def _collected(features: FeaturesFolder, progress: Progress) -> Meanings:
    """Collect the words and keep them."""
    words: dict[str, int] = {}
    of_latent = np.full((len(features), WORDS), -1, np.int32)
    with progress("words", len(features), "latents") as advance:
        for latent in range(len(features)):
            own = [words.setdefault(word, len(words)) for word in words_of(features, latent)]
            of_latent[latent, : len(own)] = own
            advance(1)
    vectors = embeddings.of_texts(list(words)).astype(np.float16)
    spelled = [word.encode() for word in words]
    tensors = {
        "identity": _identity(features).encode(),
        "bytes": b"".join(spelled),
    }
    arrays = {
        name: torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        for name, content in tensors.items()
    }
    arrays |= {
        "lengths": torch.tensor([len(word) for word in spelled], dtype=torch.int32),
        "vectors": torch.from_numpy(vectors),
        "of_latent": torch.from_numpy(of_latent),
    }
    files.write_tensors(features.path / FILE, arrays, f"sae-meaning-{FORMAT}")
    return Meanings(list(words), vectors.astype(np.float32), of_latent)


def words_of(features: FeaturesFolder, latent: int) -> list[str]:
    """Return the words at the peaks of a latent's examples: strongest of the stronger sign first, then evenly spaced random ones."""
    sides = features.strongest(latent), features.strongest(latent, -1)
    strongest = max(sides, key=lambda side: abs(side[0].values[side[0].peak]) if side else 0.0)
    sampled = features.sampled(latent)
    # They are sorted by their values: evenly spaced ones are typical
    places = np.linspace(0, len(sampled) - 1, min(len(sampled), WORDS - STRONGEST)).round().astype(int)
    spaced = [sampled[place] for place in places]
    found = [word_at(example) for example in [*strongest[:STRONGEST], *spaced]]
    return [word for word in found if word]


def word_at(example: Example) -> str:
    """Return the word that an example's peak is a part of, in lower case; the token itself where that has no letters or digits."""
    tokens, start, stop = example.tokens, example.peak, example.peak + 1
    if not LETTER.search(tokens[start]):
        return tokens[start].strip().lower()
    while (
        start > 0
        and LETTER.match(tokens[start])
        and LETTER.match(tokens[start - 1][-1:])
        and example.peak - start < REACH
    ):
        start -= 1
    while stop < len(tokens) and LETTER.match(tokens[stop]) and stop - example.peak <= REACH:
        stop += 1
    return "".join(tokens[start:stop]).strip().lower()


def _read(features: FeaturesFolder) -> Meanings | None:
    """Return what is kept in the folder; None where nothing is, or of other features or another format. Raises RunError when it is damaged."""
    path = features.path / FILE
    if not path.exists():
        return None
    fix = f"rm {quoted(path)}"
    tensors = read_tensors(path, fix)
    try:
        if bytes(tensors["identity"].tolist()) != _identity(features).encode():
            return None
        content, ends = bytes(tensors["bytes"].tolist()), np.cumsum(tensors["lengths"].numpy())
        words = [content[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        vectors, of_latent = tensors["vectors"].float().numpy(), tensors["of_latent"].numpy()
        fits = vectors.ndim == 2 and len(vectors) == len(words) and of_latent.shape == (len(features), WORDS)
        if not (fits and of_latent.min() >= -1 and of_latent.max() < len(words)):
            raise ValueError("its tensors do not fit together")
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}", fix=fix) from error
    return Meanings(words, vectors, of_latent)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
