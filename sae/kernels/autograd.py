"""The kernels as differentiable operations: encode with a selection, decode, gather rows.

The forward pass encodes with a dense product into a buffer that is reused. The backward pass costs O(nnz * D): gradients reach
the weights through the selected entries alone, and no [B, F] tensor outlives the selection."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.code import SparseCode, offsets_of
from sae.kernels.autograd_functions import (
    Decoded,
    DenseColumns,
    GatherRows,
    SparseProject,
    Strongest,
    entry_rows,
)
from sae.kernels.choice import backend
from sae.kernels.collective import collective
from sae.kernels.reference import Picked

# Numbers in the buffer of pre-activations. On the CPU smaller blocks take less memory and no more time (512 rows of 32,768
# latents are as fast as 2,048); on a GPU each block costs several launches.
BLOCK, GPU_BLOCK = 2**24, 2**26
_local = threading.local()
_products: ContextVar[torch.dtype | None] = ContextVar("products", default=None)


class Pattern(NamedTuple):
    """The selected entries of a [B, F] matrix, as column indices compressed by rows."""

    indices: Int[Tensor, "nnz"]
    offsets: Int[Tensor, "B+1"]


@dataclass(frozen=True, eq=False)
class Projection:
    """Pre-activations u = (x - shift) W + b of some rows, selected from block by block; only what is selected is in the graph.

    Each way to select returns a code of the entries of u that it keeps; gradients of x, shift, W and b flow through these
    and no others. `by_size` compares |u|; values keep their sign."""

    x: Float[Tensor, "B D"]
    W: Float[Tensor, "D F"]
    b: Float[Tensor, "F"]
    shift: Float[Tensor, "D"] | None = None

    @cached_property
    def centred(self) -> Float[Tensor, "B D"]:
        """x - shift, without gradients."""
        with torch.no_grad():
            return self.x if self.shift is None else self.x - self.shift

    @cached_property
    def dense(self) -> Float[Tensor, "B F"]:
        """All of u, without gradients and in memory of its own, for rules that look at all of it."""
        with torch.no_grad():
            return (self.centred @ self.W).add_(self.b)

    @cached_property
    def rounded(self) -> Float[Tensor, "B F"]:
        """All of u as `dense`, but from products in the precision of `products_in`, for rules that only compare: two entries
        that round to the same number are no tie."""
        dtype = _products.get()
        if dtype is None or not self._rounds:
            return self.dense
        with torch.no_grad():
            return (self.centred.to(dtype) @ _in(dtype, self.W)).to(self.W.dtype).add_(self.b)

    def of(self, latents: Int[Tensor, "n"]) -> Float[Tensor, "B n"]:
        """Return u of these latents, which must all differ, on every row, with gradients, in the precision of products."""
        dtype = _products.get() or self.W.dtype
        rows = rows_of(self.W.T, latents).to(dtype)
        return DenseColumns.apply(self.x, self.shift, rows, self.b[latents], self.centred.to(dtype))

    def largest(self, k: int | Int[Tensor, "B"], by_size: bool = False) -> SparseCode:
        """Select the k largest of each row, or k[i] of row i; all of a row when k >= F. Of equal ones some, always k."""

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z, selecting=True).largest_per_row(
                z, self._bias, k if isinstance(k, int) else k[rows], by_size
            )

        picked = _joined(list(self._blocks(choose)))
        if isinstance(k, int):
            # Where ranks share the latents, each has selected its own k largest; together they keep the row's.
            is_kept = collective().largest_of_row(
                _keys(picked, by_size).view(len(self.x), min(k, self.W.shape[1])), k
            )
            picked = picked if is_kept is None else _keep(picked, is_kept.flatten())
        return self._code(picked)

    def largest_of_batch(self, k: float, by_size: bool = False) -> SparseCode:
        """Select the floor(B k) largest of all B rows together, those of other ranks included: a row may have none or many."""
        total = int(collective().rows(len(self.x)) * k)

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z, selecting=True).largest_of_batch(z, self._bias, total, by_size)

        return self._code(_largest(_joined(list(self._blocks(choose))), total, by_size))

    def above(self, threshold: Float[Tensor, "*F"], by_size: bool = False) -> SparseCode:
        """Select all above a threshold, which is one for all latents or one for each."""
        level = threshold.detach().expand_as(self.b).contiguous()

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z, selecting=True).above(z, self._bias, level, by_size)

        return self._code(_joined(list(self._blocks(choose))))

    def keep(self, pattern: Pattern, values: Float[Tensor, "nnz"] | None = None) -> SparseCode:
        """Select the entries of a pattern, whose values the caller may know.

        An entry may be selected more than once in a row, and each counts; the result is then not a valid code."""
        rows = entry_rows(pattern.offsets)
        if values is None:
            values = self._exact(*pattern) if self._rounds else self.dense[rows, pattern.indices]
        return self._entries(values, *pattern, rows)

    @property
    def _rounds(self) -> bool:
        """Whether latents are selected from products in another precision than that of the weights."""
        return _products.get() not in (None, self.W.dtype)

    def _exact(self, indices: Tensor, offsets: Tensor) -> Float[Tensor, "nnz"]:
        """Return some entries of u in the precision of the weights, without gradients."""
        W = self.W.detach().T
        return backend(W).dots(self.centred, indices, offsets, W) + self._bias[indices]

    @property
    def _bias(self) -> Float[Tensor, "F"]:
        return self.b.detach()

    def _blocks(self, choose: Callable[[Tensor, slice], Picked]) -> Iterator[Picked]:
        """Yield what `choose` selects from (x - shift) W, for one block of rows after the other, all in the same memory."""
        dtype = _products.get() or self.W.dtype
        x, W = self.centred.to(dtype), _in(dtype, self.W.detach())
        n, width = len(x), W.shape[1]
        height = max(1, min(n, (GPU_BLOCK if x.is_cuda else BLOCK) // width))
        buffer = _buffer("pre-activations", height * width, x)
        # Of no rows one empty block is yielded, so that callers get tensors of the right type and device.
        for start in range(0, max(n, 1), height):
            rows = slice(start, min(start + height, n))
            z = buffer[: (rows.stop - start) * width].view(-1, width)
            with torch.no_grad():
                torch.mm(x[rows], W, out=z)
                yield choose(z, rows)

    def _code(self, picked: Picked) -> SparseCode:
        values, indices, offsets = picked.values, picked.indices, offsets_of(picked.counts)
        if self._rounds:
            values = self._exact(indices, offsets)
        return self._entries(values, indices, offsets, entry_rows(offsets))

    def _entries(self, values: Tensor, indices: Tensor, offsets: Tensor, rows: Tensor) -> SparseCode:
        inputs = (self.x, self.shift, self.W, self.b)
        differentiable = SparseProject.apply(*inputs, self.centred, values, indices, offsets, rows)
        return SparseCode(differentiable, indices, offsets, self.W.shape[1])


@contextmanager
def products_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Select latents from products computed in this precision (None: the weights' own), inside the `with` block.

    What is selected then gets its value in the weights' precision, at the cost of a decode. Rounding decides only between
    pre-activations that are nearly equal."""
    token = _products.set(dtype)
    try:
        yield
    finally:
        _products.reset(token)


def project(
    x: Float[Tensor, "B D"],
    W: Float[Tensor, "D F"],
    b: Float[Tensor, "F"],
    shift: Float[Tensor, "D"] | None = None,
) -> Projection:
    """Return the pre-activations (x - shift) W + b, to select from."""
    return Projection(x, W, b, None if shift is None else collective().to_latents(shift))


def decode(code: SparseCode, W_dec: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    """Return the sum of decoder rows weighted by the code's values; differentiable in both."""
    part = Decoded.apply(code.values.to(W_dec.dtype), W_dec, code.indices, code.offsets)
    return collective().sum_over_latents(part)


def rows_of(W: Float[Tensor, "F D"], latents: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
    """Return W[latents], where the latents must all differ; only these rows get a gradient."""
    return GatherRows.apply(W, latents)


def where(chosen: Bool[Tensor, "B F"]) -> Pattern:
    """Return the pattern of all entries that are true."""
    return Pattern(chosen.nonzero()[:, 1], offsets_of(chosen.sum(1)))


def largest_ands(u: Projection, v: Projection, heads: int, k: int) -> Pattern:
    """Select KronSAE's k largest latents of each row, among all pairs of a head's u and v; see `reference.largest_ands`."""
    return _pattern(backend(u.rounded).largest_ands(u.rounded, v.rounded, heads, k))


def largest_of_batch(dense: Float[Tensor, "B F"], k: float) -> Pattern:
    """Select the floor(B k) largest entries of a matrix; see `Projection.largest_of_batch`."""
    total = int(collective().rows(len(dense)) * k)
    no_bias = dense.new_zeros(dense.shape[1])
    picked = backend(dense).largest_of_batch(dense, no_bias, total, by_size=False)
    return _pattern(_largest(picked, total, by_size=False))


def top(x: Float[Tensor, "B C"], n: int) -> tuple[Float[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Return the n <= C largest entries of each row, in falling order, and their columns: `torch.topk`, but faster."""
    picked = backend(x).largest_per_row(x, x.new_zeros(x.shape[1]), n, by_size=False)
    values, order = picked.values.view(len(x), n).sort(1, descending=True)
    return values, picked.indices.view(len(x), n).gather(1, order)


def strongest(u: Float[Tensor, "B F"], k: int) -> Float[Tensor, "B F"]:
    """Return u where it is among the k largest of its row in size, else 0; all of u when k >= F.

    Where a kept entry is itself 0, it gets no gradient."""
    kept = Strongest.apply(u, k) if k < u.shape[1] else u
    if not collective().shares_latents:
        return kept
    keys, columns = top(kept.detach().abs(), min(k, u.shape[1]))
    is_kept = collective().largest_of_row(keys, k)
    return kept if is_kept is None else kept * torch.zeros_like(kept).scatter(1, columns, is_kept.to(kept))


def _pattern(picked: Picked) -> Pattern:
    return Pattern(picked.indices, offsets_of(picked.counts))


def _joined(parts: list[Picked]) -> Picked:
    return (
        parts[0] if len(parts) == 1 else Picked(*(torch.cat(column) for column in zip(*parts, strict=True)))
    )


def _largest(picked: Picked, total: int, by_size: bool) -> Picked:
    """Return the `total` largest of what was picked, from several blocks of rows or by several ranks."""
    keys = _keys(picked, by_size)
    if len(keys) > total:
        is_kept = torch.zeros_like(keys, dtype=torch.bool)
        is_kept[keys.topk(total, sorted=False).indices] = True
        picked = _keep(picked, is_kept)
    is_kept = collective().largest_of_all(_keys(picked, by_size), total)
    return picked if is_kept is None else _keep(picked, is_kept)


def _keys(picked: Picked, by_size: bool) -> Float[Tensor, "nnz"]:
    return picked.values.abs() if by_size else picked.values


def _keep(picked: Picked, is_kept: Bool[Tensor, "nnz"]) -> Picked:
    rows = entry_rows(offsets_of(picked.counts))[is_kept]
    counts = torch.bincount(rows, minlength=len(picked.counts))
    return Picked(picked.values[is_kept], picked.indices[is_kept], counts)


def _in(dtype: torch.dtype, W: Float[Tensor, "D F"]) -> Float[Tensor, "D F"]:
    """Return weights in a precision: themselves, or a copy that lasts until the next one is made."""
    if W.dtype == dtype:
        return W
    rows = _buffer("weights", W.numel(), W.new_empty(0, dtype=dtype)).view(W.T.shape)
    return rows.copy_(W.T).T


def _buffer(use: str, size: int, like: Tensor) -> Tensor:
    """Return memory for `size` numbers, the same at every call of a thread for the same use."""
    # Fresh memory of this size is zeroed page by page on first use, which costs more than the product itself. One buffer
    # a thread, because reading and training may encode at once.
    buffers = _local.__dict__.setdefault("buffers", {})
    key = (use, like.device, like.dtype)
    if key not in buffers or len(buffers[key]) < size:
        buffers.pop(key, None)  # free the smaller one before a larger one is taken
        buffers[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return buffers[key][:size]
