"""Direct logit attribution: how a residual direction changes a token's logit when the final norm's scale is frozen."""

from collections.abc import Callable

import torch
from torch import Tensor

from activations.language_model import LanguageModel


@torch.no_grad()
def next_token_directions(model: LanguageModel, residual: Tensor, tokens: Tensor) -> Tensor | None:
    """Return directions g [n, D], float32, in the residual stream that raise the logits of token ids [n].

    Adding d to row i of `residual` [n, D], taken at the model's `last_residual`, changes the logit of token i minus the
    vocabulary's mean logit by g_i . d, provided the final norm still divides by that row's old scale (frozen scale). This is
    exact up to rounding for a linear head after no norm, or an RMSNorm or LayerNorm with any gain; a soft cap on the logits
    is left out. If d is written into an earlier block, this is its effect on the direct path alone, without what later
    blocks compute from it. None when the model has no readout, or one that is not linear after its norm.
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; TransformerLens, `logit_attrs`."""
    readout = model.readout
    contrast = None if readout is None else readout.pulled_back(tokens.to(model.device, torch.long))
    if readout is None or contrast is None:
        return None
    if readout.norm is None:
        return contrast
    x = residual.to(model.device, model.plain.dtype)
    gain, centred = norm_gain(readout.normed, x)
    normed = (readout.normed(x) - readout.normed(torch.zeros_like(x[:1]))).float()
    scale = normed.norm(dim=1, keepdim=True) / (gain * _shape(x.float(), centred)).norm(dim=1, keepdim=True)
    return _shape(gain * contrast, centred) * scale


@torch.no_grad()
def norm_gain(norm: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, bool]:
    """Return a norm's gain [D], float32, and whether the norm subtracts a row's mean.

    `norm` maps rows [n, D] of the width, type and device of `like`."""
    # Measured on two rows instead of read from weights, so that a gain stored as 1 + w, or no gain, needs no special case.
    # A constant row comes out as zero only if the mean is subtracted. The rows are large, so that epsilon vanishes.
    alternating = torch.ones(like.shape[1], device=like.device)
    alternating[1::2] = -1
    rows = 1e3 * torch.stack([torch.zeros_like(alternating), torch.ones_like(alternating), alternating])
    zero, level, turned = norm(rows.to(like.dtype)).float()
    centred = bool((level - zero).norm() < 1e-2 * (turned - zero).norm())
    shape = _shape(alternating, centred)
    return (turned - zero) * shape.square().mean().sqrt() / shape, centred


def _shape(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows
