"""Optimizers, set up as the papers do."""

import torch

from sae.architectures import SAE


def adam(sae: SAE, lr: float) -> torch.optim.Adam:
    """Adam over the SAE's parameter groups; betas (0.9, 0.999) and eps 6.25e-10 (Gao et al. 2024, appendix A)
    where a group has none of its own. One fused pass over the weights."""
    groups = [{"lr_scale": 1.0, **group} for group in sae.parameter_groups()]
    return torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.999), eps=6.25e-10, fused=True)
