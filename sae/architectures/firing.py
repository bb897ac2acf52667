"""Measure how far a latent is from firing on a row: its pre-activation, the one it would need, and the difference."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Firing(NamedTuple):
    """The distance of some latents from firing, on each row."""

    pre_activation: Float[Tensor, "B n"]
    """The number that decides whether each fires (`SAE.dense_pre_activations`)."""
    needed: Float[Tensor, "B n"]
    """The number that the pre-activation has to exceed, in size where latents are signed, if all others stay as they are."""
    margin: Float[Tensor, "B n"]
    """The excess over `needed`: above 0 where the latent fires, below 0 where it does not. It is 0 where two latents tie for
    the last place of a row; the architecture keeps one of them, or both."""


def to_be_among(
    level: Float[Tensor, "B F"], k: Int[Tensor, "B"], own: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    """Return what each of `own`, entries of a row of `level`, has to exceed to be among the row's k[b] largest.

    That is the k-th largest of the row's other entries, which stay as they are; -inf where there are fewer than k."""
    most = min(int(k.max()) + 1, level.shape[1])
    largest = torch.nn.functional.pad(level.topk(most, dim=1).values, (0, 1), value=-torch.inf)
    last, next_ = (largest.gather(1, (k + place).clamp_max(most)[:, None]) for place in (-1, 0))
    return torch.where(own >= last, next_, last)
