"""Forward and backward of the kernels: what each operation of `autograd.py` computes, and which gradients it passes on.

A code with so many entries that dense products are faster is decoded and differentiated by them: within a constant
factor the same memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.choice import backend
from sae.kernels.gradients import collected

CROWDED_ENTRIES, CROWDED_SHARE = 2**16, 1 / 10  # from here on dense products are faster (CPU, D = 576)


class SparseProject(torch.autograd.Function):
    """Entries of (x - shift) W + b, already computed; the backward pass is sparse."""

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
    """(x - shift) @ rows.T + b. The gradient of a shift takes no product of the size of the others."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, rows: Tensor, b: Tensor, centred: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, centred)
        return torch.addmm(b, centred, rows.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, centred = ctx.saved_tensors
        needs_x, needs_shift, needs_rows, _ = ctx.needs_input_grad[:4]
        grad_b = grads[0].sum(0)
        grad_x = grads[0] @ rows if needs_x else None
        grad_shift = -(grad_b @ rows) if needs_shift else None
        return grad_x, grad_shift, grads[0].T @ centred if needs_rows else None, grad_b, None


class Decoded(torch.autograd.Function):
    """A code's values times the rows of W they name, summed by row."""

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
            whole = crowded(code)
            grad_values = (grad @ W.T)[rows, indices] if whole else backend(W).dots(grad, indices, offsets, W)
        if needs_W:
            grad_W = _to_rows(code, rows, grad, W)
        return grad_values, grad_W, None, None


class GatherRows(torch.autograd.Function):
    """Some rows of W."""

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


def _to_rows(code: SparseCode, rows: Tensor, x: Tensor, W: Float[Tensor, "F D"]) -> Tensor | None:
    """The gradient of W to which each entry gives its value times its row of x: returned, or, if collected, put there."""
    gradient = collected(W)
    if crowded(code):
        whole = scattered(code).T @ x
        if gradient is None:
            return whole
        gradient.add_rows(torch.arange(len(W), device=W.device), whole)
    elif gradient is None:
        kernels = backend(W)
        groups = kernels.group(code.indices, code.n_latents)
        some = x.new_empty(len(groups.latents), x.shape[1])
        kernels.sums_by_latent(groups, rows, code.values, x, some)
        return x.new_zeros(code.n_latents, x.shape[1]).index_copy_(0, groups.latents, some)
    else:
        gradient.add_entries(code, rows, x)
    return None


def _weighted(code: SparseCode, W: Float[Tensor, "F D"]) -> Float[Tensor, "B D"]:
    if crowded(code):
        return scattered(code) @ W
    return backend(W).weighted_rows(code.values, code.indices, code.offsets, W)


def crowded(code: SparseCode) -> bool:
    """Whether dense products are faster for this code."""
    entries = len(code.values)
    return entries > CROWDED_ENTRIES and entries > CROWDED_SHARE * code.n_rows * code.n_latents


def scattered(code: SparseCode) -> Float[Tensor, "B F"]:
    """The entries in a matrix, those of one place added up; in one fixed order on the CPU."""
    out = code.values.new_zeros(code.n_rows, code.n_latents)
    return out.index_put((code.rows(), code.indices), code.values, accumulate=True)


def entry_rows(offsets: Int[Tensor, "n"]) -> Int[Tensor, "nnz"]:
    """The row of each entry."""
    return torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
