"""How far a latent is from firing on a row: what it has, what it would need, and the difference."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Firing(NamedTuple):
    """How far some latents are from firing on each row."""

    drive: Float[Tensor, "B n"]
    """What each asks with: its pre-activation."""
    needed: Float[Tensor, "B n"]
    """What it has to exceed, by size where latents are signed, while all the others stay as they are."""
    margin: Float[Tensor, "B n"]
    """By how much it does: > 0 where it fires, < 0 where not. 0 where two latents tie for the last place of a
    row, and the architecture keeps one of them or both."""


def to_be_among(
    level: Float[Tensor, "B F"], k: Int[Tensor, "B"], own: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    """What each of `own`, entries of a row of `level`, has to exceed to be among the row's k[b] largest, all the
    others staying: the k-th largest of the others; -inf where there are not so many."""
    most = min(int(k.max()) + 1, level.shape[1])
    largest = torch.nn.functional.pad(level.topk(most, dim=1).values, (0, 1), value=-torch.inf)
    last, next_ = (largest.gather(1, (k + place).clamp_max(most)[:, None]) for place in (-1, 0))
    return torch.where(own >= last, next_, last)
