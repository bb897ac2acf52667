"""Settings of `sae trust`, the SAEs that it has to train for a run, and about what that costs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from activations.errors import ConfigError, RunError
from activations.store import INDEX as STORE_INDEX
from sae.config import RunConfig
from sae.runs.run import TRUST, Run
from sae.training import frozen
from sae.trust import controls, random_models

FEWEST_SEEDS = 3
STORES = "stores"  # what random models made of the store's text


@dataclass(frozen=True)
class TrustConfig:
    """Settings of the comparison of a run with its controls."""

    seeds: int = FEWEST_SEEDS
    """Runs that differ in the seed alone, the run itself included; at least 3. More of them make smaller differences reliable."""
    windows: int = 64
    """Held-out windows the language model reads, once for each SAE and three times more; 0 leaves the model out."""
    batch: int = 2048
    """Rows encoded at once."""
    random_models: bool = False
    """Also train the run's SAE on two models with random weights, drawn again and shuffled within each tensor: each reads the
    whole text of the store again, and its store takes as much disk as the run's."""

    def __post_init__(self) -> None:
        if self.seeds < FEWEST_SEEDS:
            raise ConfigError(
                f"seeds = {self.seeds} must be at least {FEWEST_SEEDS}: fewer do not tell how much equal runs differ"
            )
        if self.windows < 0:
            raise ConfigError(f"windows = {self.windows} must be at least 0, which leaves the model out")
        if self.batch < 1:
            raise ConfigError(f"batch = {self.batch} must be at least 1")


class Plan(NamedTuple):
    """What is to be made for a run, and about what that costs."""

    trained: dict[str, RunConfig]
    """Settings of the SAEs to train, by name: controls first, then seeds."""
    left_out: dict[str, str]
    """Controls that the run's method cannot have, with the reason."""
    missing: list[str]
    """Those of `trained` that are not finished yet."""
    stores: list[str]
    """Random models that have to read the text of the run's store again."""
    seconds: float | None
    """Time to train the missing ones, by the speed of the run itself on the machine that trained it; None where its log lacks it."""
    bytes: int
    """Disk that the missing ones take: each as much as the run's SAE and checkpoints, and a store for each random model."""


def without_controls(run: Run) -> str | None:
    """Return why no controls can be trained for a run, as a clause about it; None where they can."""
    if run.config.stream is not None:
        return "was trained on a stream, which is gone"
    if run.config.start_from is not None:
        return "started from another SAE"
    return "was imported" if run.config.train.steps is None else None


def plan_trust(run: Run, cfg: TrustConfig) -> Plan:
    """Return what `trust` would do. Raises RunError for a run whose controls cannot be trained on its store."""
    _ = run.digest  # raises when it is not finished
    before = run.config
    if how := without_controls(run):
        raise RunError(
            f"{run.path} {how}: its controls need the store, the start and the steps that `sae train` gave it"
        )
    assert before.train.steps is not None  # as of an imported run
    _ = run.store  # raises when it is gone
    sae, trained, left_out = run.sae(), {}, {}
    for name, part in controls.FROZEN.items():
        try:
            frozen.refuse(sae, part)
            trained[name] = controls.with_frozen(before, part)
        except ConfigError as error:
            left_out[name] = error.message
    trained |= controls.with_seeds(before, cfg.seeds - 1)
    if cfg.random_models:
        for name in random_models.CHANGES:
            if run.reads_files or before.arch.reads_labels:
                what = (
                    "the activations come from files"
                    if run.reads_files
                    else "its labels belong to the trained model"
                )
                left_out[name] = f"no random model can take the place of the run's: {what}"
                continue
            trained[name] = dataclasses.replace(
                before, loggers=(), store=str(run.path / TRUST / STORES / name), hook=run.hook
            )
    missing = [name for name in trained if not is_finished(run.path / TRUST / name)]
    speeds = [row["tokens_per_second"] for row in run.log if row.get("tokens_per_second")]
    rows = before.train.steps * before.train.batch
    seconds = len(missing) * rows / float(np.median(speeds)) if speeds else None
    kept = [run.path / "sae.safetensors", *run.path.glob("checkpoints/*/*")]
    size = len(missing) * sum(path.stat().st_size for path in kept)
    stores = [
        name
        for name in random_models.CHANGES
        if name in trained and not (run.path / TRUST / STORES / name / STORE_INDEX).exists()
    ]
    size += len(stores) * sum(entry.bytes for entry in run.store.shards)
    return Plan(trained, left_out, missing, stores, seconds, size)


def is_finished(path: Path) -> bool:
    """Return whether a folder holds a finished run."""
    return (path / "run.json").exists() and Run(path).finished
