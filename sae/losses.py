"""Losses as functions. Each is a mean over tokens and has no unit, unless its docstring says otherwise."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels import collective, strongest


def fvu(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return the fraction of variance unexplained: 0 is perfect, 1 is no better than the batch mean.

    This is the sum of squared errors over the sum of squared distances from the batch mean. It does not change when both
    inputs are scaled or shifted alike. A batch whose rows are all equal has no variance: its error is then divided by its sum
    of squares, or where that is 0 too by B D, which is the sum of squares of a batch that the trainer has scaled.
    Gao et al. 2024, arXiv:2406.04093, section 2.1 ("normalized MSE")."""
    spread = _spread(x)  # first, so that its tensor is freed before the error takes one
    return _SquaredDistance.apply(x_hat, x) / spread


class _SquaredDistance(torch.autograd.Function):
    """The sum of squares of a - b. It holds one tensor of their size; torch's `mse_loss` needs up to three at once."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b
        ctx.save_for_backward(difference)
        return difference.flatten().dot(difference.flatten())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = 2 * grads[0] * ctx.saved_tensors[0]
        return grad, -grad if ctx.needs_input_grad[1] else None


@torch.no_grad()
def _spread(x: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return the sum of squared distances from the batch mean, or its stand-in; on several ranks the mean over the ranks."""
    centred = (x - collective().mean_over_rows(x.mean(0))).flatten()
    spread, squares = collective().mean_over_rows(
        torch.stack([centred.dot(centred), x.flatten().dot(x.flatten())])
    )
    # The mean of equal rows is rounded, so that their spread is not exactly 0. No batch of text comes near this bound.
    all_equal = spread <= (8 * torch.finfo(x.dtype).eps) ** 2 * squares
    return torch.where(all_equal, torch.where(squares > 0, squares, x.numel()), spread)


def squared_error(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return the squared error, summed over dimensions and averaged over rows; in squared units of x.

    A penalty on sparsity is weighed against this error, which gives its weight a meaning: where the trainer scales inputs, a
    reconstruction of 0 costs D."""
    return (x_hat - x).square().sum(1).mean()


def auxk(
    activations: Float[Tensor, "B n"],
    W_dec: Float[Tensor, "n D"],
    residual: Float[Tensor, "B D"],
    k: int,
) -> Float[Tensor, ""]:
    """Return AuxK: how much of the live latents' error the k most active dead latents of each row leave unexplained.

    `activations` (of either sign; the largest |value| is the most active) and `W_dec` are those of the dead latents alone.
    The residual is detached and contains no b_dec. The result is the FVU of its reconstruction: 1 means that the dead
    latents explain nothing of it. Gao et al. 2024, arXiv:2406.04093, appendix A.2."""
    explained = (strongest(activations, k) @ W_dec.to(activations.dtype)).to(residual.dtype)
    return fvu(residual.detach(), collective().sum_over_latents(explained))


def matched_mean(scores: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Return the mean over the n rows of their score with their partner, matched one to one for the largest sum.

    A row without a partner (n > m) counts as 0. For the cosines of two dictionaries this is the one-to-one MMCS. The matching
    is not differentiated: gradients flow through matched entries alone. It takes time of order n^3 on the CPU. Kuhn 1955 (the Hungarian method), scipy's linear_sum_assignment."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores.detach().cpu().numpy(), maximize=True)
    chosen = torch.as_tensor(rows, device=scores.device), torch.as_tensor(columns, device=scores.device)
    return scores[chosen].sum() / len(scores)
