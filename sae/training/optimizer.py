"""Adam for SAEs: clipping, tangent gradients and unit decoder rows in the same pass over the weights."""

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.architectures import SAE
from sae.kernels import (
    SINGLE_PROCESS,
    WORTHWHILE,
    Moments,
    Pace,
    RowGradient,
    SingleProcess,
    backend,
    gradients_by_row,
)


class Gradient(NamedTuple):
    """One parameter's gradient by rows: row r of the parameter has `rows[slots[r]]`, or `rows[r]` without slots."""

    parameter: nn.Parameter
    rows: Float[Tensor, "n C"]
    slots: Int[Tensor, "R"] | None
    along: Float[Tensor, "n"] | None
    """The component of each row to be dropped; see `kernels.reference.squares`."""
    squares: Float[Tensor, ""]


class Adam(torch.optim.Optimizer):
    """Adam over an SAE's parameter groups, with betas (0.9, 0.999) and eps 6.25e-10 (Gao et al. 2024, appendix A) where a
    group has none of its own.

    Each group's gradient is clipped to `clip_norm`. Where the SAE keeps decoder rows at norm 1, the component of a row's
    gradient along the row is dropped before clipping, and the row is normalised after the step. Latents without a gradient
    move by momentum, as under torch's Adam. A backward pass inside `collecting()` keeps the gradients of large weights as
    the rows that have one. `ranks` are those that train the same SAE."""

    def __init__(self, sae: SAE, lr: float, clip_norm: float, ranks: SingleProcess = SINGLE_PROCESS):
        groups = [{"lr_scale": 1.0, **group} for group in sae.parameter_groups()]
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 6.25e-10})
        self.clip_norm, self.ranks = clip_norm, ranks
        self._unit_rows = sae.W_dec if sae.unit_norm_decoder else None
        parameters = [p for group in self.param_groups for p in group["params"]]
        large = [p for p in parameters if ranks.by_row and p.dim() == 2 and p.numel() >= WORTHWHILE]
        self._by_row = {p: RowGradient(as_rows(p.data)) for p in large}

    def collecting(self) -> AbstractContextManager[None]:
        """Return the context in which the backward pass runs."""
        return gradients_by_row(self._by_row.values())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        super().zero_grad(set_to_none)
        for gradient in self._by_row.values():
            gradient.clear()

    @torch.no_grad()
    def step(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step and return the norm of the whole gradient before clipping.

        Parameters without a gradient do not move. Where the norm is not finite, no parameter moves."""
        moves = []
        for group in self.param_groups:
            gradients = [gradient for p in group["params"] if (gradient := self._gradient(p))]
            # One transfer for all parameters: on a GPU each .item() would wait for the queue to drain.
            norms = torch.stack([gradient.squares for gradient in gradients]).tolist() if gradients else []
            squares = self.ranks.squares({g.parameter: n for g, n in zip(gradients, norms, strict=True)})
            moves.append((gradients, group, squares))
        total = sum(squares for *_, squares in moves)
        if not math.isfinite(total):
            return total
        for gradients, group, squares in moves:
            shrink = min(1.0, self.clip_norm / (math.sqrt(squares) + 1e-6))
            for gradient in gradients:
                self._move(gradient, group, shrink)
        return math.sqrt(total)

    def _gradient(self, parameter: nn.Parameter) -> Gradient | None:
        by_row = self._by_row.get(parameter)
        if by_row is not None and not by_row.touched:
            by_row = None
        if parameter.grad is not None:
            # Operations that are not kernels of ours put their part into .grad as usual: the gradient is the sum of both.
            rows, slots, which = as_rows(parameter.grad, like=parameter), None, None
            if by_row is not None:
                rows.index_add_(0, by_row.latents, by_row.rows)
        elif by_row is not None:
            rows, slots, which = by_row.rows, by_row.slots, by_row.latents
        else:
            return None
        weights = as_rows(parameter)
        toward = weights if parameter is self._unit_rows else None
        squares, along = backend(weights).squares(rows, toward, which)
        return Gradient(parameter, rows, slots, along, squares)

    def _move(self, gradient: Gradient, group: dict, shrink: float) -> None:
        parameter = gradient.parameter
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        moments = Moments(*(as_rows(state[name], like=parameter) for name in ("exp_avg", "exp_avg_sq")))
        beta1, beta2 = group["betas"]
        # int() of a CPU tensor: state["step"] stays on the CPU, so that this does not wait for a GPU.
        pace = Pace(group["lr"], beta1, beta2, group["eps"], int(state["step"]), shrink)
        weights = as_rows(parameter)
        unit_norm = parameter is self._unit_rows
        rows, slots, along = gradient.rows, gradient.slots, gradient.along
        backend(weights).adam(weights, moments, rows, slots, along, pace, unit_norm)


def as_rows(tensor: Tensor, like: Tensor | None = None) -> Float[Tensor, "R C"]:
    """Return a view of a tensor as a matrix whose rows are contiguous in memory.

    A contiguous [R, C] stays, one in column order is transposed, a vector becomes one row. A tensor that belongs to a
    parameter, such as its gradient, is first copied into the memory order of the parameter `like` if it has another."""
    if like is not None and tensor.stride() != like.stride():
        tensor = torch.empty_like(like).copy_(tensor)
    if tensor.dim() == 2 and not tensor.is_contiguous():
        tensor = tensor.T
    return tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.view(1, -1)
