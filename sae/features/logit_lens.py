"""Lenses: which next tokens a latent's decoder row favours, by the model's own head alone or through the mean Jacobian of its blocks."""

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
def jacobian_effect(
    model: LanguageModel, directions: Float[Tensor, "n D"], jacobian: Float[Tensor, "N D"]
) -> Float[Tensor, "n V"]:
    """Return the change of the logits for directions written at a hook point, by the mean Jacobian from there to the head's input
    (`activations.jacobian`).

    It is in logits for a unit of the activation, and the vocabulary's mean is left in. The model must have a readout; a soft cap on
    its logits is left out, and a head that is not linear is read at zero."""
    assert model.readout is not None
    read = directions.float() @ jacobian.T.to(directions.device)
    read = read.to(model.device, model.plain.dtype)
    return model.readout.read(read).float()


@torch.no_grad()
def logit_lens(
    model: LanguageModel,
    W_dec: Float[Tensor, "F D"],
    n: int,
    block: int = 128,
    advance: Advance = ignore,
    jacobian: Float[Tensor, "N D"] | None = None,
) -> LogitLens | None:
    """Pass each decoder row through the final norm and the unembedding and subtract the mean over the vocabulary.

    See `LanguageModel.vocabulary_effect`; with a `jacobian` each row goes through that and the unembedding instead, see
    `jacobian_effect`. The vocabulary is the ids that the tokenizer has a token for: the embedding's other rows are padding.
    Returns None when the model has no readout or, without a Jacobian, when the hook point is not as wide as the residual
    stream, so that a decoder row is not one of its directions. Memory: block * vocabulary floats."""
    if model.readout is None or not (jacobian is not None or sees(model, W_dec.shape[1])):
        return None

    def effect_of(rows: Tensor) -> Tensor:
        return model.vocabulary_effect(rows) if jacobian is None else jacobian_effect(model, rows, jacobian)

    known = model.vocabulary.known
    size = effect_of(W_dec[:1]).shape[1] if known is None else len(known)
    shape = len(W_dec), min(n, size)
    # Allocated before the loop: small results kept between the large blocks would fragment the heap, so that the memory of
    # one block could not be reused by the next.
    lens = LogitLens(*(torch.empty(shape, dtype=kind) for kind in (torch.int64, torch.float32) * 2))
    for start in range(0, len(W_dec), block):
        rows = slice(start, start + block)
        effect = effect_of(W_dec[rows])
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


def correlations(
    effect: Float[Tensor, "V"], lens: Float[Tensor, "V"] | None
) -> tuple[float | None, float | None]:
    """Return Pearson's and Spearman's correlation of an effect on tokens, float64, with what a lens predicts.

    Both are None where there is no lens, or where one of the two is constant."""
    from scipy.stats import rankdata

    if lens is None or not effect.std() > 0 or not lens.std() > 0:
        return None, None
    ranks = [torch.from_numpy(rankdata(column.numpy())) for column in (effect, lens)]
    pearson, spearman = (
        float(torch.corrcoef(torch.stack([*pair]))[0, 1]) for pair in ((effect, lens), ranks)
    )
    return pearson, spearman
