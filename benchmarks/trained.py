"""Training for the benchmarks: single steps of a TopK SAE at its start, and whole runs measured on held-out rows."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.timing import Shape
from sae.architectures import TopKConfig, build
from sae.config import RunConfig, TrainConfig
from sae.runs.run import Run, device
from sae.training.trainer import Trainer
from sae.workflows.evaluate import evaluate
from sae.workflows.train import train


def trainer(shape: Shape, x: Float[Tensor, "N D"], clip_norm: float = 1.0) -> Trainer:
    """Return a trainer at step 0 at its default settings, without warm-up, as a long run would have it."""
    sae = build(TopKConfig(d_sae=shape.latents, k=shape.k), shape.width)
    sae.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
    cfg = TrainConfig(steps=100_000, batch=shape.batch, warmup_steps=0, clip_norm=clip_norm)
    return Trainer(sae, cfg.resolved(0, sae.cfg))


def silence(silent_tokens: Tensor, share: float, trainer: Trainer) -> None:
    """Set the counter so that this share of all latents, drawn at random but always the same, is dead in the next step.

    They are no worse than the others: what is measured is what AuxK costs, not what it does."""
    assert trainer.cfg.dead_after_tokens is not None
    n = silent_tokens.numel()
    dead = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: round(share * n)]
    silent_tokens.zero_()
    silent_tokens[dead] = trainer.cfg.dead_after_tokens


def measured_run(cfg: RunConfig, folder: Path) -> Run:
    """Train a run and measure it on its held-out rows, without the language model; what is there is not done again."""
    run = train(cfg, folder, resume=True)
    if not run.evaluation:
        evaluate(run, run.sae().to(device()), None, 0)
    return run
