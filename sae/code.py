"""SparseCode: which latents fire on each row and how strongly; what every part of the workbench speaks of."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SparseCode(NamedTuple):
    """B rows of at most n_latents values each, compressed by rows.

    Row b owns `values[offsets[b]:offsets[b + 1]]`, in no particular order; an index stands at most once in a
    row. Values are signed. A stored zero is allowed and means the same as no entry."""

    values: Float[Tensor, "nnz"]
    indices: Int[Tensor, "nnz"]
    offsets: Int[Tensor, "B+1"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        """B."""
        return len(self.offsets) - 1

    def rows(self) -> Int[Tensor, "nnz"]:
        """Row of each entry."""
        counts = self.offsets.diff()
        return torch.arange(self.n_rows, device=counts.device).repeat_interleave(counts)

    def spread(self, per_latent: Float[Tensor, "F"]) -> Float[Tensor, "nnz"]:
        """A number of each latent, given to each of its entries; gradients add up in one fixed order."""
        return per_latent.index_select(0, self.indices)  # plain indexing would add them by threads at once

    def dense(self) -> Float[Tensor, "B F"]:
        """The same code with every zero written out: for small work."""
        out = self.values.new_zeros(self.n_rows, self.n_latents)
        return out.index_put((self.rows(), self.indices), self.values)

    def of(self, latent: int) -> Float[Tensor, "B"]:
        """One latent's value on every row, 0 where it has no entry."""
        here = self.indices == latent
        return self.values.new_zeros(self.n_rows).index_put((self.rows()[here],), self.values[here])

    def l0(self) -> Int[Tensor, "B"]:
        """Non-zero entries of each row, of either sign."""
        running = torch.cat([self.offsets.new_zeros(1), (self.values != 0).cumsum(0)])
        return running[self.offsets].diff()

    def fired(self) -> Bool[Tensor, "F"]:
        """Which latents have a non-zero value in some row."""
        fired = torch.zeros(self.n_latents, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values != 0]] = True
        return fired

    def relu(self) -> "SparseCode":
        """The same pattern with negative values at zero."""
        return self._replace(values=self.values.relu())

    def without_zeros(self) -> "SparseCode":
        """The same code with stored zeros removed, so that nnz is the summed L0."""
        keep = self.values != 0
        running = torch.cat([self.offsets.new_zeros(1), keep.cumsum(0)])
        return SparseCode(self.values[keep], self.indices[keep], running[self.offsets], self.n_latents)

    def detach(self) -> "SparseCode":
        """The same code, cut off from the graph."""
        return self._replace(values=self.values.detach())


def from_dense(dense: Float[Tensor, "B F"]) -> SparseCode:
    """Compress dense rows; zeros are left out."""
    rows, indices = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(dense))
    return SparseCode(dense[rows, indices], indices, offsets_of(counts), dense.shape[1])


def offsets_of(counts: Int[Tensor, "B"]) -> Int[Tensor, "B+1"]:
    """Where each row begins, and the end of the last, for rows of these lengths."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
