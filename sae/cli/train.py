"""`sae train ARCH`: train a sparse autoencoder on a store."""

import dataclasses
import inspect
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from activations.document_labels import per_token
from activations.errors import ConfigError, quoted
from activations.parallel import ranks
from activations.progress import show_progress
from activations.store import Store
from activations.streaming.folder import StreamConfig
from activations.text import make_ready
from sae.architectures import ARCHITECTURES, ArchConfig
from sae.cli import arguments
from sae.config import RunConfig
from sae.runs.run import Run
from sae.training import distributed
from sae.workflows.rings import RingSettings, bytes_of
from sae.workflows.train import train
from sae.workflows.training import labels_source


@dataclass(frozen=True, kw_only=True)
class Train(RunConfig):
    """Train a sparse autoencoder on a store.

    With several processes: torchrun --nproc-per-node 8 -m sae.cli.main train topk …, and --max-restarts 3 to resume
    from the newest checkpoint when one of them is lost. The run is the same, up to rounding."""

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, with any number of processes; begin it where there is none."""
    parallel: distributed.Parallel = "auto"
    """What several processes share: each batch (data), or the dictionary (latents: topk, abstopk, batchtopk), which needs
    less memory in each; auto chooses what moves fewer bytes. A single process ignores it."""
    ring: str | None = None
    """Train on a stream instead of a store: make activations of --model on --dataset while training, and keep at most this
    much of them on the disk, such as 20GB."""
    ring_folder: Path | None = None
    """Folder for the ring, such as one on a fast local disk; when left out, --out."""
    producers: int = 1
    """Processes that run the model for the ring; on GPUs that no trainer uses, while there are any."""
    stream: Annotated[StreamConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=StreamConfig)  # pyright: ignore
    """With --ring: what makes the activations."""
    loss: tyro.conf.Suppress[None] = None
    """Left to `sae finetune`."""


def main(args: list[str]) -> int:
    """Parse and run."""
    arguments.choose(ARCHITECTURES, "architecture", "sae train", args)
    presets = {
        name: (_summary(name, sae.config), Train(out=tyro.MISSING, arch=sae.config()))
        for name, sae in ARCHITECTURES.items()
    }
    command = arguments.parse_preset(presets, "sae train", args)
    cfg = RunConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(RunConfig)})
    ring = _ring(command)
    cfg = dataclasses.replace(cfg, stream=command.stream if ring else None)
    if cfg.stream:
        make_ready(cfg.stream.text)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    with ranks.group():
        if cfg.arch.reads_labels and not ring and not ranks.rank():
            show_labels(cfg, Store(cfg.store))
        again = command.resume or restarted
        run = train(cfg, command.out, again, command.parallel, show_progress, ring)
    if not ranks.rank():
        show_rate(run)
        show_problems(run)
        print(f"{run.path}: trained; next: sae evaluate {quoted(run.path)}")
    return 0


def _ring(command: Train) -> RingSettings | None:
    """Return the ring's settings, None for a run on a store. Raises ConfigError when the command asks for both or neither."""
    if command.ring is None:
        if not command.store:
            raise ConfigError(
                "there are no activations to train on: give --store, a store made by sae harvest, or --ring 20GB with --model and "
                "--dataset, which makes them while training"
            )
        if command.stream != StreamConfig() or command.ring_folder or command.producers != 1:
            raise ConfigError(
                "the settings of a stream, such as --model and --dataset, need --ring, as in --ring 20GB"
            )
        return None
    if command.store:
        raise ConfigError(
            f"--store {command.store} and --ring {command.ring}: train on a store or on a stream, not on both"
        )
    return RingSettings(bytes_of(command.ring), command.ring_folder, command.producers)


def show_labels(cfg: RunConfig, store: Store) -> None:
    """Print which labels the run learns from, and whether they belong to tokens or to whole documents."""
    source = labels_source(cfg, store)
    if per_token(source):
        print(f"labels: {source}, one for each token")
    else:
        print(
            f"labels: {source}, one number for a whole document, shared by all its tokens; for labels of single tokens: "
            f"sae store label {quoted(store.path)} --labels needed:RUN"
        )


def show_rate(run: Run) -> None:
    """Print the learning rate and the trials that measured it, if it was measured."""
    if trials := run.record.rate_trials:
        losses = ", ".join(f"{lr:.3g}: {loss:.4f}" for lr, loss in trials)
        print(f"learning rate {run.config.train.lr:.3g}, measured (rate: loss of a short trial): {losses}")


def show_problems(run: Run) -> None:
    """Print what makes the run's SAE useless as it is, if anything does."""
    for line in run.problems:
        print(f"{run.path}: {line}")


def _summary(name: str, config: type[ArchConfig]) -> str:
    """Return the help of a method: its purpose, its source, which settings suit which budget, and an example."""
    purpose = (config.__doc__ or "").strip().splitlines()[0]
    source = " ".join((inspect.getdoc(inspect.getmodule(config)) or "").split("\n\n", 1)[-1].split())
    example = f"Example: sae train {name} --store stores/demo --out runs/mine --arch.d-sae 16384"
    return f"{purpose}\n\n{source}\n\nSettings: {config.advice}\n\n{example}"
