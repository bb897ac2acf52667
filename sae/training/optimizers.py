"""Optimizers, set up as the papers do."""

import torch

from sae.architectures import SAE


def adam(sae: SAE, lr: float) -> torch.optim.Adam:
    """Adam, betas (0.9, 0.999), eps 6.25e-10 (Gao et al. 2024, appendix A); one fused pass over the weights."""
    return torch.optim.Adam(sae.parameters(), lr=lr, betas=(0.9, 0.999), eps=6.25e-10, fused=True)
