"""The rows of a store: which document each comes from, stored as segments, and which rows a split takes.

A row is one token's activation. A shard holds n windows of T tokens, so that per-row facts are tensors [n, T]. A segment is
a run of consecutive tokens of one document in one window: (window, column, length, document, position), where
`position` is the place of its first token in the document. Documents are NOWHERE at a BOS, at padding and at tokens of a
chat role that was not selected."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activations.tokens import NOWHERE, Window

Split = Literal["train", "held-out", "all"]
Positions = Literal["all", "last"]

NAN = float("nan")  # the label of a row that has none
# One document in ten is held out; this is the same for every store, so that no run trains on another run's test text
HELD_OUT_ONE_IN = 10


def is_held_out(documents: Tensor) -> Tensor:
    """Return which document numbers are held out: bool, of the shape of `documents` (any integer type).

    Exactly one of every ten consecutive documents is held out, at a place within the ten that is a hash of the ten's
    number. Document 1 is held out, so that two documents are enough to have both splits; NOWHERE never is."""
    ten = documents.numpy().astype(np.uint64) // np.uint64(HELD_OUT_ONE_IN)
    # The finaliser of splitmix64. A fixed place within each ten would pick documents that a periodic source makes alike.
    h = (ten ^ (ten >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    place = torch.from_numpy(((h ^ (h >> np.uint64(31))) % np.uint64(HELD_OUT_ONE_IN)).astype(np.int32))
    return (documents % HELD_OUT_ONE_IN == (place + 1) % HELD_OUT_ONE_IN) & (documents >= 0)


def included(documents: Tensor, excluded: int) -> Tensor:
    """Return which rows [n, T] are neither padding, nor of a chat role that was not selected, nor among the first `excluded`
    of their window: bool.

    A BOS (a first token that belongs to no document) counts when `excluded` is 0."""
    column = torch.arange(documents.shape[1])
    bos = (documents == NOWHERE) & (column == 0)
    return ((documents != NOWHERE) | bos) & (column >= excluded)


def ends_a_run(documents: Tensor) -> Tensor:
    """Return which rows [n, T] are the last of a document in their window: bool. A BOS or padding never is."""
    following = torch.nn.functional.pad(documents[:, 1:], (0, 1), value=NOWHERE)
    return (documents != NOWHERE) & (documents != following)


def select(documents: Tensor, excluded: int, split: Split, positions: Positions) -> Tensor:
    """Return which rows [n, T] belong to a split, as `Store.rows` explains: bool."""
    chosen = included(documents, excluded)
    if positions == "last":
        chosen &= ends_a_run(documents)
    if split == "all":
        return chosen
    held_out = is_held_out(documents)
    return chosen & (held_out if split == "held-out" else ~held_out)


def count_selected(
    segments: Tensor, windows: int, context: int, excluded: int, split: Split, positions: Positions
) -> int:
    """Return how many rows `select` chooses in windows that have these segments, without expanding them."""
    column, length, document = segments.long().T[1:4]
    first = column.clamp_min(excluded)
    rows = (column + length - first).clamp(0, 1 if positions == "last" else context)
    if positions == "last" and len(segments) > 1:
        # Where only positions jump, the next segment continues the same document
        window, end = segments.long()[:, 0], column + length
        goes_on = (window[1:] == window[:-1]) & (column[1:] == end[:-1]) & (document[1:] == document[:-1])
        rows[:-1][goes_on] = 0
    if split != "all":
        rows = rows[is_held_out(document) == (split == "held-out")]
    # A BOS belongs to no document: it is in no segment, is never held out and never the last row of a document
    bos = windows - int((column == 0).sum())
    return int(rows.sum()) + bos * (excluded == 0 and split != "held-out" and positions == "all")


def segments_of(windows: list[Window]) -> NDArray[np.int32]:
    """Return the segments [m, 5] of some windows, in order."""
    segments = []
    for number, window in enumerate(windows):
        # Another program's files may leave out tokens of a document, so that its positions jump
        follows = np.diff(window.positions, prepend=NOWHERE) == (window.documents != NOWHERE)
        starts = np.flatnonzero((np.diff(window.documents, prepend=NOWHERE - 1) != 0) | ~follows)
        for start, stop in zip(starts, [*starts[1:], len(window.documents)], strict=True):
            if window.documents[start] != NOWHERE:
                origin = (window.documents[start], window.positions[start])
                segments.append((number, start, stop - start, *origin))
    return np.array(segments, np.int32).reshape(-1, 5)


def expand(segments: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return documents and positions [n, T], int32, of windows with these segments: the inverse of `segments_of`."""
    length, position = segments.long().T[[2, 4]]
    row, step = _rows_of(segments, shape)
    documents, positions = torch.full((2, shape.numel()), NOWHERE, dtype=torch.int32)
    documents[row] = segments[:, 3].repeat_interleave(length)
    positions[row] = (position.repeat_interleave(length) + step).int()
    return documents.view(shape), positions.view(shape)


def spread_labels(labels: Tensor, segments: Tensor, shape: torch.Size) -> Tensor:
    """Return a label for each row [n, T], given one for each segment [m]; NaN outside all segments."""
    spread = torch.full((shape.numel(),), NAN)
    spread[_rows_of(segments, shape)[0]] = labels.repeat_interleave(segments[:, 2].long())
    return spread.view(shape)


def lie_within(segments: Tensor, windows: int, context: int) -> bool:
    """Return whether every segment lies within one of the windows and after the segment before it.

    Segments for which this holds do not overlap, so that they expand to at most windows * context rows."""
    window, column, length, document, position = segments.long().T
    inside = (window >= 0) & (window < windows) & (column >= 0) & (length > 0)
    start = window * context + column
    apart = start[1:] >= (start + length)[:-1]
    inside &= (column + length <= context) & (document >= 0) & (position >= 0)
    return bool(inside.all() and apart.all())


def _rows_of(segments: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the flat index of every row of every segment, and its step 0, 1, … within the segment."""
    window, column, length = segments.long().T[:3]
    step = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
    return (window * shape[1] + column).repeat_interleave(length) + step, step
