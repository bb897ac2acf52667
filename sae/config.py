"""RunConfig: one training run as one frozen dataclass; flags, run.json and Python arguments are its fields."""

import dataclasses
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from activations.disk.schema import build
from activations.errors import RunError
from sae.architectures import ARCHITECTURES, ArchConfig, TopKConfig, name_of
from sae.training.trainer import TrainConfig

LoggerName = Literal["tensorboard", "wandb"]
DROPPED = ("checkpoint_every",)  # steps between checkpoints, before these were written by time


@dataclass(frozen=True)
class RunConfig:
    """What to train, on what, and how."""

    store: str
    """Activation store to train on, as `sae harvest` makes it."""
    hook: str | None = None
    """Hook point to read; may be left out when the store has only one."""
    arch: ArchConfig = field(default_factory=TopKConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loggers: tuple[LoggerName, ...] = ()
    """More places for metrics, beside log.jsonl."""
    positions: Literal["all", "last"] = "all"
    """Rows to train on: all, or the last one of each document in each window (as AdaptiveK's paper does, with texts
    of one window each: `sae harvest --packing document --separator none`)."""
    labels: str | None = None
    """Which of the store's labels to learn from (AdaptiveK), as `sae store show` names them; when left out, those of the
    harvest, or else the only ones there are."""


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON, with the architecture's name."""
    return {"architecture": name_of(config.arch), **asdict(config)}


def from_json(content: dict[str, Any]) -> RunConfig:
    """Inverse of `to_json`. Raises RunError for a field this release does not know, or a value of a wrong type.

    Settings of training that earlier releases had and that change no result are left out (FORMAT.md)."""
    try:
        own = {name: value for name, value in content.items() if name not in ("architecture", "arch")}
        own["train"] = {name: value for name, value in own.get("train", {}).items() if name not in DROPPED}
        arch = arch_from_json(content["architecture"], content["arch"], content.get("train", {}).get("batch"))
        return dataclasses.replace(build(RunConfig, own), arch=arch)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the run's configuration cannot be read: {error}") from error


def arch_from_json(name: str, fields: dict[str, Any], batch: int | None = None) -> ArchConfig:
    """Return an architecture's configuration, that of an older release as this one has it; `batch` is the run's, if known.

    Raises RunError when this release has no such architecture, TypeError for fields that are not its own."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise RunError(f"architecture {name!r} is unknown here: this release has {', '.join(ARCHITECTURES)}")
    kind = ARCHITECTURES[name].config
    return build(kind, kind.upgraded(fields, batch) if isinstance(fields, dict) else fields)
