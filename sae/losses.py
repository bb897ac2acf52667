"""Losses as free functions: means over tokens, in float32; unitless unless they say otherwise."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.kernels import collective, strongest


def fvu(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained: 0 is perfect, 1 is no better than the batch mean.

    Sum of squared errors over the sum of squared distances from the batch mean, per dimension. Unchanged
    when both inputs are scaled or shifted alike. A batch whose rows are all equal has no variance: its error is
    relative to its sum of squares instead, and where that is 0 too to B D, the scale the trainer gives inputs.
    Gao et al. 2024, arXiv:2406.04093, section 2.1 ("normalized MSE")."""
    return mse_loss(x_hat, x, reduction="sum") / _spread(x)


@torch.no_grad()
def _spread(x: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Sum of squared distances from the batch mean, or what stands for it; on a rank of several, the mean of the ranks'."""
    centred = (x - collective().mean_over_rows(x.mean(0))).flatten()
    spread, squares = collective().mean_over_rows(
        torch.stack([centred.dot(centred), x.flatten().dot(x.flatten())])
    )
    # the mean of equal rows is rounded, so that their spread is not quite 0; none of text comes near this
    none = spread <= (8 * torch.finfo(x.dtype).eps) ** 2 * squares
    return torch.where(none, torch.where(squares > 0, squares, x.numel()), spread)


def squared_error(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Sum over dimensions of the squared error, mean over rows; in squared units of x.

    The error that a price on sparsity is set against, so that the price has a meaning of its own: as the
    trainer scales inputs, a reconstruction of 0 costs D."""
    return (x_hat - x).square().sum(1).mean()


def auxk(
    activations: Float[Tensor, "B n"],
    W_dec: Float[Tensor, "n D"],
    residual: Float[Tensor, "B D"],
    k: int,
) -> Float[Tensor, ""]:
    """AuxK: how well the k most active dead latents of each row explain what the living ones left over.

    `activations` (of either sign; the largest |value| is the most active) and `W_dec` are of the dead latents
    only. The residual is detached and has no b_dec on either side; the result is its FVU, so 1 means the dead
    explain nothing of it. Gao et al. 2024, arXiv:2406.04093, appendix A.2."""
    return fvu(residual.detach(), collective().sum_over_latents(strongest(activations, k) @ W_dec))


def matched_mean(scores: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Mean over the n rows of their score with a partner of their own, partners matched one to one for the largest sum.

    A row left without a partner (n > m) counts 0. Of cosines of two dictionaries this is the one-to-one MMCS.
    The matching itself is found outside the graph, so gradients flow through matched entries alone; it takes
    time of order n^3 on the CPU. Kuhn 1955 (the Hungarian method), scipy's linear_sum_assignment."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores.detach().cpu().numpy(), maximize=True)
    chosen = torch.as_tensor(rows, device=scores.device), torch.as_tensor(columns, device=scores.device)
    return scores[chosen].sum() / len(scores)
