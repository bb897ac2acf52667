"""Forward and backward passes of the kernels: what the operations of `autograd.py` compute, and their gradients.

A code with many entries is decoded and differentiated by dense products, which are faster from some density on and take the
same memory up to a constant factor."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.choice import backend
from sae.kernels.gradients import collected

# Beyond both, dense products are faster than sparse sums (measured on the CPU at D = 576).
CROWDED_ENTRIES, CROWDED_SHARE = 2**16, 1 / 10


class SparseProject(torch.autograd.Function):
    """Selected entries of (x - shift) W + b. Their values are given; only the backward pass computes, and it is sparse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, W: Tensor, b: Tensor, *rest: Tensor) -> Tensor:
        centred, values, indices, offsets, rows = rest
        ctx.save_for_backward(W, centred, indices, offsets, rows)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        W, centred, indices, offsets, rows = ctx.saved_tensors
        needs_x, needs_shift, needs_W, needs_b = ctx.needs_input_grad[:4]
        code = SparseCode(grads[0], indices, offsets, W.shape[1])
        grad_x = _weighted(code, W.T) if needs_x else None
        grad_b = code.values.new_zeros(W.shape[1]).index_add_(0, indices, code.values)
        # A shift is subtracted from every row alike, so its gradient needs only the sums by latent: F D operations, not nnz D.
        grad_shift = -(W @ grad_b) if needs_shift else None
        grad_W = _to_rows(code, rows, centred, W.T) if needs_W else None
        return (
            grad_x,
            grad_shift,
            None if grad_W is None else grad_W.T,
            grad_b if needs_b else None,
            *[None] * 5,
        )


class DenseColumns(torch.autograd.Function):
    """(x - shift) @ rows.T + b, all pre-activations of some latents. The gradient of the shift takes one small product.

    Products are those of `rows` and `centred`, which are both in the precision of the result; gradients are in that of b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, rows: Tensor, b: Tensor, centred: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, centred)
        return torch.addmm(b.to(rows.dtype), centred, rows.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, centred = ctx.saved_tensors
        needs_x, needs_shift, needs_rows, _ = ctx.needs_input_grad[:4]
        grad_b = grads[0].sum(0)
        grad_x = grads[0] @ rows if needs_x else None
        grad_shift = -(grad_b @ rows) if needs_shift else None
        return grad_x, grad_shift, grads[0].T @ centred if needs_rows else None, grad_b, None


class Decoded(torch.autograd.Function):
    """The sum, for each row of a code, of its values times the rows of W that its indices name."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, W, indices, offsets)
        return _weighted(SparseCode(values, indices, offsets, len(W)), W)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, W, indices, offsets = ctx.saved_tensors
        grad = grads[0].contiguous()
        needs_values, needs_W = ctx.needs_input_grad[:2]
        code, rows = SparseCode(values, indices, offsets, len(W)), entry_rows(offsets)
        grad_values = grad_W = None
        if needs_values:
            dense = crowded(code)
            grad_values = (grad @ W.T)[rows, indices] if dense else backend(W).dots(grad, indices, offsets, W)
        if needs_W:
            grad_W = _to_rows(code, rows, grad, W)
        return grad_values, grad_W, None, None


class GatherRows(torch.autograd.Function):
    """Some rows of W, all different; only these get a gradient."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, latents: Tensor) -> Tensor:
        ctx.save_for_backward(W, latents)
        return W.index_select(0, latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        W, latents = ctx.saved_tensors
        gradient = collected(W)
        if gradient is None:
            return torch.zeros_like(W).index_copy_(0, latents, grads[0]), None
        gradient.add_rows(latents, grads[0])
        return None, None


class Strongest(torch.autograd.Function):
    """Each row's k entries that are largest in size, in their places among zeros."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: int) -> Tensor:
        kept = backend(u, selecting=True).strongest(u, k)
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.where(ctx.saved_tensors[0] != 0, grads[0], 0), None


def _to_rows(code: SparseCode, rows: Tensor, x: Tensor, W: Float[Tensor, "F D"]) -> Tensor | None:
    """Compute the gradient of W, to which each entry adds its value times its row of x, in the row of its latent.

    Return it, or add it to the collected gradient of W, where there is one, and return None."""
    gradient = collected(W)
    if crowded(code):
        all_rows = scattered(code).T @ x
        if gradient is None:
            return all_rows
        gradient.add_rows(torch.arange(len(W), device=W.device), all_rows)
    elif gradient is None:
        kernels = backend(W)
        groups = kernels.group(code.indices, code.n_latents)
        sums = x.new_empty(len(groups.latents), x.shape[1])
        kernels.sums_by_latent(groups, rows, code.values, x, sums)
        return x.new_zeros(code.n_latents, x.shape[1]).index_copy_(0, groups.latents, sums)
    else:
        gradient.add_entries(code, rows, x)
    return None


def _weighted(code: SparseCode, W: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    if crowded(code):
        return scattered(code) @ W
    return backend(W).weighted_rows(code.values, code.indices, code.offsets, W)


def crowded(code: SparseCode) -> bool:
    """Return whether dense products are faster for this code."""
    entries = len(code.values)
    return entries > CROWDED_ENTRIES and entries > CROWDED_SHARE * code.n_rows * code.n_latents


def scattered(code: SparseCode) -> Float[Tensor, "B F"]:
    """Return the entries as a matrix, adding entries of the same place; in a fixed order on the CPU."""
    out = code.values.new_zeros(code.n_rows, code.n_latents)
    return out.index_put((code.rows(), code.indices), code.values, accumulate=True)


def entry_rows(offsets: Int[Tensor, "n"]) -> Int[Tensor, "nnz"]:
    """Return the row of each entry."""
    return torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
