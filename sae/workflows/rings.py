"""The ring of a run on a stream: where it lies, how large it is, who fills it."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from activations.document_labels import SURPRISE
from activations.errors import ConfigError
from activations.parallel import ranks
from activations.store import JOB, StoreSpec, read_json, spec_of
from activations.streaming.folder import RingFolder
from activations.streaming.reader import planned_rows, shards_per_group
from activations.streaming.ring import Ring
from sae.config import RunConfig
from sae.runs.run import RING, STORE, Run

SHUFFLE_TOKENS = 262_144  # of a stream: 8 shards, whose rows fit into memory twice with room to spare


@dataclass(frozen=True)
class RingSettings:
    """Where a stream's activations lie while they are needed, and who makes them: it does not change a run's numbers."""

    size: int = 20_000_000_000
    """Bytes that they may take."""
    folder: Path | None = None
    """Folder in which the ring gets one of its own, and which every process must be able to read; when left out, the run's."""
    producers: int = 1
    """Processes that run the language model, each on a device of its own where there are enough."""

    def __post_init__(self) -> None:
        if self.producers < 1:
            raise ConfigError(f"--producers {self.producers} must be at least 1")

    def path(self, out: Path) -> Path:
        """Return the folder of the ring of the run in `out`."""
        if self.folder is None:
            return out / RING
        # Runs of one name may share the folder
        place = hashlib.sha256(str(out.absolute()).encode()).hexdigest()
        return self.folder / f"{out.absolute().name}-{place[:8]}"


def open_ring(runs: Mapping[Path, RunConfig], out: Path, ring: RingSettings) -> Ring:
    """Return the ring in `out` that runs on one stream read, given the folders of the runs and their settings.

    Raises ConfigError when they cannot read one ring: different streams, labels or numbers of tokens shuffled together, or
    some with a hook point and some without."""
    first = next(iter(runs.values()))
    assert first.stream is not None
    labels = {cfg.labels or SURPRISE for cfg in runs.values() if cfg.arch.reads_labels}
    hooks = dict.fromkeys(cfg.hook for cfg in runs.values())
    folder = RingFolder(ring.path(out))
    # What runs that are finished have read too is in the ring and in what the others keep of it
    begun = {path: spec for path in runs if (spec := kept_spec(path / STORE))}
    before = [*begun.values(), *([spec] if (spec := folder.spec()) else [])]
    if None not in hooks:
        hooks = dict.fromkeys(name for spec in before for name in spec.hooks) | hooks
    labels |= {spec.labels for spec in before if spec.labels}
    for what, several in (
        ("stream", {cfg.stream for cfg in runs.values()}),
        ("shuffle_tokens", {cfg.shuffle_tokens for cfg in runs.values()}),
        ("labels", labels),
        ("hook", set(hooks) if None in hooks else ()),
    ):
        if len(several) > 1:
            raise ConfigError(
                f"runs that train together on a stream need the same {what}, these have {several}"
            )
    for path, spec in begun.items():
        if None not in hooks and (set(hooks) != set(spec.hooks) or labels - {spec.labels}):
            raise ConfigError(
                f"{path} keeps activations at {', '.join(spec.hooks)} and labels {spec.labels} of its stream, and cannot share one "
                f"with runs that read others: finish it first, or give the others a folder of their own"
            )
    if (
        (spec := folder.spec())
        and None not in hooks
        and (set(hooks) - set(spec.hooks) or labels - {spec.labels})
    ):
        clear_ring(out, ring)  # it is computed again, with what runs that have been added read
    stream = first.stream
    for path in runs:
        # A run keeps the model's precision, whatever a new measurement would choose
        if (path / "run.json").exists():
            stream = dataclasses.replace(stream, model_dtype=Run(path).record.model_dtype)
    opened = Ring(
        ring.path(out), stream, kept=[path / STORE for path in runs], size=ring.size, producers=ring.producers,
        shuffle_tokens=first.shuffle_tokens or SHUFFLE_TOKENS, labels=next(iter(labels), None),
        hooks=None if None in hooks else ",".join(filter(None, hooks)), groups=2 if len(runs) == 1 else 3,
    )  # fmt: skip
    try:
        for cfg in runs.values():
            _check_batch(cfg, opened.spec, first.shuffle_tokens or SHUFFLE_TOKENS)
    except ConfigError:
        opened.close()
        raise
    return opened


def kept_spec(folder: Path) -> StoreSpec | None:
    """Return what an unfinished store in a folder holds; None where there is none."""
    return spec_of(read_json(folder / JOB)) if (folder / JOB).exists() else None


def _check_batch(cfg: RunConfig, spec: StoreSpec, shuffle_tokens: int) -> None:
    """Raise ConfigError for a batch that may be larger than a shuffle group: reading it would take more of the ring than there is."""
    rows = planned_rows(spec, shards_per_group(spec, shuffle_tokens), cfg.positions)
    if 2 * cfg.train.batch > rows:
        raise ConfigError(
            f"train.batch = {cfg.train.batch}: a shuffle group of {shuffle_tokens:,} tokens has some {rows:,} training rows, and a batch "
            f"on a stream may take half of them: use more --shuffle-tokens, or a smaller --train.batch"
        )


def bytes_of(size: str) -> int:
    """Return how many bytes a size such as 20GB, 1.5TB or 500MB is. Raises ConfigError for what is not a size."""
    match = re.fullmatch(r"([\d.]+)\s*([kMGT]?)B?", size, re.IGNORECASE)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or not 0 < number < math.inf:
        raise ConfigError(f"--ring {size}: expected a size such as 20GB")
    return int(number * 1000 ** " kMGT".lower().index((match[2] or " ").lower()))


def clear_ring(out: Path, ring: RingSettings) -> None:
    """Remove the ring of a run that is finished or has not begun."""
    with ranks.first_goes_first():
        if not ranks.rank():
            RingFolder(ring.path(out)).remove()
