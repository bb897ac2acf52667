"""SparseCode: which latents fire on each row, and how strongly. The type that all parts of the workbench exchange."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SparseCode(NamedTuple):
    """B rows of at most n_latents values each, in compressed rows.

    Row b has `values[offsets[b]:offsets[b + 1]]`, in no particular order; an index occurs at most once in a row. Values are
    signed. A stored zero is allowed and means the same as no entry."""

    values: Float[Tensor, "nnz"]
    indices: Int[Tensor, "nnz"]
    offsets: Int[Tensor, "B+1"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        """The number B of rows."""
        return len(self.offsets) - 1

    def rows(self) -> Int[Tensor, "nnz"]:
        """Return the row of each entry."""
        counts = self.offsets.diff()
        return torch.arange(self.n_rows, device=counts.device).repeat_interleave(counts)

    def spread(self, per_latent: Float[Tensor, "F"]) -> Float[Tensor, "nnz"]:
        """Return a number of each latent for each of its entries. Gradients are summed in one fixed order."""
        return per_latent.index_select(
            0, self.indices
        )  # the gradient of plain indexing is summed by several threads

    def dense(self) -> Float[Tensor, "B F"]:
        """Return the code as a matrix with every zero written out; for small work."""
        out = self.values.new_zeros(self.n_rows, self.n_latents)
        return out.index_put((self.rows(), self.indices), self.values)

    def of(self, latent: int) -> Float[Tensor, "B"]:
        """Return one latent's value on every row, 0 where it has no entry."""
        here = self.indices == latent
        return self.values.new_zeros(self.n_rows).index_put((self.rows()[here],), self.values[here])

    def l0(self) -> Int[Tensor, "B"]:
        """Return the number of non-zero entries of each row, of either sign."""
        running = torch.cat([self.offsets.new_zeros(1), (self.values != 0).cumsum(0)])
        return running[self.offsets].diff()

    def fired(self) -> Bool[Tensor, "F"]:
        """Return which latents have a non-zero value in at least one row."""
        fired = torch.zeros(self.n_latents, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values != 0]] = True
        return fired

    def relu(self) -> "SparseCode":
        """Return the code with negative values set to zero, as stored zeros."""
        return self._replace(values=self.values.relu())

    def without_zeros(self) -> "SparseCode":
        """Return the code without stored zeros, so that its number of entries is the summed L0."""
        keep = self.values != 0
        running = torch.cat([self.offsets.new_zeros(1), keep.cumsum(0)])
        return SparseCode(self.values[keep], self.indices[keep], running[self.offsets], self.n_latents)

    def detach(self) -> "SparseCode":
        """Return the code without gradients."""
        return self._replace(values=self.values.detach())


def offsets_of(counts: Int[Tensor, "B"]) -> Int[Tensor, "B+1"]:
    """Return where each row begins, and where the last one ends, for rows of these lengths."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
