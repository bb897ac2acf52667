"""Row-sparse gradients: only the weights of latents that fired have one, and only these rows are stored."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.choice import backend


class RowGradient:
    """The gradient of a matrix whose rows belong to latents, as the rows that have one. Memory is reused from step to step.

    After `merge`, `rows` holds all that was added, in no order: `slots[latent]` is the place of a latent's row, -1 where it
    has none. `touched` says whether anything was added since `clear`, even if it was for no latent."""

    latents: Int[Tensor, "n"]
    """The latents of the rows, in the order of the rows."""
    slots: Int[Tensor, "F"]
    touched: bool

    def __init__(self, matrix: Float[Tensor, "F D"]):
        self.matrix = matrix
        self.slots = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
        self._buffer = matrix.new_empty(0, matrix.shape[1])
        self.clear()

    @property
    def rows(self) -> Float[Tensor, "n D"]:
        """The stored rows: row i is the gradient of the matrix's row `latents[i]`."""
        return self._buffer[: len(self.latents)]

    def clear(self) -> None:
        """Drop all rows; keep the memory."""
        self.latents = torch.empty(0, dtype=torch.int64, device=self.slots.device)
        self.slots.fill_(-1)
        self.touched = False
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add_entries(self, code: SparseCode, rows: Int[Tensor, "nnz"], x: Float[Tensor, "B D"]) -> None:
        """Add, for each entry of the code, its value times its row of x to the gradient of its latent."""
        kernels = backend(self.matrix)
        groups = kernels.group(code.indices, code.n_latents)
        # In most steps this is the only or the first contribution to a matrix; it is then summed right into the buffer,
        # without a copy of what is the largest part of the gradient.
        first = not len(self.latents)
        out = self._append(groups.latents) if first else x.new_empty(len(groups.latents), x.shape[1])
        kernels.sums_by_latent(groups, rows, code.values, x, out)
        self.touched = True
        if not first:
            self.add_rows(groups.latents, out)

    def add_rows(self, latents: Int[Tensor, "n"], rows: Float[Tensor, "n D"]) -> None:
        """Add a row to the gradient of each of these latents, which must all differ."""
        self.touched = True
        self._waiting.append((latents, rows))

    def merge(self) -> None:
        """Sum the rows that were added for the same latent."""
        for latents, rows in self._waiting:
            slots = self.slots[latents].long()
            known = slots >= 0  # latents that have a row already; within one addition all latents differ
            self._buffer.index_add_(0, slots[known], rows[known])
            self._append(latents[~known]).copy_(rows[~known])
        self._waiting.clear()

    def _append(self, latents: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
        """Append rows for these latents. Return them, not yet filled."""
        begin, end = len(self.latents), len(self.latents) + len(latents)
        if end > len(self._buffer):
            # A quarter more than needed, because which latents fire changes from step to step.
            larger = self.matrix.new_empty(min(len(self.matrix), end + end // 4), self.matrix.shape[1])
            larger[:begin] = self.rows
            self._buffer = larger
        self.slots[latents] = torch.arange(begin, end, dtype=torch.int32, device=latents.device)
        self.latents = torch.cat([self.latents, latents]) if begin else latents
        return self._buffer[begin:end]


# Keyed by data pointer and shared by all threads on purpose: CUDA runs the backward pass on a thread of its own, so that a
# ContextVar set around backward() would not be visible there. A matrix and its transpose share the pointer.
_collecting: dict[tuple[int, int], RowGradient] = {}


@contextmanager
def gradients_by_row(gradients: Iterable[RowGradient]) -> Iterator[None]:
    """Collect what kernels contribute to the gradients of these matrices in `gradients`, inside the `with` block.

    What other operations contribute goes into `.grad` as usual: the gradient is the sum of both."""
    by_key = {_key(gradient.matrix): gradient for gradient in gradients}
    _collecting.update(by_key)
    try:
        yield
    finally:
        for key in by_key:
            del _collecting[key]
    for gradient in by_key.values():
        gradient.merge()


def collected(matrix: Float[Tensor, "F D"]) -> RowGradient | None:
    """Return where the gradient of this matrix, or of its transpose, is collected by rows; None if it is not."""
    return _collecting.get(_key(matrix))


def _key(matrix: Tensor) -> tuple[int, int]:
    return matrix.data_ptr(), matrix.numel()
