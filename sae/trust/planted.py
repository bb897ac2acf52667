"""Whether an SAE has recovered planted features: by the features found, beside controls, and never by the variance explained."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sae.architectures import SAE
from sae.evaluation.bootstrap import Estimate, difference, ratio
from sae.evaluation.recovery import FOUND, Parents, cosines, parents
from sae.evaluation.synthetic import World

LEAST = 0.5
"""An SAE has recovered a world when it has found more than this share of its features, as far as the bootstrap can tell."""
BESIDE = 0.8
"""A parent is kept when it is found and its latent fires on at least this share of the rows on which a child is active too."""
SIGNED_ROWS = 1000  # drawn to see whether a world's codes have signs
Verdict = Literal["recovered", "not recovered"]
HierarchyVerdict = Literal["recovered", "absorbed", "not recovered"]


class Judged(NamedTuple):
    """What can be said of an SAE in a planted world."""

    verdict: Verdict
    found: Estimate
    """Share of planted features found, with a bootstrap interval over features."""
    better_by: dict[str, Estimate]
    """How much larger that share is than each control's, with a paired bootstrap interval over features."""
    hierarchy: HierarchyVerdict | None
    """recovered: the features are, and the parents are kept; absorbed: not recovered, and most parents are found but at most half
    are kept, and the latents of those found fire beyond doubt more rarely beside a child than alone; not recovered: anything else.
    None without a hierarchy."""
    kept: Estimate | None
    """Share of parents that are kept, of those that the drawn rows have beside a child, with a bootstrap interval over them; None
    where there is none."""


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
    verdict = "recovered" if recovered else "not recovered"
    if not bool((world.parents >= 0).any()):
        return Judged(verdict, found, better_by, None, None)
    return Judged(verdict, found, better_by, *hierarchy(parents(sae, world), verdict))


def hierarchy(measured: Parents, features: Verdict) -> tuple[HierarchyVerdict, Estimate | None]:
    """Return what `Judged` says of a hierarchy, and the share of parents that are kept, from its parents as they were measured and
    what was said of all features."""
    found = measured.found.numpy()
    alone, beside = measured.alone.double().numpy(), measured.beside.double().numpy()
    share_found = ratio(found, np.ones(len(found)))
    seen = ~np.isnan(beside)
    if not seen.any():
        return "not recovered", None
    kept = ratio(found & (beside >= BESIDE), seen)
    if features == "recovered" and kept.low > LEAST:
        return "recovered", kept
    silenced = alone - beside
    known = found & ~np.isnan(silenced)
    rarer = ratio(np.where(known, silenced, 0.0), known)
    absorbed = share_found.low > LEAST and kept.value <= LEAST and rarer.low > 0
    return "absorbed" if absorbed else "not recovered", kept


@torch.no_grad()
def _found(sae: SAE, world: World) -> NDArray[np.float64]:
    """Return 1 for each planted feature that a decoder row has found, else 0."""
    _, codes = world.draw(SIGNED_ROWS, torch.Generator().manual_seed(0))
    best = cosines(world.features, sae.W_dec.cpu(), signed=bool((codes < 0).any())).max(1).values
    return (best >= FOUND).double().numpy()
