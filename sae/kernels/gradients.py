"""Gradients by rows: of a weight matrix's rows only those have one whose latents fired, and no more are kept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.choice import backend


class RowGradient:
    """Gradient of a matrix whose rows belong to latents, as the rows that have one; memory is kept from step to step.

    After `merge`, `rows` are whole, in no order: `slots[latent]` is the place of a latent's, -1 when it has none.
    `touched` says whether anything was added since `clear`, be it for no latent."""

    latents: Int[Tensor, "n"]
    """Whose rows there are, in their order."""
    slots: Int[Tensor, "F"]
    touched: bool

    def __init__(self, matrix: Float[Tensor, "F D"]):
        self.matrix = matrix
        self.slots = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
        self._buffer = matrix.new_empty(0, matrix.shape[1])
        self.clear()

    @property
    def rows(self) -> Float[Tensor, "n D"]:
        """The gradient of row `latents[i]` is row i."""
        return self._buffer[: len(self.latents)]

    def clear(self) -> None:
        """Forget everything."""
        self.latents = torch.empty(0, dtype=torch.int64, device=self.slots.device)
        self.slots.fill_(-1)
        self.touched = False
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add_entries(self, code: SparseCode, rows: Int[Tensor, "nnz"], x: Float[Tensor, "B D"]) -> None:
        """For each entry of the code, add its value times its row of x to the gradient of its latent."""
        kernels = backend(self.matrix)
        groups = kernels.group(code.indices, code.n_latents)
        first = not len(self.latents)
        out = self._append(groups.latents) if first else x.new_empty(len(groups.latents), x.shape[1])
        kernels.sums_by_latent(groups, rows, code.values, x, out)
        self.touched = True
        if not first:
            self.add_rows(groups.latents, out)

    def add_rows(self, latents: Int[Tensor, "n"], rows: Float[Tensor, "n D"]) -> None:
        """Add to the gradient of each of these latents, all different, a row."""
        self.touched = True
        self._waiting.append(
            (latents, rows)
        )  # those that come from entries, the most, need no copy if they are first

    def merge(self) -> None:
        """Bring together what was added."""
        for latents, rows in self._waiting:
            slots = self.slots[latents].long()
            known = slots >= 0
            self._buffer.index_add_(0, slots[known], rows[known])
            self._append(latents[~known]).copy_(rows[~known])
        self._waiting.clear()

    def _append(self, latents: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
        """Places for these latents' rows, not filled."""
        begin, end = len(self.latents), len(self.latents) + len(latents)
        if end > len(self._buffer):
            larger = self.matrix.new_empty(min(len(self.matrix), end + end // 4), self.matrix.shape[1])
            larger[:begin] = self.rows
            self._buffer = larger
        self.slots[latents] = torch.arange(begin, end, dtype=torch.int32, device=latents.device)
        self.latents = torch.cat([self.latents, latents]) if begin else latents
        return self._buffer[begin:end]


_collecting: dict[
    tuple[int, int], RowGradient
] = {}  # of all threads: a GPU's backward pass runs in one of its own


@contextmanager
def gradients_by_row(gradients: Iterable[RowGradient]) -> Iterator[None]:
    """Within, a backward pass puts what kernels contribute to the gradients of these matrices there, not into `.grad`.

    What other operations contribute goes to `.grad` as ever: the gradient is the sum of both."""
    found = {_key(gradient.matrix): gradient for gradient in gradients}
    _collecting.update(found)
    try:
        yield
    finally:
        for key in found:
            del _collecting[key]
    for gradient in found.values():
        gradient.merge()


def collected(matrix: Float[Tensor, "F D"]) -> RowGradient | None:
    """Where the gradient of this matrix is to go, if it is collected by rows. Its transpose is the same matrix."""
    return _collecting.get(_key(matrix))


def _key(matrix: Tensor) -> tuple[int, int]:
    return matrix.data_ptr(), matrix.numel()
