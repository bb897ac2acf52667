"""Controls: the same push in a direction that means nothing, or means something else."""

from dataclasses import replace

import torch
from torch import Tensor

from activations.errors import ConfigError
from sae.steering.steering import Steering


def random_control(steering: Steering, seed: int = 0) -> Steering:
    """Steering that moves every activation exactly as far, in random directions instead of the latents'.

    Directions are uniform on the sphere, one for each latent. Over and above equal displacement nothing is shared
    with the latents, so what it does to a text is what any push of that size does."""
    rows = steering.rows
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return replace(steering, directions=_as_long(drawn, rows))


def shuffled_control(steering: Steering, seed: int = 0) -> Steering:
    """Steering that moves every activation exactly as far, along decoder rows of other latents that fire.

    They are drawn uniformly, without replacement, from the living latents that are not steered. What it does is what
    a learned direction does that is not this one. Raises ConfigError when there are too few living latents."""
    others = [latent for latent in steering.calibration.living() if latent not in steering.latents]
    wanted = len(steering.interventions)
    if len(others) < wanted:
        raise ConfigError(
            f"the shuffled control needs {wanted} other latents that fire, there are {len(others)}: "
            f"collect features on more text, or leave the control out"
        )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = [others[place] for place in order[:wanted].tolist()]
    return replace(steering, directions=_as_long(steering.sae.W_dec[chosen].detach().float(), steering.rows))


def _as_long(directions: Tensor, rows: Tensor) -> Tensor:
    tiny = torch.finfo(rows.dtype).tiny
    unit = directions.to(rows) / directions.norm(dim=1, keepdim=True).clamp_min(tiny).to(rows)
    return unit * rows.norm(dim=1, keepdim=True)
