"""The text of a store as rules see it: every row's token and place, the half that chooses rules and the half that scores them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from activations.store import Store
from activations.token_text import TokenText

FEWEST_DOCUMENTS = 8  # with fewer, the text is halved by windows
MOST_GROUPS = (
    200  # units of the scoring half are resampled in this many groups at most, to bound the bootstrap's work
)


@dataclass(frozen=True)
class Corpus:
    """N = W T rows, window after window as in the store, with those that `sae features` leaves out (BOS, padding) among them.

    A row is (window, column). Rules may look at any row of a window, but only rows of a half count."""

    tokens: NDArray[np.int32]
    """Token ids [W, T]."""
    positions: NDArray[np.int32]
    """Position of each token in its document [W, T]; negative outside documents."""
    groups: NDArray[np.int32]
    """For each row [N] the group of documents (or windows) that it is resampled with, in the scoring half; -1 elsewhere."""
    choosing: NDArray[np.bool_]
    """Rows [N] of the half that rules are chosen on."""
    text: TokenText
    by_windows: bool
    """Whether the halves are of windows, because there are too few documents."""

    @property
    def n_rows(self) -> int:
        """N, the number of rows."""
        return self.tokens.size

    @property
    def n_counted(self) -> int:
        """The number of rows in either half."""
        return int(self.choosing.sum() + self.scoring.sum())

    @property
    def n_groups(self) -> int:
        """The number of groups in the scoring half."""
        return int(self.groups.max(initial=-1)) + 1

    @property
    def scoring(self) -> NDArray[np.bool_]:
        """Rows [N] of the half that rules are scored on."""
        return self.groups >= 0

    @cached_property
    def contexts(self) -> NDArray[np.int64]:
        """For each row [N] the number of its last two tokens among the pairs that both halves have; -1 for any other row, and for
        the first of a window."""
        tokens, pairs = self.tokens.astype(np.int64), np.full(self.tokens.shape, -1)
        pairs[:, 1:] = tokens[:, :-1] * (int(tokens.max(initial=0)) + 1) + tokens[:, 1:]
        flat = pairs.ravel()
        of_window = flat >= 0
        known = np.intersect1d(flat[of_window & self.choosing], flat[of_window & self.scoring])
        place = np.searchsorted(known, flat)
        held = of_window & (self.choosing | self.scoring)
        held[held] = np.isin(flat[held], known)
        return np.where(held, place, -1)


def read_corpus(store: Store, n_shards: int, text: TokenText) -> Corpus:
    """Read the tokens of a store's first shards and halve them (see `corpus`)."""
    parts = []
    for number in range(n_shards):
        shard = store.read(number)
        parts.append((shard.tokens, shard.documents, shard.positions, store.rows(shard)))
    tokens, documents, positions, counted = (
        np.concatenate([part.numpy() for part in column]) for column in zip(*parts, strict=True)
    )
    return corpus(tokens, documents, positions, counted, text)


def corpus(
    tokens: NDArray[np.int32],
    documents: NDArray[np.int32],
    positions: NDArray[np.int32],
    counted: NDArray[np.bool_],
    text: TokenText,
) -> Corpus:
    """Halve windows [W, T] by documents: whole documents choose or score, drawn by a hash of their number.

    `counted` marks the rows that count. With fewer than 8 documents whole windows are drawn instead."""
    units, by_windows = documents, len(np.unique(documents[counted])) < FEWEST_DOCUMENTS
    if by_windows:
        units = np.broadcast_to(np.arange(len(tokens), dtype=np.int32)[:, None], tokens.shape)
    first = chooses(units)
    scored = (counted & ~first).ravel()
    _, place = np.unique(units.ravel()[scored], return_inverse=True)
    groups = np.full(tokens.size, -1, np.int32)
    groups[scored] = place % MOST_GROUPS
    return Corpus(tokens, positions, groups, (counted & first).ravel(), text, by_windows)


def chooses(documents: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which documents, by their number, belong to the half of the text that explanations are chosen on."""
    return _mixed(documents.astype(np.uint64)) % np.uint64(2) == 0


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 of each number; unsigned multiplication wraps around."""
    h = numbers + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))
