"""The words that latents fire on: those at the peaks of their strongest examples and of examples drawn at random, for all latents at once."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from activations.progress import Progress, no_progress
from activations.token_text import TokenText
from sae.features.folder import EXAMPLES, FeaturesFolder

WORDS, STRONGEST = 50, 10  # words of each latent, and how many of them are from its strongest examples
REACH = 6  # tokens to either side of a peak that its word may take in
MARGIN = 4  # tokens beyond those, as many as a character has bytes, since it may begin there
AT_ONCE = 4096  # latents whose windows are in memory together
LETTER = re.compile(r"\w")


def word_at(tokens: Sequence[str], peak: int) -> str:
    """Return the word that the token at `peak` is a part of, in lower case; the token itself where that has no letters or digits."""
    start, stop = peak, peak + 1
    if not LETTER.search(tokens[peak]):
        return tokens[peak].strip().lower()
    while (
        start > 0
        and LETTER.match(tokens[start])
        and LETTER.match(tokens[start - 1][-1:])
        and peak - start < REACH
    ):
        start -= 1
    while stop < len(tokens) and LETTER.match(tokens[stop]) and stop - peak <= REACH:
        stop += 1
    return "".join(tokens[start:stop]).strip().lower()


def words_of_latents(
    features: FeaturesFolder, progress: Progress = no_progress
) -> tuple[list[str], Int[np.ndarray, "F m"]]:
    """Return all words, and the numbers of those of each latent: of its strongest examples first, -1 behind the last.

    The words are those at the peaks of the STRONGEST examples of the stronger sign, and of others that are evenly spaced among
    the examples drawn at random, sorted by value: those are typical. Raises RunError when the examples are damaged."""
    words: dict[str, int] = {}
    spelled = _Spelled.of(features.token_text)
    with features.damage_named(EXAMPLES), progress("words", len(features), "latents") as advance:
        data = {name: tensor.numpy() for name, tensor in features.example_tensors.items()}
        pairs, peaks = _chosen(data)
        of_latent = np.full((len(pairs), WORDS), -1, np.int32)
        for start in range(0, len(pairs), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            chosen = pairs[rows] >= 0
            found = _words(data, pairs[rows][chosen], peaks[rows][chosen], spelled, features.token_text)
            numbers = np.full(chosen.shape, -1, np.int32)
            numbers[chosen] = [words.setdefault(word, len(words)) if word else -1 for word in found]
            # Examples without a word leave a gap, which the next word fills
            order = np.argsort(numbers < 0, axis=1, kind="stable")
            of_latent[rows, : pairs.shape[1]] = np.take_along_axis(numbers, order, axis=1)
            advance(len(chosen))
    return list(words), of_latent


class _Spelled(NamedTuple):
    """What the text of each token id is like [V + 1]; the last entry stands for all ids that are not in the vocabulary."""

    whole: Bool[np.ndarray, "n"]
    """Whether it holds whole characters alone, so that its text does not depend on its neighbours."""
    has: Bool[np.ndarray, "n"]
    """Whether it has a letter or digit."""
    begins: Bool[np.ndarray, "n"]
    ends: Bool[np.ndarray, "n"]
    texts: list[str]

    @classmethod
    def of(cls, text: TokenText) -> "_Spelled":
        texts, whole = [], []
        for spelling in [*text.spellings, None]:
            try:
                texts.append((spelling or b"").decode())
                whole.append(spelling is not None)
            except UnicodeDecodeError:
                texts.append("")
                whole.append(False)
        has, begins = ([test(one) is not None for one in texts] for test in (LETTER.search, LETTER.match))
        ends = [LETTER.match(one[-1:]) is not None for one in texts]
        return cls(np.array(whole), np.array(has), np.array(begins), np.array(ends), texts)


def _chosen(data: Mapping[str, NDArray]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each latent the pairs of its examples [F, WORDS], -1 for none, and the position of each one's peak in its window."""
    values, offsets, positions = data["values"], data["offsets"], data["value_positions"]
    if not (len(values) == len(positions) and offsets[0] == 0 and offsets[-1] == len(values)):
        raise ValueError("values and offsets do not fit together")
    highest, lowest, largest = (
        _first_largest(heights, offsets) for heights in (values, -values, np.abs(values))
    )
    by_kind = {"positive": highest, "negative": lowest, "sampled": largest}
    pairs = {kind: data[kind].astype(np.int64) for kind in by_kind}
    at = {kind: np.where(pairs[kind] >= 0, places[pairs[kind]], 0) for kind, places in by_kind.items()}

    def strength(kind: str) -> NDArray[np.float32]:
        return np.where(pairs[kind] >= 0, np.abs(values[at[kind]]), 0)[:, :1]

    below = strength("negative") > strength("positive")
    kept = min(STRONGEST, pairs["positive"].shape[1])
    strongest = [
        np.where(below, both["negative"][:, :kept], both["positive"][:, :kept]) for both in (pairs, at)
    ]
    order = np.argsort(np.where(pairs["sampled"] >= 0, -values[at["sampled"]], np.inf), axis=1, kind="stable")
    sampled = [np.take_along_axis(both["sampled"], order, axis=1) for both in (pairs, at)]
    spaced = [np.full((len(below), WORDS - STRONGEST), fill) for fill in (-1, 0)]
    counts = (pairs["sampled"] >= 0).sum(1)
    for count in np.unique(counts):
        rows = counts == count
        places = np.linspace(0, count - 1, min(count, WORDS - STRONGEST)).round().astype(int)
        for own, every in zip(spaced, sampled, strict=True):
            own[rows, : len(places)] = every[rows][:, places]
    chosen, places = (np.concatenate(parts, 1) for parts in zip(strongest, spaced, strict=True))
    return chosen, positions[places].astype(np.int64)


def _first_largest(heights: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of the first of the largest heights between each two offsets. Raises ValueError where there is none."""
    sizes = np.diff(offsets)
    if not len(sizes):
        return np.zeros(
            1, np.int64
        )  # no latent has an example; there is still an entry to look up for "none"
    if sizes.min() < 1:
        raise ValueError("an example has no values")
    is_largest = np.flatnonzero(heights == np.repeat(np.maximum.reduceat(heights, offsets[:-1]), sizes))
    owner = np.searchsorted(offsets, is_largest, "right") - 1
    found = is_largest[np.append(True, np.diff(owner) > 0)] if len(owner) else is_largest
    if len(found) != len(sizes):
        raise ValueError("an example's values are not numbers")
    return found


def _words(
    data: Mapping[str, NDArray],
    pairs: NDArray[np.int64],
    peaks: NDArray[np.int64],
    spelled: _Spelled,
    text: TokenText,
) -> list[str]:
    """Return the word at the peak of each example, as `word_at` does from the texts of its whole window."""
    slots = data["window_of_pair"][pairs]
    columns = peaks[:, None] + np.arange(-REACH, REACH + 1)
    width = data["tokens"].shape[1]
    inside = (columns >= 0) & (columns < width)
    columns = np.clip(columns, 0, width - 1)
    ids = data["tokens"][slots[:, None], columns].astype(np.int64)
    unknown = len(spelled.whole) - 1
    ids[(ids < 0) | (ids > unknown)] = unknown
    has, begins, ends = (about[ids] & inside for about in (spelled.has, spelled.begins, spelled.ends))
    start, stop = np.full(len(ids), REACH), np.full(len(ids), REACH + 1)
    going = has[:, REACH].copy()
    for column in range(REACH, 0, -1):
        going &= begins[:, column] & ends[:, column - 1]
        start -= going
    going = has[:, REACH].copy()
    for column in range(REACH + 1, 2 * REACH + 1):
        going &= begins[:, column]
        stop += going
    within = np.arange(2 * REACH + 1)
    keys = np.where((within >= start[:, None]) & (within < stop[:, None]), ids, -1)
    bent = (~spelled.whole[ids] & inside).any(1)
    if text.leading_space != "never":  # the space before a document's first word is not the document's
        bent |= ((data["positions"][slots[:, None], columns] == 0) & inside).any(1)
    known: dict[bytes, str] = {}
    words = []
    for row, key, hard in zip(range(len(ids)), keys, bent.tolist(), strict=True):
        if hard:
            words.append(_in_context(data, int(slots[row]), int(peaks[row]), text))
            continue
        name = key.tobytes()
        if name not in known:
            known[name] = "".join(spelled.texts[one] for one in key[key >= 0]).strip().lower()
        words.append(known[name])
    return words


def _in_context(data: Mapping[str, NDArray], slot: int, peak: int, text: TokenText) -> str:
    """Return the word at a peak where its tokens' texts depend on those beside them."""
    start, stop = max(peak - REACH - MARGIN, 0), peak + REACH + MARGIN + 1
    starts = (data["positions"][slot, start:stop] == 0).tolist()
    pieces = text.pieces(data["tokens"][slot, start:stop].tolist(), starts)
    return word_at(pieces[max(peak - REACH - start, 0) : peak + REACH + 1 - start], min(peak, REACH))
