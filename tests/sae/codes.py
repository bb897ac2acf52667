"""Sparse codes of given numbers, for tests."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.code import SparseCode, offsets_of


def from_dense(dense: Float[Tensor, "B F"]) -> SparseCode:
    """Compress dense rows; zeros are left out."""
    rows, indices = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(dense))
    return SparseCode(dense[rows, indices], indices, offsets_of(counts), dense.shape[1])
