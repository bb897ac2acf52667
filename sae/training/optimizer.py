"""Adam for SAEs: clipping, tangent gradients and unit decoder rows in the same pass over the weights; the learning rate's course
over a run, and the running mean of the weights that a run with `train.ema` saves."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

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


def warmup_then_decay(steps: int, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Return the multiple of the peak rate by step: linear from 1/warmup_steps to 1, constant, then linear towards 0.

    It falls over the last `decay_share` of all steps and is above 0 at every step from 0 to steps - 1."""
    decay_steps = round(steps * decay_share)

    def multiple(step: int) -> float:
        rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        falling = min(1.0, (steps - step) / (decay_steps + 1))
        return rising * falling

    return multiple


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


PREFIX = "average."


class Average:
    """An exponential moving average of the parameters over the steps taken; the initial weights do not count.

    After t steps the weights of step s count (1 - rate) rate^(t - s) / (1 - rate^t). The average is therefore not biased
    towards its start, as Adam's corrected moments are not, and for about 1 / (1 - rate) steps it is close to a plain mean."""

    def __init__(self, sae: SAE, rate: float):
        self.rate = rate
        self.values = {name: torch.zeros_like(p) for name, p in _parameters(sae).items()}

    @torch.no_grad()
    def add(self, sae: SAE, step: int) -> None:
        """Add the weights after a step; the first step is number 1."""
        share = (1 - self.rate) / (1 - self.rate**step)
        for name, parameter in _parameters(sae).items():
            self.values[name].lerp_(parameter, share)

    @torch.no_grad()
    def put_into(self, sae: SAE) -> None:
        """Copy the average into the SAE, with decoder rows normalised where training keeps them at norm 1."""
        for name, parameter in _parameters(sae).items():
            parameter.copy_(self.values[name])
        if sae.unit_norm_decoder:
            sae.W_dec.copy_(normalize(sae.W_dec, dim=1))
        sae.refresh()

    def tensors(self, sae: SAE) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside the averaged SAE: the averages, and the weights as training has them."""
        units = {f"units.{name}": tensor for name, tensor in _parameters(sae).items()}
        return units | {PREFIX + name: value for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self, sae: SAE, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned, including the SAE's weights."""
        for name, parameter in _parameters(sae).items():
            parameter.copy_(tensors[f"units.{name}"])
            self.values[name].copy_(tensors[PREFIX + name])
        sae.refresh()


def _parameters(sae: SAE) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in sae.named_parameters()}
