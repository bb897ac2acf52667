"""Controls for steering: an intervention of the same size in a random direction, or along another latent."""

from dataclasses import replace

import torch
from torch import Tensor

from activations.errors import ConfigError
from sae.steering.steering import Steering


def random_control(steering: Steering, seed: int = 0) -> Steering:
    """Return a steering that moves every activation exactly as far, in random directions instead of the latents'.

    Directions are uniform on the sphere, one per latent. Apart from the equal displacement they share nothing with the
    latents, so the control shows what any intervention of that size does to a text."""
    rows = steering.rows
    # a normal vector's direction is uniform on the sphere
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return replace(steering, directions=_with_norms_of(drawn, rows))


def shuffled_control(steering: Steering, seed: int = 0) -> Steering:
    """Return a steering that moves every activation exactly as far, along decoder rows of other latents that fire.

    They are drawn uniformly, without replacement, from the live latents that are not steered. The control shows what
    some other learned direction does. Raises ConfigError when there are too few live latents."""
    others = [latent for latent in steering.calibration.living() if latent not in steering.latents]
    wanted = len(steering.interventions)
    if len(others) < wanted:
        raise ConfigError(
            f"the shuffled control needs {wanted} other latents that fire and has {len(others)}: "
            f"collect features on more text, or leave the control out"
        )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = [others[index] for index in order[:wanted].tolist()]
    return replace(
        steering, directions=_with_norms_of(steering.sae.W_dec[chosen].detach().float(), steering.rows)
    )


def _with_norms_of(directions: Tensor, rows: Tensor) -> Tensor:
    """Scale each direction to the norm of the decoder row that it replaces."""
    tiny = torch.finfo(rows.dtype).tiny
    unit = directions.to(rows) / directions.norm(dim=1, keepdim=True).clamp_min(tiny).to(rows)
    return unit * rows.norm(dim=1, keepdim=True)
