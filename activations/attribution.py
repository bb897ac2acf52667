"""Direct logit attribution: what a residual direction says of the next token, the final norm's scale held."""

import torch
from torch import Tensor

from activations.models import LanguageModel


@torch.no_grad()
def next_token_directions(model: LanguageModel, residual: Tensor, tokens: Tensor) -> Tensor:
    """Directions g [n, D], float32, along which the residual stream speaks for token ids [n].

    Adding d to row i of `residual` [n, D], as it stands at the model's `last_residual`, changes the logit of
    token i minus the vocabulary's mean logit by g_i . d while the final norm goes on dividing by what it
    divides that row by (its scale frozen). Exact up to rounding for a final RMSNorm or LayerNorm of any gain
    and a linear unembedding; a cap on the logits, or a factor behind it, is left out. Written into an earlier
    block, d moves them by this much on the direct path alone: what later blocks make of it is not in it.
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; TransformerLens, `logit_attrs`."""
    unembed = model.plain.get_output_embeddings().weight
    mean = unembed.mean(0, dtype=torch.float32)
    contrast = unembed[tokens.to(model.device, torch.long)].float() - mean
    gain, centred = final_norm(model)
    x = residual.to(model.device, model.plain.dtype)
    normed = _norm(model, x) - _norm(model, torch.zeros_like(x[:1]))
    scale = normed.norm(dim=1, keepdim=True) / (gain * _shape(x.float(), centred)).norm(dim=1, keepdim=True)
    return _shape(gain * contrast, centred) * scale


@torch.no_grad()
def final_norm(model: LanguageModel) -> tuple[Tensor, bool]:
    """The final norm's gain [D], float32, and whether it takes a row's mean off: seen in what it does to two rows.

    A gain stored as 1 + w, or none, so needs no case of its own. The rows are large, so that eps vanishes."""
    alternating = torch.ones(model.plain.get_output_embeddings().weight.shape[1], device=model.device)
    alternating[1::2] = -1
    rows = 1e3 * torch.stack([torch.zeros_like(alternating), torch.ones_like(alternating), alternating])
    zero, level, turned = _norm(model, rows.to(model.plain.dtype))
    centred = bool((level - zero).norm() < 1e-2 * (turned - zero).norm())
    shape = _shape(alternating, centred)
    return (turned - zero) * shape.square().mean().sqrt() / shape, centred


def _norm(model: LanguageModel, rows: Tensor) -> Tensor:
    return model.bridge.ln_final(rows[:, None])[:, 0].float()


def _shape(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows
