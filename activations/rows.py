"""Which rows of a store count, where each came from, and where their numbers are not finite.

A row is one token's activation. A split holds the rows of some documents without padding, BOS or excluded positions. A
segment is a run of one document's tokens within a window."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from activations.tokens import NOWHERE, Window


def place_of_none(
    x: Float[Tensor, "n T D"], documents: Int[Tensor, "n T"], positions: Int[Tensor, "n T"]
) -> str | None:
    """In words, the first row of some windows with a number that is NaN or infinite; None where there is none.

    All documents of the window are named: through attention one of them spoils the others."""
    # the extremes pass NaN on; asking them is far faster than asking each number
    if not x.numel() or torch.stack(x.aminmax()).isfinite().all():
        return None
    window, column = (~x.isfinite().all(-1)).nonzero()[0].tolist()
    there = [document for document in documents[window].unique().tolist() if document != NOWHERE]
    if not there:
        return f"place {column} of a window of no document"
    among = "" if len(there) == 1 else f", in a window of documents {there[0]} to {there[-1]}"
    document, position = int(documents[window, column]), int(positions[window, column])
    if document == NOWHERE:  # a BOS, or padding
        return f"place {column} of a window of document {there[0]}" if not among else f"place {column}{among}"
    return f"token {position} of document {document}{among}"


HELD_OUT_ONE_IN = 10  # documents; the same for every store, so that no run trains on another's test text


def is_held_out(documents: Tensor) -> Tensor:
    """Which document numbers are held out: one of every ten in a row, at a place mixed from the ten's number.

    bool, of the same shape. Document 1 is among them, so two documents are enough to have one; NOWHERE is not."""
    ten = documents.numpy().astype(np.uint64) // np.uint64(HELD_OUT_ONE_IN)
    h = (ten ^ (ten >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    place = torch.from_numpy(((h ^ (h >> np.uint64(31))) % np.uint64(HELD_OUT_ONE_IN)).astype(np.int32))
    return (documents % HELD_OUT_ONE_IN == (place + 1) % HELD_OUT_ONE_IN) & (documents >= 0)


def kept(documents: Tensor, positions: Tensor, excluded: int) -> Tensor:
    """Rows [n, T] that count: no padding, and not among the first `excluded` of their window."""
    column = torch.arange(documents.shape[1])
    bos = (documents == NOWHERE) & (column == 0)
    return ((documents != NOWHERE) | bos) & (column >= excluded)


def ends_a_run(documents: Tensor) -> Tensor:
    """Rows [n, T] that are the last of a document in their window: bool. Never a BOS or padding."""
    following = torch.nn.functional.pad(documents[:, 1:], (0, 1), value=NOWHERE)
    return (documents != NOWHERE) & (documents != following)


NAN = float("nan")


def segments_of(windows: list[Window]) -> NDArray[np.int32]:
    """The segments of some windows, in order."""
    found = []
    for number, window in enumerate(windows):
        starts = np.flatnonzero(np.diff(window.documents, prepend=NOWHERE - 1))
        for start, stop in zip(starts, [*starts[1:], len(window.documents)], strict=True):
            if window.documents[start] != NOWHERE:
                place = (window.documents[start], window.positions[start])
                found.append((number, start, stop - start, *place))
    return np.array(found, np.int32).reshape(-1, 5)


def expand(segments: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Inverse of `segments_of`: documents and positions [n, T]."""
    length, position = segments.long().T[[2, 4]]
    place, step = _rows_of(segments, shape)
    documents, positions = torch.full((2, shape.numel()), NOWHERE, dtype=torch.int32)
    documents[place] = segments[:, 3].repeat_interleave(length)
    positions[place] = (position.repeat_interleave(length) + step).int()
    return documents.view(shape), positions.view(shape)


def spread(labels: Tensor, segments: Tensor, shape: torch.Size) -> Tensor:
    """A label per segment [m] as one per row [n, T]; NaN outside all segments."""
    found = torch.full((shape.numel(),), NAN)
    found[_rows_of(segments, shape)[0]] = labels.repeat_interleave(segments[:, 2].long())
    return found.view(shape)


def lie_within(segments: Tensor, windows: int, context: int) -> bool:
    """Whether every segment lies inside its window, that is one of so many, and behind the segment before it.

    So all of them together are no longer than the windows."""
    window, column, length, document, position = segments.long().T
    inside = (window >= 0) & (window < windows) & (column >= 0) & (length > 0)
    start = window * context + column
    apart = start[1:] >= (start + length)[:-1]
    inside &= (column + length <= context) & (document >= 0) & (position >= 0)
    return bool(inside.all() and apart.all())


def _rows_of(segments: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Flat place of every row of every segment, and its step 0, 1, … within the segment."""
    window, column, length = segments.long().T[:3]
    step = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
    return (window * shape[1] + column).repeat_interleave(length) + step, step
