"""The store: activations of whole context windows in safetensors shards under one index (FORMAT.md, Store)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from activations.disk import files
from activations.disk.files import plain
from activations.disk.schema import LARGEST, build
from activations.errors import StoreError, TextError
from activations.rows import NAN, ends_a_run, expand, is_held_out, kept, lie_within, place_of_none, spread
from activations.tokens import PackingConfig

FORMATS = {"document": 1, "token": 2}  # the format number follows from what a label belongs to
INDEX, JOB = "index.json", "harvest.json"  # of a whole store; of a harvest under way
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Split = Literal["train", "held-out", "all"]
Positions = Literal["all", "last"]


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds and how it was made: enough to make it again."""

    model: str
    model_revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    dataset: dict[str, Any]
    dataset_revision: str | None
    packing: PackingConfig
    bos_token: int | None
    hooks: dict[str, int]
    """Hook point -> width D."""
    dtype: str
    windows_per_shard: int
    labels: str | None = None
    """Where the labels come from; None for a store without."""
    labels_per: Literal["document", "token"] = "document"
    """Whether a label belongs to a whole document, or to one token."""
    model_dtype: str = "float32"
    """Precision the model ran in."""
    chat_template_sha256: str | None = None
    """Of the chat template that conversations were laid out with; None for a store of text or token ids."""

    @property
    def excluded(self) -> int:
        """Positions at the start of every window left out unless asked for: BOS, or what stands in for it.

        Models put their attention sink there, with norms hundreds of times the others'."""
        return 1


OPTIONAL = {field.name: field.default for field in fields(StoreSpec) if field.default is not MISSING}
"""What a store may leave unsaid, and what that means."""


class Shard(NamedTuple):
    """One shard's windows: tokens, documents, positions [n, T] (int32) and one [n, T, D] per hook point.

    `labels` [n, T] (float32) is the label of each row or of its document; NaN where there is none."""

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    activations: dict[str, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class ShardEntry:
    """What the index says of one shard."""

    windows: int
    rows: int
    """Rows that are neither excluded nor padding."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Moments:
    """Means over the rows of one hook point that are neither excluded nor padding, in float64."""

    mean: list[float]
    mean_square_norm: float


class _Damaged(Exception):
    """A shard is not what the index promises."""


class Store:
    """A finished store, read-only. Rows are (window, position) pairs; row = window * T + position.

    Raises StoreError when the folder is no store, an unfinished one, or of a newer format."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        # shards whose bytes ("") or whose numbers at a hook point were found to be right
        self._checked: set[tuple[int, str]] = set()
        if not (self.path / INDEX).exists():
            if (self.path / JOB).exists():
                raise StoreError(
                    f"{path} is an unfinished harvest: run the same `sae harvest` again to finish"
                )
            raise StoreError(
                f"no store at {path}: needed is a folder with {INDEX}, as `sae harvest` makes it"
            )
        index = read_json(self.path / INDEX)
        try:
            if (found := index["format"]) > (newest := max(FORMATS.values())):
                raise StoreError(f"{path} is of store format {found}, this release reads up to {newest}")
            self.text_ended = bool(index["text_ended"])
            self.shards = [build(ShardEntry, entry) for entry in index["shards"]]
            self._moments = {hook: build(Moments, index["moments"][hook]) for hook in index["hooks"]}
            known = {field.name for field in fields(StoreSpec)}
            self.spec = build(StoreSpec, {name: value for name, value in index.items() if name in known})
            self._refuse_contradictions()
        except (KeyError, TypeError, ValueError, AttributeError, TextError) as error:
            raise StoreError(f"{self.path / INDEX} is damaged: {error!r}") from error

    def _refuse_contradictions(self) -> None:
        """Raise ValueError for sizes that cannot be, or do not go together."""
        if self.spec.dtype not in DTYPES or not self.spec.hooks:
            raise ValueError(f"dtype = {self.spec.dtype!r}, hooks = {self.spec.hooks}")
        for hook, width in self.spec.hooks.items():
            if not 0 < width == len(self._moments[hook].mean):
                raise ValueError(
                    f"{hook} has width {width}, its mean {len(self._moments[hook].mean)} numbers"
                )
        for number, entry in enumerate(self.shards):
            if min(entry.windows - 1, entry.rows, entry.bytes) < 0 or entry.windows * self.context >= LARGEST:
                raise ValueError(f"shard {number} holds {entry}")

    def __repr__(self) -> str:
        hooks = ", ".join(f"{hook} [{width}]" for hook, width in self.spec.hooks.items())
        return f"Store({str(self.path)!r}: {self.tokens:,} tokens of {self.spec.model}, {hooks})"

    @property
    def context(self) -> int:
        """Tokens per window."""
        return self.spec.packing.context

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
        """Number of each shard's first window."""
        return np.cumsum([0, *(entry.windows for entry in self.shards)])[:-1].tolist()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the index, its seal left out; it holds the SHA-256 of every shard."""
        return hashlib.sha256(files.unsealed((self.path / INDEX).read_bytes())).hexdigest()

    def width(self, hook: str) -> int:
        """D at a hook point. Raises StoreError, naming what there is, when it was not harvested."""
        if hook not in self.spec.hooks:
            raise StoreError(f"{self.path} holds no {hook!r}: it has {', '.join(self.spec.hooks)}")
        return self.spec.hooks[hook]

    def only_hook(self) -> str:
        """The store's hook point, when there is just one. Raises StoreError otherwise."""
        if len(self.spec.hooks) > 1:
            raise StoreError(
                f"{self.path} holds several hook points: choose one with --hook: {', '.join(self.spec.hooks)}"
            )
        return next(iter(self.spec.hooks))

    def mean(self, hook: str) -> Tensor:
        """Mean activation [D], float64, over all rows that are not excluded."""
        self.width(hook)
        return torch.tensor(self._moments[hook].mean, dtype=torch.float64)

    def mean_square_norm(self, hook: str) -> float:
        """Mean over rows of the squared Euclidean norm, over all rows that are not excluded."""
        self.width(hook)
        return self._moments[hook].mean_square_norm

    def read(self, number: int, hooks: tuple[str, ...] = ()) -> Shard:
        """Read shard `number`, with the activations of `hooks`, memory-mapped. Raises StoreError if damaged.

        The first time all of its bytes are compared with the SHA-256 in the index, and a number that is NaN or
        infinite is refused, as no harvest of ours leaves one."""
        with self._opened(number) as file:
            if (number, "") not in self._checked:
                self._check_bytes(number)
            tokens, segments = file.get_tensor("tokens"), self._segments(number, file)
            labels = file.get_tensor("labels") if self.spec.labels else torch.full((len(segments),), NAN)
            activations = {hook: file.get_tensor(hook) for hook in hooks}
            self._check_shapes(tokens, segments, labels, activations, self.shards[number])
        places = expand(segments, tokens.shape)
        for hook, x in activations.items():
            if (number, hook) not in self._checked and (where := place_of_none(x, *places)):
                raise StoreError(
                    f"{hook} is NaN or infinite at {where}, in {self.path / shard_name(number)}: "
                    f"harvest again without that document"
                )
        self._checked |= {(number, what) for what in ("", *hooks)}
        if self.spec.labels_per == "document":
            labels = spread(labels, segments, tokens.shape)
        return Shard(tokens, *places, activations, labels)

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        """Shard `number` as an open safetensors file; what is wrong with it within the block is one StoreError."""
        path, entry = self.path / shard_name(number), self.shards[number]
        try:
            if plain(path).stat().st_size != entry.bytes:
                raise _Damaged(f"{path.stat().st_size:,} bytes found, {entry.bytes:,} written")
            with safe_open(path, framework="pt") as file:
                yield file
        except FileNotFoundError as error:
            raise StoreError(
                f"{path} is missing, its index counts it: restore it or harvest again"
            ) from error
        except (SafetensorError, OSError, _Damaged) as error:
            raise StoreError(
                f"{path} is damaged: {error}; restore it, or delete {self.path} and harvest again"
            ) from error

    def _check_bytes(self, number: int) -> None:
        if files.sha256(self.path / shard_name(number)) != self.shards[number].sha256:
            raise _Damaged("its bytes have changed since it was harvested")

    def _segments(self, number: int, file: Any) -> Tensor:
        windows = self.shards[number].windows
        if (found := file.get_slice("tokens").get_shape()) != [windows, self.context]:
            raise _Damaged(f"tokens has shape {found}, needed is {[windows, self.context]}")
        segments = file.get_tensor("segments")
        if segments.ndim != 2 or segments.shape[1] != 5 or segments.dtype != torch.int32:
            raise _Damaged(f"segments is of {segments.dtype} and shape {tuple(segments.shape)}")
        if not lie_within(segments, windows, self.context):
            raise _Damaged("a segment lies outside the windows, or over another")
        return segments

    def _check_shapes(
        self,
        tokens: Tensor,
        segments: Tensor,
        labels: Tensor,
        activations: dict[str, Tensor],
        entry: ShardEntry,
    ) -> None:
        window_shape = (entry.windows, self.context)
        shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "tokens": (tokens, window_shape),
            "labels": (labels, window_shape if self.spec.labels_per == "token" else (len(segments),)),
        }
        shapes |= {h: (x, (*window_shape, self.spec.hooks[h])) for h, x in activations.items()}
        dtypes = dict.fromkeys(activations, DTYPES[self.spec.dtype]) | {"tokens": torch.int32}
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise _Damaged(f"{name} has shape {tuple(tensor.shape)}, needed is {shape}")
            if tensor.dtype != (wanted := dtypes.get(name, torch.float32)):
                raise _Damaged(f"{name} is of {tensor.dtype}, needed is {wanted}")

    def rows(
        self, shard: Shard, split: Split = "all", with_bos: bool = False, positions: Positions = "all"
    ) -> Tensor:
        """Which rows of a shard [n, T] belong to a split: bool. Padding never; BOS rows only when asked for.

        Documents, one in ten, are held out whole; which ones is fixed (`is_held_out`). `positions="last"`
        leaves the last row of each document in each window."""
        chosen = kept(shard.documents, shard.positions, 0 if with_bos else self.spec.excluded)
        if positions == "last":
            chosen &= ends_a_run(shard.documents)
        if split == "all":
            return chosen
        held_out = is_held_out(shard.documents)
        return chosen & (held_out if split == "held-out" else ~held_out)

    def count(
        self, number: int, split: Split = "all", with_bos: bool = False, positions: Positions = "all"
    ) -> int:
        """How many rows `rows` chooses of shard `number`, found from its segments: nothing else of it is read."""
        with self._opened(number) as file:
            column, length, document = self._segments(number, file).long().T[1:4]
        first = column.clamp_min(0 if with_bos else self.spec.excluded)
        found = (column + length - first).clamp(0, 1 if positions == "last" else self.context)
        if split != "all":
            found = found[is_held_out(document) == (split == "held-out")]
        bos = self.shards[number].windows - int((column == 0).sum())
        return int(found.sum()) + bos * (with_bos and split != "held-out" and positions == "all")

    def batches(
        self, hook: str, rows: int, split: Split = "all", positions: Positions = "all"
    ) -> Iterator[tuple[Tensor, Tensor, Shard, int]]:
        """In order: (x [<= rows, D] float32, flat row numbers within the shard, the shard, its number).

        A batch never spans two shards, so that a pass can stop and go on between shards."""
        for number in range(len(self.shards)):
            shard = self.read(number, (hook,))
            flat = shard.activations[hook].flatten(0, 1)
            for chosen in self.rows(shard, split, positions=positions).flatten().nonzero()[:, 0].split(rows):
                if len(chosen):  # a shard without rows of the split still splits into one empty piece
                    yield flat[chosen].float(), chosen, shard, number


def verify(store: Store) -> Iterator[tuple[str, str | None]]:
    """Check every shard's SHA-256; yield (file name, None if right or else what is wrong) for each."""
    for number, entry in enumerate(store.shards):
        path = store.path / shard_name(number)
        yield path.name, _fault(path, entry)


def _fault(path: Path, entry: ShardEntry) -> str | None:
    try:
        found = plain(path).stat().st_size
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return str(error)
    if found != entry.bytes:
        return f"{found:,} bytes found, {entry.bytes:,} written"
    return None if files.sha256(path) == entry.sha256 else "its bytes have changed"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file of a store. Raises StoreError when it cannot be read."""
    try:
        return files.read_json(path)
    except (ValueError, OSError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
