"""Train an architecture, and its controls, on rows whose true features are known."""

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from activations.errors import ConfigError
from activations.progress import Progress, no_progress
from sae import chance
from sae.architectures import SAE, ArchConfig, build
from sae.architectures.shared import geometric_median
from sae.chance import Purpose
from sae.config import TrainConfig
from sae.evaluation.synthetic import World
from sae.runs.run import device
from sae.training.trainer import INIT_ROWS, Trainer, fit
from sae.trust import controls


def train(
    world: World,
    arch: ArchConfig,
    settings: TrainConfig,
    progress: Progress = no_progress,
) -> SAE:
    """Train an SAE on a planted world; return it in eval mode, reading the world's own units."""
    return finish(begin(world, arch, settings), world, progress)


def train_controls(
    world: World, arch: ArchConfig, settings: TrainConfig, progress: Progress = no_progress
) -> dict[str, SAE]:
    """Return the controls of an SAE of this architecture on a planted world, by name: those with a frozen part that it can have,
    trained as `train` does, and random unit rows."""
    made: dict[str, SAE] = {}
    for name, part in controls.FROZEN.items():
        with suppress(ConfigError):  # encoder and decoder are tied
            made[name] = train(world, arch, replace(settings, frozen=part), progress)
    made["random-dictionary"] = random_control(world, arch.d_sae, settings)
    return made


def random_control(world: World, d_sae: int, settings: TrainConfig) -> SAE:
    """Return random unit rows as a dictionary of which each row keeps as many as the world has active features on average."""
    x, codes = world.draw(INIT_ROWS, chance.generator(settings.seed, Purpose.FIRST_ROWS))
    k = max(1, round(n_active(codes).mean().item()))
    return controls.random_dictionary(x, x.mean(0), d_sae, k, settings.seed)


def begin(world: World, arch: ArchConfig, settings: TrainConfig) -> Trainer:
    """Return a trainer before its first step, with rows sampled, scaled and the SAE initialised as `sae train` does."""
    x, codes = world.draw(INIT_ROWS, chance.generator(settings.seed, Purpose.FIRST_ROWS))
    scale = (x.numel() / x.square().sum().item()) ** 0.5 if settings.scale_inputs else 1.0
    sae = build(arch, world.d_model, settings.seed)
    centre = geometric_median(x * scale)
    sae.initialise(x * scale, centre, torch.Generator().manual_seed(settings.seed))
    if arch.reads_labels:
        sae.fit_labels(x * scale, n_active(codes))
    return Trainer(sae.to(device()), settings.resolved(0, arch), scale)


def finish(trainer: Trainer, world: World, progress: Progress = no_progress) -> SAE:
    """Train to the last step and fold the input scale into the weights."""
    cfg, last = trainer.cfg, trainer.step
    assert cfg.steps is not None
    reads_labels = trainer.sae.cfg.reads_labels
    batches = (
        (x, x, n_active(codes) if reads_labels else None) for x, codes in world.batches(cfg.batch, cfg.seed)
    )
    with progress("train", cfg.steps, "steps", done=last) as advance:

        def log(row: dict[str, float]) -> None:
            nonlocal last
            note = f"FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}, dead {row['dead']:.0f}"
            advance(trainer.step - last, note=note)
            last = trainer.step

        fit(trainer, batches, log=log, save=lambda: None)
    return trainer.folded().eval().requires_grad_(False)


def n_active(codes: Tensor) -> Tensor:
    """Return the number of features in each row, [B]: the label for methods that read labels."""
    return (codes != 0).sum(1).float()
