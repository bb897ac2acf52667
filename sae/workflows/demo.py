"""The demo: harvest, train, evaluate, features and their words, explanations and dead latents on the embedded model and text."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from activations import demo_assets, language_model
from activations.errors import ModelError, RunError
from activations.harvest import HarvestConfig, begun_in
from activations.progress import Progress, no_progress
from activations.text import TextConfig
from sae.architectures import TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.diagnosis.sample import DeadConfig
from sae.features.collect import FeaturesConfig
from sae.features.meaning import meanings_of
from sae.runs.run import Run, device
from sae.workflows.diagnose import diagnose_run
from sae.workflows.evaluate import evaluate
from sae.workflows.explain import explain
from sae.workflows.features import collect_features
from sae.workflows.harvest import harvest_store
from sae.workflows.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demo:
    """The main job on a real language model (SmolLM2-135M-Instruct) and real text, with nothing prepared.

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
    hook: str = demo_assets.MODEL_HOOK
    """Hook point."""
    windows: int = 48
    """Held-out windows for the language model's own loss."""
    name: str | None = None
    """The run goes to runs/NAME, the store to stores/NAME; when left out `demo`, followed by the settings that are
    not the default's, as in runs/demo-width2048, so that runs of one store share it."""

    def path(self, folder: str, *settings: str) -> Path:
        """Return the path in `folder` of a store or run, named after those of `settings` that are not at their defaults."""
        changed = [
            f"{field.name}{getattr(self, field.name)}"
            for field in fields(self)
            if field.name in settings and getattr(self, field.name) != field.default
        ]
        return Path(folder) / (self.name or "-".join(["demo", *changed]))


def run_demo(cfg: Demo, progress: Progress = no_progress) -> Run:
    """Do the whole job and return the run; what an interrupted call finished is not done again."""
    store_path = cfg.path("stores", "tokens", "hook")
    run_path = cfg.path("runs", "tokens", "hook", "steps", "width", "k")
    model = language_model.load("embedded", dtype=begun_in(store_path, "auto"), device=str(device()))
    text = TextConfig(dataset="embedded")
    harvest = HarvestConfig(hooks=cfg.hook, tokens=cfg.tokens, dtype="float16", text=text)
    harvest_store(model, store_path, harvest, progress)
    arch = TopKConfig(d_sae=cfg.width, k=cfg.k)
    training = TrainConfig(steps=cfg.steps, checkpoint_minutes=1)
    config = RunConfig(store=str(store_path), hook=cfg.hook, arch=arch, train=training)
    run = train(config, run_path, resume=True, progress=progress)
    if model.plain.dtype != torch.float32:  # what follows computes in float32, whatever the harvest ran in
        model = run.language_model()
    if run.evaluation is None:
        evaluate(run, run.sae().to(device()), model, cfg.windows, progress=progress)
    features = collect_features(run, model, FeaturesConfig(), progress)
    try:
        meanings_of(features, progress)
    except ModelError as error:  # search by meaning is offered again by the app, when there is a network
        log.warning("%s", error.message)
    try:
        explain(run, progress=progress)
    except RunError as error:  # a demo of few tokens, in which no latent fires often enough
        log.warning("%s", error.message)
    diagnose_run(run, DeadConfig(), lambda: nullcontext(model), progress)
    return run
