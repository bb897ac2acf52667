"""The store: activations of whole context windows in safetensors shards under one index (FORMAT.md, Store)."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activations.disk import files
from activations.disk.schema import LARGEST, build
from activations.errors import StoreError, TextError, quoted
from activations.int8 import Int8Activations, n_blocks
from activations.rows import NAN, Positions, Split, count_selected, expand, segments_of, select, spread_labels
from activations.shard import (
    Shard,
    ShardEntry,
    ShardFile,
    first_non_finite,
    open_shard,
    shard_fault,
    shard_name,
)
from activations.tokens import PackingConfig, Window

FORMATS = {"document": 1, "token": 2}  # stores with labels per token have format 2
OF_FILES = 3  # format of a store that was made from another program's files
INDEX, JOB = "index.json", "harvest.json"  # of a finished store; of a harvest under way
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


def row_bytes(dtype: str, width: int) -> int:
    """Return how many bytes a row of this width takes in a store of this type, the scales of int8 included."""
    scales = 2 * n_blocks(width) if dtype == "int8" else 0
    return width * DTYPES[dtype].itemsize + scales


@dataclass(frozen=True)
class StoreSpec:
    """A description of a store's content and origin, complete enough to harvest the store again."""

    model: str
    model_revision: str | None
    weights_sha256: str | None
    """None for a store of files: which weights made them is not known."""
    tokenizer_sha256: str | None
    """None for a store of files without a tokenizer."""
    dataset: dict[str, Any]
    dataset_revision: str | None
    packing: PackingConfig
    bos_token: int | None
    hooks: dict[str, int]
    """Hook point -> width D."""
    dtype: str
    windows_per_shard: int
    labels: str | None = None
    """Source of the labels; None for a store without labels."""
    labels_per: Literal["document", "token"] = "document"
    """Whether a label belongs to a whole document or to one token."""
    model_dtype: str = "float32"
    """Precision that the model ran in."""
    chat_template_sha256: str | None = None
    """SHA-256 of the chat template of the conversations; None for a store of text or token ids."""
    source: Literal["bridge", "transformers", "tensor-parallel", "fsdp", "files"] = "bridge"
    """What gave the rows: TransformerLens' view of a language model, another engine, or another program's files."""

    @property
    def excluded(self) -> int:
        """Number of positions at the start of every window that are left out by default: the BOS, or the token in its place.

        Models use this token as an attention sink; its activation norm is hundreds of times that of other rows. None is left
        out of a store of files, whose windows are no context that a model has read."""
        return 0 if self.source == "files" else 1

    @property
    def format(self) -> int:
        """The number of the format of a store with this content."""
        return OF_FILES if self.source == "files" else FORMATS[self.labels_per]


OPTIONAL = {field.name: field.default for field in fields(StoreSpec) if field.default is not MISSING}
"""Entries that an index may omit, and the values they then have."""


@dataclass(frozen=True)
class Moments:
    """Means, computed in float64, over the rows of one hook point that are neither excluded nor padding."""

    mean: list[float]
    mean_square_norm: float


class ShardFolder(ABC):
    """Shards in one folder with what they hold. Subclasses say in `_entry` how large a shard is and what its SHA-256 is.

    `positions` are those whose rows count where a reader does not ask for others."""

    def __init__(self, path: Path, spec: StoreSpec, positions: Positions = "all"):
        self.path, self.spec = path, spec
        self.positions: Positions = positions
        # Checks already done: (shard, "") for the hash, (shard, hook) for finite values. Each is slow, so it is done once.
        self._checked: set[tuple[int, str]] = set()

    @property
    def context(self) -> int:
        """Number of tokens in a window, T."""
        return self.spec.packing.context

    def width(self, hook: str) -> int:
        """Return the width D of a hook point. Raises StoreError, naming the others, when it was not harvested."""
        if hook not in self.spec.hooks:
            raise StoreError(f"{self.path} holds no {hook!r}: it has {', '.join(self.spec.hooks)}")
        return self.spec.hooks[hook]

    def only_hook(self) -> str:
        """Return the store's only hook point. Raises StoreError when it has several."""
        if len(self.spec.hooks) > 1:
            raise StoreError(
                f"{self.path} holds several hook points: choose one with --hook: {', '.join(self.spec.hooks)}"
            )
        return next(iter(self.spec.hooks))

    def read(self, number: int, hooks: tuple[str, ...] = ()) -> Shard:
        """Read shard `number` with the activations of `hooks`, memory-mapped.

        The first time, all bytes of the shard are compared with the SHA-256 in the index, and activations that are NaN or
        infinite are refused: no harvest by this version stores any. Raises StoreError if the shard is damaged."""
        widths = {hook: self.width(hook) for hook in hooks}
        per_token = self.spec.labels_per == "token"
        with self._open(number) as file:
            if (number, "") not in self._checked:
                file.check_hash()
            segments, tokens = file.segments(), file.per_row("tokens", torch.int32)
            dtype = DTYPES[self.spec.dtype]
            stored = {hook: file.columns(hook, dtype, width) for hook, width in widths.items()}
            if not self.spec.labels:
                labels = torch.full(tokens.shape, NAN)
            elif per_token:
                labels = file.per_row("labels", torch.float32)
            else:
                of_segments = file.tensor("labels", torch.float32, (len(segments),))
                labels = spread_labels(of_segments, segments, tokens.shape)
        origins = expand(segments, tokens.shape)
        for hook, columns in stored.items():
            if (number, hook) not in self._checked and (where := first_non_finite(columns[-1], *origins)):
                raise StoreError(
                    f"{hook} is NaN or infinite at {where}, in {self.path / shard_name(number)}: "
                    f"harvest again without that document"
                )
        self._checked |= {(number, hook) for hook in ("", *hooks)}
        if dtype == torch.int8:
            return Shard(tokens, *origins, Int8Activations(stored), labels)
        return Shard(tokens, *origins, {hook: x for hook, (x,) in stored.items()}, labels)

    @abstractmethod
    def _entry(self, number: int) -> ShardEntry: ...

    def _open(self, number: int) -> AbstractContextManager[ShardFile]:
        return open_shard(self.path, number, self._entry(number), self.context)

    def rows(
        self, shard: Shard, split: Split = "all", with_bos: bool = False, positions: Positions | None = None
    ) -> Tensor:
        """Return which rows of a shard [n, T] belong to a split: bool. Padding never does, a BOS only `with_bos`.

        One document in ten is held out, as a whole; which ones is fixed for all stores (`rows.is_held_out`).
        `positions="last"` takes only the last row of each document in each window; None takes the folder's own."""
        excluded = 0 if with_bos else self.spec.excluded
        return select(shard.documents, excluded, split, positions or self.positions)


class Store(ShardFolder):
    """A finished store, read-only. A row is a (window, column) pair; row = window * T + column.

    A run that was trained on the last row of each document opens its store with `positions="last"`, so that whatever measures
    the run reads those rows. Raises StoreError when the folder is not a store, is an unfinished harvest, or has a newer format."""

    def __init__(self, path: Path | str, positions: Positions = "all"):
        path = Path(path)
        if not (path / INDEX).exists():
            if (path / JOB).exists():
                raise StoreError(
                    f"{path} is an unfinished harvest; the command that began it finishes it",
                    fix=f"sae harvest … --out {quoted(path)}",
                )
            raise StoreError(
                f"{path} is not a store: it has no {INDEX}", fix=f"sae harvest … --out {quoted(path)}"
            )
        index = read_json(path / INDEX)
        try:
            if (number := index["format"]) > OF_FILES:
                raise StoreError(f"{path} has store format {number}, this release reads up to {OF_FILES}")
            self.text_ended = bool(index["text_ended"])
            self.shards = [build(ShardEntry, entry) for entry in index["shards"]]
            self._moments = {hook: build(Moments, index["moments"][hook]) for hook in index["hooks"]}
            super().__init__(path, spec_of(index), positions)
            self._refuse_contradictions()
        except (KeyError, TypeError, ValueError, AttributeError, TextError) as error:
            raise StoreError(f"{path / INDEX} is damaged: {error!r}") from error

    def _refuse_contradictions(self) -> None:
        """Raise ValueError for sizes that are impossible or contradict each other."""
        if self.spec.dtype not in DTYPES or not self.spec.hooks:
            raise ValueError(f"dtype = {self.spec.dtype!r}, hooks = {self.spec.hooks}")
        for hook, width in self.spec.hooks.items():
            if not 0 < width == len(self._moments[hook].mean):
                raise ValueError(
                    f"{hook} has width {width}, its mean {len(self._moments[hook].mean)} numbers"
                )
        for number, entry in enumerate(self.shards):
            if min(entry.windows - 1, entry.rows, entry.bytes) < 0 or entry.windows * self.context >= LARGEST:
                raise ValueError(f"shard {number} is {entry}")

    def __repr__(self) -> str:
        hooks = ", ".join(f"{hook} [{width}]" for hook, width in self.spec.hooks.items())
        return f"Store({str(self.path)!r}: {self.tokens:,} tokens of {self.spec.model}, {hooks})"

    @property
    def windows(self) -> int:
        """Number of windows."""
        return sum(entry.windows for entry in self.shards)

    @property
    def tokens(self) -> int:
        """Number of tokens, BOS and padding included."""
        return self.windows * self.context

    @property
    def first_windows(self) -> list[int]:
        """For each shard, the number of its first window in the store."""
        return np.cumsum([0, *(entry.windows for entry in self.shards)])[:-1].tolist()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the index without its checksum line. The index holds the SHA-256 of every shard."""
        return hashlib.sha256(files.unsealed((self.path / INDEX).read_bytes())).hexdigest()

    def mean(self, hook: str) -> Tensor:
        """Return the mean activation [D], float64, over all rows that are not excluded."""
        self.width(hook)
        return torch.tensor(self._moments[hook].mean, dtype=torch.float64)

    def mean_square_norm(self, hook: str) -> float:
        """Return the mean squared Euclidean norm of all rows that are not excluded."""
        self.width(hook)
        return self._moments[hook].mean_square_norm

    def _entry(self, number: int) -> ShardEntry:
        return self.shards[number]

    def count(
        self, number: int, split: Split = "all", with_bos: bool = False, positions: Positions | None = None
    ) -> int:
        """Return how many rows `rows` chooses of shard `number`. Only the shard's segments are read."""
        with self._open(number) as file:
            segments = file.segments()
        excluded = 0 if with_bos else self.spec.excluded
        windows, chosen = self.shards[number].windows, positions or self.positions
        return count_selected(segments, windows, self.context, excluded, split, chosen)

    def holds(self, number: int, windows: list[Window]) -> bool:
        """Return whether shard `number` is of these windows, without reading its activations."""
        with self._open(number) as file:
            if self.shards[number].windows != len(windows):
                return False
            tokens, segments = file.per_row("tokens", torch.int32).numpy(), file.segments().numpy()
        return np.array_equal(tokens, np.stack([window.tokens for window in windows])) and np.array_equal(
            segments, segments_of(windows)
        )

    def batches(
        self, hook: str, rows: int, split: Split = "all"
    ) -> Iterator[tuple[Tensor, Tensor, Shard, int]]:
        """Yield, in order, (x [<= rows, D] float32, flat row numbers within the shard, the shard, the shard's number).

        A batch never spans two shards, so that a pass can stop after any shard and resume there."""
        for number in range(len(self.shards)):
            shard = self.read(number, (hook,))
            for chosen in self.rows(shard, split).flatten().nonzero()[:, 0].split(rows):
                if len(chosen):  # `split` turns no rows into one empty piece
                    yield shard.rows(hook, chosen), chosen, shard, number


def spec_of(content: dict[str, Any]) -> StoreSpec:
    """Return the spec within an index or the record of an unfinished harvest. Raises TypeError when it is damaged."""
    known = {field.name for field in fields(StoreSpec)}
    return build(StoreSpec, {name: value for name, value in content.items() if name in known})


def verify(store: Store) -> Iterator[tuple[str, str | None]]:
    """Check every shard against the index; yield each file's name and what is wrong with it, or None."""
    for number, entry in enumerate(store.shards):
        name = shard_name(number)
        yield name, shard_fault(store.path / name, entry)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a store. Raises StoreError when it cannot be read."""
    try:
        return files.read_json(path)
    except (ValueError, OSError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
