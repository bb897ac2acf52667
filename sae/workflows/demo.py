"""The demo: harvest, train, evaluate, features, their words, rules and dead latents on the embedded model and text; and a second SAE."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from activations import demo_assets, language_model
from activations.errors import ConfigError, DivergedError, ModelError, RunError
from activations.harvest import HarvestConfig, begun_in
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.text import TextConfig
from sae.architectures import AbsTopKConfig, ArchConfig, TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.diagnosis.sample import DeadConfig
from sae.evaluation.splicing import held_out_windows
from sae.features.collect import FeaturesConfig
from sae.features.meaning import fetch_what_is_needed, meanings_of
from sae.runs.run import Run, device
from sae.workflows.compare import keep, kept, match_runs
from sae.workflows.diagnose import diagnose_run
from sae.workflows.evaluate import evaluate
from sae.workflows.explain import explain
from sae.workflows.features import collect_features
from sae.workflows.harvest import harvest_store
from sae.workflows.together import train_together

log = logging.getLogger(__name__)
SHORTER = (
    3  # the second SAE has this share of the steps, and is measured on this share of the windows and rows
)


@dataclass(frozen=True)
class Demo:
    """The main job on a real language model (SmolLM2-135M-Instruct) and real text, with nothing prepared.

    A second, smaller SAE (abstopk, whose latents are signed) is trained in the same pass, so that there are two to compare.

    Example: sae demo --tokens 100000 --steps 300 --width 2048. Interrupted at any point, the
    same command continues without doing finished work again."""

    tokens: int = 350_000
    """Tokens to harvest; the embedded text has some 730,000."""
    steps: int = 900
    """Training steps of 2048 tokens."""
    width: int = 8192
    """Latents in the dictionary."""
    k: int = 32
    """Latents that fire per token."""
    second: int = 2048
    """Latents in the dictionary of the second SAE, trained for a third of the steps; 0 for none."""
    hook: str = demo_assets.MODEL_HOOK
    """Hook point."""
    windows: int = 48
    """Held-out windows for the language model's own loss."""
    name: str | None = None
    """The run goes to runs/NAME, the second to runs/NAME-signed, the store to stores/NAME; when left out `demo`, followed by the
    settings that are not the default's, as in runs/demo-width2048, so that runs of one store share it."""

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "windows"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} = {value} must be at least 1")
        if self.second < 0:
            raise ConfigError(f"second = {self.second} must be at least 0, which leaves the second SAE out")
        if not 1 <= self.k <= self.width:
            raise ConfigError(f"k = {self.k} must lie between 1 and width = {self.width}")
        if self.second and self.k > self.second:
            raise ConfigError(
                f"k = {self.k} is above second = {self.second}, the latents of the second SAE: give --second at least "
                f"{self.k}, or --second 0 for none"
            )
        if self.name and Path(self.name).name in ("", ".."):
            raise ConfigError(
                f"name = {self.name} does not end in the name of a folder, as demo or tries/demo do"
            )

    def path(self, folder: str, *settings: str, ending: str = "") -> Path:
        """Return the path in `folder` of a store or run, named after those of `settings` that are not at their defaults; `ending`
        follows its name."""
        changed = [
            f"{field.name}{getattr(self, field.name)}"
            for field in fields(self)
            if field.name in settings and getattr(self, field.name) != field.default
        ]
        base = Path(self.name or "demo")
        return Path(folder) / base.with_name("-".join([base.name + ending, *(() if self.name else changed)]))


def run_demo(cfg: Demo, progress: Progress = no_progress) -> list[Run]:
    """Do the whole job; return the run and, where there is one, the second. What an interrupted call finished is not done again.

    Both SAEs are trained in one pass over the store. Raises DivergedError when the training of the first diverges."""
    store_path, (run_path, second_path) = cfg.path("stores", "tokens", "hook"), _run_paths(cfg)
    model = language_model.load("embedded", dtype=begun_in(store_path, "auto"), device=str(device()))
    text = TextConfig(dataset="embedded")
    harvest = HarvestConfig(hooks=cfg.hook, tokens=cfg.tokens, dtype="float16", text=text)
    harvest_store(model, store_path, harvest, progress)

    def settings(arch: ArchConfig, steps: int) -> RunConfig:
        training = TrainConfig(steps=steps, checkpoint_minutes=1)
        return RunConfig(store=str(store_path), hook=cfg.hook, arch=arch, train=training)

    configs = {run_path: settings(TopKConfig(d_sae=cfg.width, k=cfg.k), cfg.steps)}
    if cfg.second:
        configs[second_path] = settings(AbsTopKConfig(d_sae=cfg.second, k=cfg.k), -(-cfg.steps // SHORTER))
    diverged = train_together(configs, run_path.parent, progress)
    if run_path in diverged:
        raise DivergedError(diverged[run_path])
    for message in diverged.values():
        log.warning("%s", message)
    run = Run(run_path)
    if model.plain.dtype != torch.float32:  # what follows computes in float32, whatever the harvest ran in
        model = run.language_model()
    _measure(run, model, cfg.windows, FeaturesConfig(), progress)
    try:
        explain(run, progress=progress)
    except RunError as error:  # a demo of few tokens, in which no latent fires often enough
        log.warning("%s", error.message)
    diagnose_run(run, DeadConfig(), lambda: nullcontext(model), progress)
    if not cfg.second or second_path in diverged:
        return [run]
    second = Run(second_path)
    few = FeaturesConfig(strongest=10, sampled=20)
    _measure(second, model, max(1, cfg.windows // SHORTER), few, progress)
    diagnose_run(
        second,
        DeadConfig(rows=DeadConfig.rows // SHORTER, off_tokens=1024),
        lambda: nullcontext(model),
        progress,
    )
    if kept(run, second) is None:
        keep(run, second, match_runs(run, second, progress=progress))
    return [run, second]


def _run_paths(cfg: Demo) -> tuple[Path, Path]:
    """Return the folders of the run and of the second one, which does not depend on the width of the first."""
    first = cfg.path("runs", "tokens", "hook", "steps", "width", "k")
    return first, cfg.path("runs", "tokens", "hook", "steps", "k", "second", ending="-signed")


def _measure(run: Run, model: LanguageModel, windows: int, cfg: FeaturesConfig, progress: Progress) -> None:
    """Evaluate a run, on no fewer windows than these, and collect its features and their words, as far as that is not done."""
    spliced = run.evaluation and run.evaluation.splice
    # With little held-out text there are no more windows to be had than those measured
    if not spliced or (
        spliced.windows < windows and spliced.windows < len(held_out_windows(run.store, windows)[0])
    ):
        evaluate(run, run.sae().to(device()), model, windows, progress=progress)
    features = collect_features(run, model, cfg, progress)
    try:
        fetch_what_is_needed()
        meanings_of(features, progress)
    except ModelError as error:  # search by meaning is offered again by the app, when there is a network
        log.warning("%s", error.message)
