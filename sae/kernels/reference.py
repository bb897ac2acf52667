"""The kernels in plain torch: any device, and what every faster kernel is held to in values and gradients.

Forward, encoding is one dense product. Backward, everything costs O(nnz * D): gradients reach the weights
through the selected entries alone, and no [B, F] tensor outlives the selection. A code with so many entries
that dense products are faster is decoded and differentiated by them: within a constant factor the same memory."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.code import SparseCode, offsets_of

CROWDED_ENTRIES, CROWDED_SHARE = 2**16, 1 / 10  # from here on dense products are faster (CPU, D = 576)


class Pattern(NamedTuple):
    """Which entries of a [B, F] matrix are selected, compressed by rows."""

    indices: Int[Tensor, "nnz"]
    offsets: Int[Tensor, "B+1"]


class Projection(NamedTuple):
    """Pre-activations x W + b: dense to choose from, sparse to differentiate."""

    dense: Float[Tensor, "B F"]
    """The values, outside the graph."""
    x: Float[Tensor, "B D"]
    W: Float[Tensor, "D F"]
    b: Float[Tensor, "F"]

    def keep(self, pattern: Pattern) -> SparseCode:
        """The selected entries, inside the graph: d/dx, d/dW and d/db flow through them and no others.

        An entry may be selected more than once in a row: each counts (the result is then no code of that row)."""
        rows = torch.arange(len(self.x), device=self.x.device).repeat_interleave(pattern.offsets.diff())
        values = _Selected.apply(self.x, self.W, self.b, self.dense[rows, pattern.indices], rows, *pattern)
        return SparseCode(values, *pattern, self.W.shape[1])


def project(x: Float[Tensor, "B D"], W: Float[Tensor, "D F"], b: Float[Tensor, "F"]) -> Projection:
    """Compute x W + b densely, outside the graph; `Projection.keep` puts selected entries into it."""
    with torch.no_grad():
        return Projection(torch.addmm(b, x, W), x, W, b)


def decode(code: SparseCode, W_dec: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    """Sum of decoder rows weighted by the code's values; differentiable in both."""
    weights = code.values.to(W_dec.dtype)
    if _crowded(code):
        return _scattered(code._replace(values=weights)) @ W_dec
    return F.embedding_bag(
        code.indices, W_dec, code.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def largest_per_row(u: Float[Tensor, "B F"], k: int) -> Pattern:
    """The k largest entries of each row (all of them when F <= k). Ties: some k of them, fixed on CPU."""
    k = min(k, u.shape[1])
    indices = u.topk(k, dim=1, sorted=False).indices.flatten()
    return Pattern(indices, torch.arange(0, len(indices) + 1, k, device=u.device))


def largest_varying(u: Float[Tensor, "B F"], k: Int[Tensor, "B"]) -> Pattern:
    """The k[b] largest entries of row b (all of them when F <= k[b]), largest first."""
    most = min(int(k.max()), u.shape[1]) if len(k) else 0
    indices = u.topk(most, dim=1).indices
    chosen = torch.arange(most, device=u.device) < k[:, None]
    return Pattern(indices[chosen], offsets_of(chosen.sum(1)))


def largest_per_batch(u: Float[Tensor, "B F"], total: int) -> Pattern:
    """The `total` largest entries of the whole matrix: a row may have none or many."""
    flat = u.flatten().topk(min(total, u.numel()), sorted=False).indices.sort().values
    counts = torch.bincount(flat // u.shape[1], minlength=len(u))
    return Pattern(flat % u.shape[1], offsets_of(counts))


def where(chosen: Bool[Tensor, "B F"]) -> Pattern:
    """All entries that are true."""
    return Pattern(chosen.nonzero()[:, 1], offsets_of(chosen.sum(1)))


class _Selected(torch.autograd.Function):
    """Entries (row, index) of x W + b, already computed; the backward pass is sparse."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor,
        values: Tensor,
        rows: Tensor,
        indices: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, W, rows, indices, offsets)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W, rows, indices, offsets = ctx.saved_tensors
        (grad,) = grads
        needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
        grad_x = grad_W = grad_b = None
        code = SparseCode(grad, indices, offsets, W.shape[1])
        if needs_x:
            grad_x = decode(code, W.T)
        if needs_W:
            by_latent = _scattered(code).T @ x if _crowded(code) else _by_latent(code, rows, x)
            grad_W = by_latent.T
        if needs_b:
            grad_b = torch.zeros(W.shape[1], dtype=grad.dtype, device=grad.device)
            grad_b.index_add_(0, indices, grad)
        return grad_x, grad_W, grad_b, None, None, None, None


def _crowded(code: SparseCode) -> bool:
    entries = len(code.values)
    return entries > CROWDED_ENTRIES and entries > CROWDED_SHARE * code.n_rows * code.n_latents


def _scattered(code: SparseCode) -> Float[Tensor, "B F"]:
    """The entries in a matrix, those of one place added up; in one fixed order on the CPU."""
    out = code.values.new_zeros(code.n_rows, code.n_latents)
    return out.index_put((code.rows(), code.indices), code.values, accumulate=True)


def _by_latent(code: SparseCode, rows: Int[Tensor, "nnz"], x: Float[Tensor, "B D"]) -> Float[Tensor, "F D"]:
    """Row j: sum over the entries of latent j of value * x[row]. A decode with latents and rows exchanged."""
    order = code.indices.argsort(stable=True)
    offsets = offsets_of(torch.bincount(code.indices, minlength=code.n_latents))
    return decode(SparseCode(code.values[order], rows[order], offsets, len(x)), x)
