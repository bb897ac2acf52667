"""Helpers for tests of steering: SAEs of every architecture on the toy model's activations, and made-up calibrations."""

from functools import cache

import torch
from torch import Tensor

from activations.language_model import LanguageModel
from sae.architectures import SAE, ArchConfig, build
from sae.config import TrainConfig
from sae.steering.interventions import Calibration, Intervention
from sae.steering.steering import Steering
from sae.training.trainer import Trainer
from tests import tiny

TOKENS = torch.randint(2, 258, (6, 40), generator=torch.Generator().manual_seed(3))
TOKENS[:, 0] = 0


def activations(model: LanguageModel) -> Tensor:
    """Return the activations at the toy hook point, [n, 16], without BOS."""
    return model.capture(TOKENS, [tiny.HOOK])[tiny.HOOK][:, 1:].flatten(0, 1)


@cache
def trained(model: LanguageModel, cfg: ArchConfig) -> SAE:
    """Train an SAE of this architecture for a few steps on those activations, and return it as it would be saved."""
    x = activations(model)
    settings = TrainConfig(steps=12, batch=len(x), lr=1e-2, dead_after_tokens=10**9, warmup_steps=0)
    scale = float((x.numel() / x.square().sum()) ** 0.5)
    sae = build(cfg, x.shape[1], seed=1)
    sae.initialise(x * scale, (x * scale).mean(0), torch.Generator().manual_seed(1))
    trainer = Trainer(sae, settings, scale)
    for _ in range(settings.steps or 0):
        trainer.train_step(x * scale, x * scale)
    return trainer.folded().eval().requires_grad_(False)


def calibration(sae: SAE, x: Tensor) -> Calibration:
    """Return a calibration with each latent's extremes on these activations, 0 where it never fires. Peaks are made up."""
    dense = sae.encode(x).dense().detach()
    peaks = {latent: [latent + 2, latent + 40] for latent in range(sae.d_sae)}
    norm = x.square().sum(1).mean().sqrt().item()
    return Calibration(dense.amax(0).clamp_min(0), (-dense.amin(0)).clamp_min(0), norm, peaks)


def loudest(sae: SAE, x: Tensor, n: int = 2) -> list[int]:
    """Return the latents that fire on most of these activations, but not on all."""
    fires = (sae.encode(x).dense() != 0).float().mean(0)
    return (fires * (fires < 0.9)).topk(n).indices.tolist()


def steer(sae: SAE, x: Tensor, *interventions: Intervention, **settings) -> Steering:
    """Return a steering at the toy hook point."""
    return Steering(sae, tiny.HOOK, interventions, calibration(sae, x), **settings)
