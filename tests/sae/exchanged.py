"""Helpers for tests of other tools' files: SAEs with all parameters set, rows to encode, and a distance between results."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures import SAE, ArchConfig, build
from sae.foreign import Origin
from tests.sae.small import D

ORIGIN = Origin("gpt2", "blocks.3.hook_resid_post", {"context_size": 128})


def trained(cfg: ArchConfig, seed: int = 1) -> SAE:
    """Return an SAE as after training: biases, thresholds and magnitudes differ from initial values; decoder rows have norm 1."""
    sae = build(cfg, D, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if tensor.is_floating_point() and name not in ("W_enc", "W_dec"):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
        if "threshold" in sae.state_dict():
            sae.state_dict()["threshold"].fill_(0.4)
        if "log_threshold" in sae.state_dict():
            sae.state_dict()["log_threshold"].clamp_(-2, 0)
        sae.W_dec.copy_(normalize(sae.W_dec, dim=1))
        sae.refresh()
    return sae.eval().requires_grad_(False)


def rows(n: int = 256, seed: int = 2, width: int = D) -> Tensor:
    """Return rows around a point away from 0, like activations."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, width, generator=generator) + torch.randn(width, generator=generator)


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / b.abs().max()).item()
