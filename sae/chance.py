"""Random numbers that share nothing with the start of an SAE: for controls, and for planted worlds.

Torch's generator gives the same numbers from the same seed whatever they are for. A control that is drawn from the seed of
the run beside it would be made of the run's own start: of the decoder rows themselves where these start as normal numbers,
and of rows with a cosine of -.35 where they start as uniform ones. Features that are planted would be found before training."""

from enum import IntEnum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


class Purpose(IntEnum):
    """What numbers are drawn for. Each value is added to the seed, and stays as it is: results depend on it.

    They differ by more than any two seeds that a person chooses, also modulo 2^32: torch's generator on the CPU looks at 32
    bits only."""

    CONTROLS = 3_000_000_019
    PLANTED_FEATURES = 2_000_000_011
    PLANTED_COPULA = 4_000_000_007
    PLANTED_SIZES = 5_000_000_029
    FIRST_ROWS = 1_000_000_000
    """Rows of a planted world from which an SAE and its controls start."""
    MEASURED_ROWS = 100_000_000
    """Rows of a planted world on which an L0 is measured while a price is searched."""


def generator(seed: int, purpose: Purpose = Purpose.CONTROLS) -> torch.Generator:
    """Return a generator for this seed, which nothing but this purpose draws from."""
    return torch.Generator().manual_seed((seed + purpose) % 2**63)


def directions(n: int, width: int, seed: int) -> Float[Tensor, "n D"]:
    """Return unit vectors for controls, uniform on the sphere."""
    # a normal vector's direction is uniform on the sphere
    return normalize(torch.randn(n, width, generator=generator(seed)), dim=1)
