"""A language model without what it has learned: weights drawn again, or shuffled within each tensor.

Heap et al. 2025, "Automated Interpretability Metrics Do Not Distinguish Trained and Random Transformers", arXiv:2501.17727."""

from collections.abc import Callable

import torch
from torch import Tensor

from activations.language_model import LanguageModel
from sae import chance


def redrawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers from the normal distribution that has the mean and the standard deviation of a tensor."""
    noise = torch.randn(weights.shape, generator=generator, dtype=torch.float32)
    wide = weights.float()
    return wide.mean() + wide.std(correction=0) * noise


def shuffled(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the numbers of a tensor in a random order."""
    return weights.flatten()[torch.randperm(weights.numel(), generator=generator)].view_as(weights)


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "redrawn-model": redrawn,
    "shuffled-model": shuffled,
}
"""What is done to every parameter of the model, by the name of the control."""


@torch.no_grad()
def randomise(model: LanguageModel, change: str, seed: int) -> None:
    """Replace every parameter of a model, in place, as one of CHANGES says; tied parameters stay tied."""
    generator = chance.generator(seed)
    for _, weights in sorted(model.plain.named_parameters()):
        weights.copy_(CHANGES[change](weights.cpu(), generator))
    vars(model).pop("weights_hash", None)  # it is kept once it is computed
