"""Whether an SAE has recovered planted features: by the features found, beside controls, and never by the variance explained."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sae.architectures import SAE
from sae.evaluation.bootstrap import Estimate, difference, ratio
from sae.evaluation.synthetic import World, cosines

FOUND = 0.9
"""A planted feature is found when a decoder row has at least this cosine with it."""
LEAST = 0.5
"""An SAE has recovered a world when it has found more than this share of its features, as far as the bootstrap can tell."""
SIGNED_ROWS = 1000  # drawn to see whether a world's codes have signs


class Judged(NamedTuple):
    """What can be said of an SAE in a planted world."""

    verdict: Literal["recovered", "not recovered"]
    found: Estimate
    """Share of planted features found, with a bootstrap interval over features."""
    better_by: dict[str, Estimate]
    """How much larger that share is than each control's, with a paired bootstrap interval over features."""


def judge(sae: SAE, controls: Mapping[str, SAE], world: World) -> Judged:
    """Say whether an SAE has recovered the features of a planted world.

    It has when the interval of the share that it found lies above LEAST and the interval of its difference from every control
    lies above 0. A dictionary of random directions explains much variance and finds next to nothing, so that variance does not
    count: Korznikov et al. 2026, arXiv:2602.14111, report 9 % of features found at 71 % of variance."""
    own = _found(sae, world)
    ones = np.ones_like(own)
    found = ratio(own, ones)
    better_by = {name: difference((own, ones), (_found(one, world), ones)) for name, one in controls.items()}
    recovered = found.low > LEAST and all(one.low > 0 for one in better_by.values())
    return Judged("recovered" if recovered else "not recovered", found, better_by)


@torch.no_grad()
def _found(sae: SAE, world: World) -> NDArray[np.float64]:
    """Return 1 for each planted feature that a decoder row has found, else 0."""
    _, codes = world.draw(SIGNED_ROWS, torch.Generator().manual_seed(0))
    best = cosines(world.features, sae.W_dec.cpu(), signed=bool((codes < 0).any())).max(1).values
    return (best >= FOUND).double().numpy()
