"""The kernels as operations that gradients flow through: encode where it was chosen, decode, rows of a matrix.

Forward, encoding is one dense product into a buffer that is used again and again. Backward, everything costs
O(nnz * D): gradients reach the weights through the selected entries alone, and no [B, F] tensor outlives the selection."""

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
from sae.kernels.autograd_functions import Decoded, DenseColumns, GatherRows, SparseProject, entry_rows
from sae.kernels.choice import backend
from sae.kernels.collective import collective
from sae.kernels.reference import Picked

BLOCK = 2**26  # numbers in the buffer of pre-activations: 2,048 rows of 32,768 latents, fewer rows of more
_local = threading.local()
_products: ContextVar[torch.dtype | None] = ContextVar("products", default=None)


class Pattern(NamedTuple):
    """Which entries of a [B, F] matrix are selected, compressed by rows."""

    indices: Int[Tensor, "nnz"]
    offsets: Int[Tensor, "B+1"]


@dataclass(frozen=True, eq=False)
class Projection:
    """Pre-activations u = (x - shift) W + b of some rows: chosen from block by block, in the graph where chosen.

    Each way to choose gives a code of the entries of u that it keeps; d/dx, d/dshift, d/dW and d/db flow through
    them and no others. `by_size` compares |u|; values keep their sign."""

    x: Float[Tensor, "B D"]
    W: Float[Tensor, "D F"]
    b: Float[Tensor, "F"]
    shift: Float[Tensor, "D"] | None = None

    @cached_property
    def centred(self) -> Float[Tensor, "B D"]:
        """x - shift, outside the graph."""
        with torch.no_grad():
            return self.x if self.shift is None else self.x - self.shift

    @cached_property
    def dense(self) -> Float[Tensor, "B F"]:
        """All of u, outside the graph, in memory of its own: for rules that look at everything."""
        with torch.no_grad():
            return (self.centred @ self.W).add_(self.b)

    def of(self, latents: Int[Tensor, "n"]) -> Float[Tensor, "B n"]:
        """u of these latents, all different, on every row, in the graph."""
        return DenseColumns.apply(
            self.x, self.shift, rows_of(self.W.T, latents), self.b[latents], self.centred
        )

    def largest(self, k: int | Int[Tensor, "B"], by_size: bool = False) -> SparseCode:
        """The k largest of each row, k[i] of row i; all of a row when k >= F. Of equal ones some, always k."""

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z).largest_per_row(z, self._bias, k if isinstance(k, int) else k[rows], by_size)

        picked = _joined(list(self._blocks(choose)))
        if isinstance(k, int):
            kept = collective().largest_of_row(
                _keys(picked, by_size).view(len(self.x), min(k, self.W.shape[1])), k
            )
            picked = picked if kept is None else _kept(picked, kept.flatten())
        return self._code(picked)

    def largest_of_batch(self, k: float, by_size: bool = False) -> SparseCode:
        """The floor(B k) largest of all B rows together, those of other ranks too: a row may have none or many."""
        total = int(collective().rows(len(self.x)) * k)

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z).largest_of_batch(z, self._bias, total, by_size)

        return self._code(_largest(_joined(list(self._blocks(choose))), total, by_size))

    def above(self, threshold: Float[Tensor, "*F"], by_size: bool = False) -> SparseCode:
        """All above a threshold, one for all latents or one for each."""
        level = threshold.detach().expand_as(self.b).contiguous()

        def choose(z: Tensor, rows: slice) -> Picked:
            return backend(z).above(z, self._bias, level, by_size)

        return self._code(_joined(list(self._blocks(choose))))

    def keep(self, pattern: Pattern) -> SparseCode:
        """The entries of a pattern of one's own choice, from `dense`.

        An entry may be selected more than once in a row: each counts (the result is then no code of that row)."""
        rows = entry_rows(pattern.offsets)
        return self._entries(self.dense[rows, pattern.indices], *pattern, rows)

    @property
    def _bias(self) -> Float[Tensor, "F"]:
        return self.b.detach()

    def _blocks(self, choose: Callable[[Tensor, slice], Picked]) -> Iterator[Picked]:
        """What `choose` finds in (x - shift) W, block of rows by block, each in the same memory."""
        dtype = _products.get() or self.W.dtype
        x, W = self.centred.to(dtype), self.W.detach().to(dtype)
        n, width = len(x), W.shape[1]
        height = max(1, min(n, BLOCK // width))
        buffer = _buffer(height * width, W)
        for start in range(0, max(n, 1), height):
            rows = slice(start, min(start + height, n))
            z = buffer[: (rows.stop - start) * width].view(-1, width)
            with torch.no_grad():
                torch.mm(x[rows], W, out=z)
                yield choose(z, rows)

    def _code(self, picked: Picked) -> SparseCode:
        values, indices, offsets = picked.values, picked.indices, offsets_of(picked.counts)
        if _products.get() not in (None, self.W.dtype):  # chosen roughly, computed exactly
            W = self.W.detach().T
            values = backend(W).dots(self.centred, indices, offsets, W) + self._bias[indices]
        return self._entries(values, indices, offsets, entry_rows(offsets))

    def _entries(self, values: Tensor, indices: Tensor, offsets: Tensor, rows: Tensor) -> SparseCode:
        given = (self.x, self.shift, self.W, self.b)
        kept = SparseProject.apply(*given, self.centred, values, indices, offsets, rows)
        return SparseCode(kept, indices, offsets, self.W.shape[1])


@contextmanager
def products_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Within, latents are chosen from products computed in this precision (None: the weights' own).

    What is chosen then gets its value in the weights' precision, at the cost of a decode: only the choice between
    pre-activations that are nearly equal is left to the rounding."""
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
    """Pre-activations (x - shift) W + b, to choose from."""
    return Projection(x, W, b, None if shift is None else collective().to_latents(shift))


def decode(code: SparseCode, W_dec: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    """Sum of decoder rows weighted by the code's values; differentiable in both."""
    part = Decoded.apply(code.values.to(W_dec.dtype), W_dec, code.indices, code.offsets)
    return collective().sum_over_latents(part)


def rows_of(W: Float[Tensor, "F D"], latents: Int[Tensor, "n"]) -> Float[Tensor, "n D"]:
    """W[latents], all different; its gradient is of these rows alone."""
    return GatherRows.apply(W, latents)


def where(chosen: Bool[Tensor, "B F"]) -> Pattern:
    """All entries that are true."""
    return Pattern(chosen.nonzero()[:, 1], offsets_of(chosen.sum(1)))


def largest_ands(u: Projection, v: Projection, heads: int, k: int) -> Pattern:
    """KronSAE's k largest latents of each row, of all pairs of a head's u and v; see `reference.largest_ands`."""
    return _pattern(backend(u.dense).largest_ands(u.dense, v.dense, heads, k))


def largest_of_batch(dense: Float[Tensor, "B F"], k: float) -> Pattern:
    """The floor(B k) largest entries of a matrix; see `Projection.largest_of_batch`."""
    total = int(collective().rows(len(dense)) * k)
    no_bias = dense.new_zeros(dense.shape[1])
    picked = backend(dense).largest_of_batch(dense, no_bias, total, by_size=False)
    return _pattern(_largest(picked, total, by_size=False))


def top(x: Float[Tensor, "B C"], n: int) -> tuple[Float[Tensor, "B n"], Int[Tensor, "B n"]]:
    """The n <= C largest entries of each row, falling, and their places: what `torch.topk` finds, sooner."""
    picked = backend(x).largest_per_row(x, x.new_zeros(x.shape[1]), n, by_size=False)
    values, order = picked.values.view(len(x), n).sort(1, descending=True)
    return values, picked.indices.view(len(x), n).gather(1, order)


def strongest(u: Float[Tensor, "B F"], k: int) -> Float[Tensor, "B F"]:
    """u where it is among the k largest of its row in size, else 0; all of u when k >= F."""
    if k < u.shape[1]:
        best = backend(u).largest_per_row(u.detach(), u.new_zeros(u.shape[1]), k, by_size=True)
        best = best.indices.view(len(u), k)
        found = u.gather(1, best)
    else:
        best, found = None, u
    kept = collective().largest_of_row(found.detach().abs(), k)
    found = found if kept is None else torch.where(kept, found, 0.0)
    return found if best is None else torch.zeros_like(u).scatter(1, best, found)


def _pattern(picked: Picked) -> Pattern:
    return Pattern(picked.indices, offsets_of(picked.counts))


def _joined(parts: list[Picked]) -> Picked:
    return (
        parts[0] if len(parts) == 1 else Picked(*(torch.cat(column) for column in zip(*parts, strict=True)))
    )


def _largest(picked: Picked, total: int, by_size: bool) -> Picked:
    """The `total` largest of what was picked, from several blocks or by several ranks."""
    keys = _keys(picked, by_size)
    if len(keys) > total:
        kept = torch.zeros_like(keys, dtype=torch.bool)
        kept[keys.topk(total, sorted=False).indices] = True
        picked = _kept(picked, kept)
    kept = collective().largest_of_all(_keys(picked, by_size), total)
    return picked if kept is None else _kept(picked, kept)


def _keys(picked: Picked, by_size: bool) -> Float[Tensor, "nnz"]:
    return picked.values.abs() if by_size else picked.values


def _kept(picked: Picked, kept: Bool[Tensor, "nnz"]) -> Picked:
    rows = entry_rows(offsets_of(picked.counts))[kept]
    counts = torch.bincount(rows, minlength=len(picked.counts))
    return Picked(picked.values[kept], picked.indices[kept], counts)


def _buffer(size: int, like: Tensor) -> Tensor:
    """Memory for `size` numbers, each thread's own, the same at every call: new memory costs more than the product."""
    kept = _local.__dict__.setdefault("buffers", {})
    key = (like.device, like.dtype)
    if key not in kept or len(kept[key]) < size:
        kept.pop(key, None)
        kept[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return kept[key]
