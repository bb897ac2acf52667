"""Train a finished run's SAE a little further, end to end through the language model whose activations it reads."""

from dataclasses import dataclass
from pathlib import Path

from activations.errors import ConfigError, check_seed
from activations.progress import Progress, no_progress
from sae.config import LONG, RunConfig, TrainConfig, peak_rate
from sae.runs.run import Run
from sae.workflows.train import train

SHARE = 20  # 25 of the 500 million tokens of Karvonen 2025


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning; the method and its settings, the hook point and the store are the run's."""

    tokens: int | None = None
    """Tokens to read; when left out, a twentieth of those that the run was trained on."""
    batch: int = 2048
    """Tokens per step, rounded down to whole windows of the store but at least one."""
    lr: float | None = None
    """Peak learning rate, which falls linearly to 0; when left out, a third of what suits a long run of this method and width:
    the high rates that suit short runs from scratch undo what a trained SAE has learned (LOG.md)."""
    seed: int = 0
    """Seed of the order of windows."""
    log_every: int = 1
    """Steps between rows of log.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, more where writing one takes over a twentieth of that; 0 writes one after every step."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value} must be at least 1")
        check_seed(self.seed)


def finetune(
    run: Run,
    out: Path | str,
    cfg: FinetuneConfig | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Run:
    """Train the run's SAE on the method's own loss and the KL divergence that its reconstruction causes in the language model's
    predictions, balanced as `Trainer.train_step` says; return the new run in `out`.

    The language model reads windows of the run's own store, two passes and a backward one each; its weights do not change.
    The learning rate falls linearly from its peak to 0, after a short warm-up. Stops, resumes and fails as `sae.train` does.
    Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need", arXiv:2503.17272.

    Raises RunError when the run is not finished or the model's weights are others, StoreError when its store is gone or it was
    imported without one, HookError when the model lacks the hook point, ConfigError for an imported run without `tokens`."""
    return train(settings_of(run, cfg or FinetuneConfig()), out, resume, progress=progress)


def settings_of(run: Run, cfg: FinetuneConfig) -> RunConfig:
    """Return the settings of the new run. Raises RunError, StoreError and ConfigError as `finetune` does."""
    before, store = run.config, run.store
    _ = run.digest  # raises when the run is not finished
    if before.train.steps is None and cfg.tokens is None:
        raise ConfigError(
            f"{run.path} does not say how long it was trained: add --tokens, such as --tokens 1000000"
        )
    tokens = cfg.tokens or (before.train.steps or 0) * before.train.batch // SHARE
    batch = max(1, cfg.batch // store.context) * store.context
    training = TrainConfig(
        steps=max(1, tokens // batch),
        batch=max(2, batch),
        lr=before.arch.rate * peak_rate(before.arch.d_sae, LONG) / 3 if cfg.lr is None else cfg.lr,
        decay_share=1.0,
        clip_norm=before.train.clip_norm,
        dead_after_tokens=before.train.dead_after_tokens,
        scale_inputs=before.train.scale_inputs,
        seed=cfg.seed,
        log_every=cfg.log_every,
        held_out_every=cfg.log_every,
        checkpoint_minutes=cfg.checkpoint_minutes,
    )  # fmt: skip
    return RunConfig(
        store=str(store.path), hook=run.hook, arch=before.arch, train=training, positions=before.positions,
        start_from=str(run.path), loss="kl",
    )  # fmt: skip
