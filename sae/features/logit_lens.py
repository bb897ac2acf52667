"""The logit lens: which next tokens a latent's decoder row favours when it is passed through the model's own head."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.language_model import LanguageModel
from activations.progress import Advance, ignore
from sae.kernels import top


class LogitLens(NamedTuple):
    """For each latent the n tokens whose logits it raises and lowers most, strongest first, and by how much."""

    raised: Int[Tensor, "F n"]
    raised_by: Float[Tensor, "F n"]
    lowered: Int[Tensor, "F n"]
    lowered_by: Float[Tensor, "F n"]


def sees(model: LanguageModel, width: int) -> bool:
    """Return whether there is a lens: the hook point is as wide as the residual stream, and the model has a readout."""
    return width == model.width and model.readout is not None


@torch.no_grad()
def logit_lens(
    model: LanguageModel, W_dec: Float[Tensor, "F D"], n: int, block: int = 128, advance: Advance = ignore
) -> LogitLens | None:
    """Pass each decoder row through the final norm and the unembedding and subtract the mean over the vocabulary.

    See `LanguageModel.vocabulary_effect`. The vocabulary is the ids that the tokenizer has a token for: the embedding's other
    rows are padding. Returns None when the hook point is not as wide as the residual stream, so that a decoder row is not
    one of its directions, or when the model has no readout. Memory: block * vocabulary floats."""
    if not sees(model, W_dec.shape[1]):
        return None
    known = model.vocabulary.known
    size = model.vocabulary_effect(W_dec[:1]).shape[1] if known is None else len(known)
    shape = len(W_dec), min(n, size)
    # Allocated before the loop: small results kept between the large blocks would fragment the heap, so that the memory of
    # one block could not be reused by the next.
    lens = LogitLens(*(torch.empty(shape, dtype=kind) for kind in (torch.int64, torch.float32) * 2))
    for start in range(0, len(W_dec), block):
        rows = slice(start, start + block)
        effect = model.vocabulary_effect(W_dec[rows])
        if known is not None:
            effect = effect[:, known.to(effect.device)]
        mean = effect.mean(1, keepdim=True)
        (high, raised), (low, lowered) = top(effect, shape[1]), top(effect.neg_(), shape[1])
        # `effect` was negated in place for the lowest logits, so -low is their value.
        for column, values in zip(lens, (raised, high - mean, lowered, -low - mean), strict=True):
            column[rows] = values
        advance(len(effect))
    if known is not None:
        lens = lens._replace(raised=known[lens.raised], lowered=known[lens.lowered])
    return lens
