"""The logit lens: which next tokens a latent's decoder row would favour, seen through the model's own head."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.models import LanguageModel
from sae.kernels import top


class LogitLens(NamedTuple):
    """For each latent the tokens it raises and lowers most, strongest first."""

    raised: Int[Tensor, "F n"]
    raised_by: Float[Tensor, "F n"]
    lowered: Int[Tensor, "F n"]
    lowered_by: Float[Tensor, "F n"]


@torch.no_grad()
def logit_lens(
    model: LanguageModel, W_dec: Float[Tensor, "F D"], n: int, block: int = 128
) -> LogitLens | None:
    """Decoder row -> final norm -> unembedding, minus its mean over the vocabulary; see `vocabulary_effect`.

    None when the hook point is not as wide as the residual stream, where a decoder row is no direction of
    it. Memory: block * vocabulary floats."""
    if W_dec.shape[1] != model.bridge.cfg.d_model:
        return None
    parts = []
    for rows in W_dec.split(block):
        effect = model.vocabulary_effect(rows)
        mean, listed = effect.mean(1, keepdim=True), min(n, effect.shape[1])
        (high, raised), (low, lowered) = top(effect, listed), top(effect.neg_(), listed)
        parts.append((raised, high - mean, lowered, -low - mean))
    return LogitLens(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
