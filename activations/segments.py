"""Segments: runs of one document's tokens within windows, [m, 5] of window, column, length, document, position in it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activations.tokens import NOWHERE, Window

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
