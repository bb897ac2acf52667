"""Random directions for controls, which share no numbers with the start of an SAE or with a planted world.

Torch's generator gives the same numbers from the same seed whatever they are for. A control that is drawn from the seed of
the run beside it would be made of the run's own start: of the decoder rows themselves where these start as normal numbers,
and of rows with a cosine of -.35 where they start as uniform ones."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

APART = 3_000_000_019  # below 2^32, because torch's generator on the CPU looks at 32 bits only


def generator(seed: int) -> torch.Generator:
    """Return a generator for the controls of this seed, which nothing but controls draws from."""
    return torch.Generator().manual_seed((seed + APART) % 2**63)


def directions(n: int, width: int, seed: int) -> Float[Tensor, "n D"]:
    """Return unit vectors, uniform on the sphere."""
    # a normal vector's direction is uniform on the sphere
    return normalize(torch.randn(n, width, generator=generator(seed)), dim=1)
