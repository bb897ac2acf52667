"""A ring: a bounded folder of shards that producers fill and trainers read while both work (FORMAT.md, Ring)."""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import StoreError, quoted
from activations.harvest import HarvestConfig
from activations.shard import ShardEntry, shard_name
from activations.store import JOB, StoreSpec, read_json, spec_of
from activations.text import TextConfig
from activations.tokens import PackingConfig

T = TypeVar("T")
WAIT = 0.02  # seconds between two looks at the folder


@dataclass(frozen=True)
class StreamConfig:
    """Activations that are computed while a run trains on them, and deleted afterwards."""

    model: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), a local model folder, or a model of the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    model_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision the model runs in, as in `sae harvest`."""
    engine: Literal["bridge", "transformers"] = "bridge"
    """What runs the model: TransformerLens' view of it on one device for each producer, or plain transformers, which spreads a
    model over all GPUs that a producer has."""
    tokens: int = 10_000_000
    """Tokens of one pass over the text, BOS included; fewer when the text ends earlier. A run with more steps begins the
    text again."""
    text: TextConfig = field(default_factory=TextConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """How activations are stored in the ring."""
    shard_tokens: int = 32_768
    """Tokens per shard."""
    batch_tokens: int = 2048
    """Tokens that the model reads at once."""
    kept_tokens: int = 1_000_000
    """Tokens that stay beside the run for `sae evaluate`, `features` and `dead`: whole shards, evenly spread over the text."""

    def harvest(self, hook: str | None, labels: str | None) -> HarvestConfig:
        """Return the same as a harvest of one hook point, that of `with_hooks` where none is given."""
        return HarvestConfig(
            hook or "", self.tokens, self.dtype, self.text, self.packing, labels, self.shard_tokens, self.batch_tokens
        )  # fmt: skip

    def shards(self, spec: StoreSpec) -> int:
        """Return the number of shards of one pass, if the text does not end earlier."""
        return -(-(self.tokens // spec.packing.context) // spec.windows_per_shard)


@dataclass(frozen=True)
class _Needed:
    first: int


@dataclass(frozen=True)
class _Text:
    shards: int
    ended: bool


@dataclass(frozen=True)
class _Note:
    entry: ShardEntry


class RingFolder:
    """The files by which producers and trainers of a ring agree; each file is written whole by one process.

    Shards are numbered without end: where a pass over the text ends, the next one goes on counting. Producers may make
    shard s once s < first_needed + capacity, so that the folder never holds more than `capacity` shards, however slow
    either side is, and the shard that is needed next may always be made."""

    def __init__(self, path: Path):
        self.path, self.shards = path, path / "shards"

    def needed(self) -> int:
        """Return the number of the first shard that some trainer still needs."""
        counters = [self._read(path, _Needed).first for path in self.path.glob("trainer-*.json")]
        return min(counters, default=0)

    def need_from(self, trainer: int, number: int) -> None:
        """Record the first shard that one trainer still needs."""
        files.write_json(self.path / f"trainer-{trainer}.json", {"first": number})

    def clear_trainers(self) -> None:
        """Remove the records of a former job's trainers, whose number may have been another."""
        for path in self.path.glob("trainer-*.json"):
            path.unlink()

    def text(self) -> tuple[int, bool] | None:
        """Return how many shards the text fills and whether it ended before the tokens asked for; None until that is known."""
        path = self.path / "text.json"
        if not path.exists():
            return None
        text = self._read(path, _Text)
        return text.shards, text.ended

    def set_text(self, shards: int, ended: bool) -> None:
        """Record how many shards the text fills."""
        files.write_json(self.path / "text.json", {"shards": shards, "ended": ended})

    def spec(self) -> StoreSpec | None:
        """Return what the shards hold; None until a producer has recorded it."""
        path = self.shards / JOB
        try:
            return spec_of(read_json(path)) if path.exists() else None
        except TypeError as error:
            raise StoreError(f"{path} is damaged: {error}", fix=f"rm -r {quoted(self.path)}") from error

    def entry(self, number: int) -> ShardEntry | None:
        """Return the size and SHA-256 of a shard; None until it is written."""
        path = self.note_path(number)
        return self._read(path, _Note).entry if path.exists() else None

    def note_path(self, number: int) -> Path:
        """Return the path of a shard's note, which is written after the shard."""
        return (self.shards / shard_name(number)).with_suffix(".json")

    def forget(self) -> None:
        """Delete the shards that no trainer needs any more."""
        first = self.needed()
        for note in self.shards.glob("shard-*.json"):
            if int(note.stem.removeprefix("shard-")) < first:
                note.unlink(missing_ok=True)
                note.with_suffix(".safetensors").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the ring, and its folder unless it holds something else."""
        for path in (self.shards, *self.path.glob("producer-*")):
            shutil.rmtree(path, ignore_errors=True)
        self.clear_trainers()
        (self.path / "text.json").unlink(missing_ok=True)
        files.sweep(self.path)
        with suppress(OSError):
            self.path.rmdir()

    def _read(self, path: Path, kind: type[T]) -> T:
        try:
            return parse(kind, read_json(path))
        except TypeError as error:
            raise StoreError(f"{path} is damaged: {error}", fix=f"rm -r {quoted(self.path)}") from error
