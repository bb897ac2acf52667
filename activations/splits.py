"""Which rows count: those of a split's documents, no padding, no BOS, or the last of a document alone."""

import numpy as np
import torch
from torch import Tensor

from activations.tokens import NOWHERE

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
