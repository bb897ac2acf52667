"""Direct logit attribution: what a residual direction says of the next token, the final norm's scale held."""

from collections.abc import Callable

import torch
from torch import Tensor

from activations.language_model import LanguageModel


@torch.no_grad()
def next_token_directions(model: LanguageModel, residual: Tensor, tokens: Tensor) -> Tensor | None:
    """Directions g [n, D], float32, along which the residual stream speaks for token ids [n].

    Adding d to row i of `residual` [n, D], as it stands at the model's `last_residual`, changes the logit of
    token i minus the vocabulary's mean logit by g_i . d while the final norm goes on dividing by what it
    divides that row by (its scale frozen). Exact up to rounding for a final RMSNorm or LayerNorm of any gain,
    or none, and a linear head; a soft cap on the logits is left out. Written into an earlier block, d moves
    them by this much on the direct path alone: what later blocks make of it is not in it. None when the model
    has no readout, or one that is not linear behind its norm.
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
    """A norm's gain [D], float32, and whether it takes a row's mean off: seen in what it does to two rows.

    `norm` maps rows [n, D] of `like`'s width, type and device. A gain stored as 1 + w, or none, so needs no
    case of its own. The rows are large, so that the norm's epsilon vanishes."""
    alternating = torch.ones(like.shape[1], device=like.device)
    alternating[1::2] = -1
    rows = 1e3 * torch.stack([torch.zeros_like(alternating), torch.ones_like(alternating), alternating])
    zero, level, turned = norm(rows.to(like.dtype)).float()
    centred = bool((level - zero).norm() < 1e-2 * (turned - zero).norm())
    shape = _shape(alternating, centred)
    return (turned - zero) * shape.square().mean().sqrt() / shape, centred


def _shape(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows
