"""The optimizer: Adam, with clipping, tangent gradients and unit decoder rows in the same pass over the weights."""

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
    """One parameter's gradient as rows: `rows[slots[r]]` is that of the parameter's row r, or `rows[r]`."""

    parameter: nn.Parameter
    rows: Float[Tensor, "n C"]
    slots: Int[Tensor, "R"] | None
    along: Float[Tensor, "n"] | None
    """What of each row does not count; see `kernels.reference.squares`."""
    squares: Float[Tensor, ""]


class Adam(torch.optim.Optimizer):
    """Adam over an SAE's parameter groups; betas (0.9, 0.999) and eps 6.25e-10 (Gao et al. 2024, appendix A) where a
    group has none of its own.

    Each group's gradient is clipped to `clip_norm`. Where the SAE holds decoder rows at norm 1, what a row's gradient
    has along the row is dropped first, and the row is brought back to norm 1. Idle latents move by momentum, as under
    torch's Adam. A backward pass within `collecting()` leaves the gradients of large weights as the rows that have one.
    `ranks` are those that train the same SAE."""

    def __init__(self, sae: SAE, lr: float, clip_norm: float, ranks: SingleProcess = SINGLE_PROCESS):
        groups = [{"lr_scale": 1.0, **group} for group in sae.parameter_groups()]
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 6.25e-10})
        self.clip_norm, self.ranks = clip_norm, ranks
        self._unit_rows = sae.W_dec if sae.unit_norm_decoder else None
        parameters = [p for group in self.param_groups for p in group["params"]]
        large = [p for p in parameters if ranks.by_row and p.dim() == 2 and p.numel() >= WORTHWHILE]
        self._by_row = {p: RowGradient(as_rows(p.data)) for p in large}

    def collecting(self) -> AbstractContextManager[None]:
        """For the backward pass."""
        return gradients_by_row(self._by_row.values())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        super().zero_grad(set_to_none)
        for gradient in self._by_row.values():
            gradient.clear()

    @torch.no_grad()
    def step(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step; returns the norm of the whole gradient before clipping. What has no gradient stays, and all does
        where the norm is not finite."""
        moves = []
        for group in self.param_groups:
            gradients = [found for p in group["params"] if (found := self._gradient(p))]
            found = torch.stack([gradient.squares for gradient in gradients]).tolist() if gradients else []
            squares = self.ranks.squares({g.parameter: n for g, n in zip(gradients, found, strict=True)})
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
        some = self._by_row.get(parameter)
        if some is not None and not some.touched:
            some = None
        if parameter.grad is not None:
            rows, slots, which = as_rows(parameter.grad, like=parameter), None, None
            if some is not None:
                rows.index_add_(0, some.latents, some.rows)
        elif some is not None:
            rows, slots, which = some.rows, some.slots, some.latents
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
        pace = Pace(group["lr"], beta1, beta2, group["eps"], int(state["step"]), shrink)
        weights = as_rows(parameter)
        unit_norm = parameter is self._unit_rows
        rows, slots, along = gradient.rows, gradient.slots, gradient.along
        backend(weights).adam(weights, moments, rows, slots, along, pace, unit_norm)


def as_rows(tensor: Tensor, like: Tensor | None = None) -> Float[Tensor, "R C"]:
    """A parameter, or what belongs to one, as a matrix whose rows lie together in memory; a view.

    [R, C] as it is and [C, R] transposed, whichever lies so; a vector as one row. What belongs to a parameter is laid out
    as the parameter is first, in new memory if it was not."""
    if like is not None and tensor.stride() != like.stride():
        tensor = torch.empty_like(like).copy_(tensor)
    if tensor.dim() == 2 and not tensor.is_contiguous():
        tensor = tensor.T
    return tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.view(1, -1)
