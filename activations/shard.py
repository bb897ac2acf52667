"""One shard of a store: a safetensors file of whole windows, and what is checked before its content is used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from activations import int8
from activations.disk import files
from activations.errors import StoreError
from activations.rows import lie_within
from activations.tokens import NOWHERE


class Shard(NamedTuple):
    """The windows of one shard: tokens, documents and positions [n, T] (int32), and one [n, T, D] per hook point.

    Activations have the store's type; those of an int8 store are converted to float32 each time they are looked up.
    `labels` [n, T] (float32) is the label of each row or of its document; NaN where there is none."""

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    activations: Mapping[str, Tensor]
    labels: Tensor

    def rows(self, hook: str, chosen: Tensor) -> Tensor:
        """Return the activations [m, D], float32, of rows chosen by their flat numbers [m], window * T + position."""
        parts = [column.flatten(0, 1)[chosen] for column in int8.columns(self.activations, hook)]
        return int8.decoded(parts)[0]


@dataclass(frozen=True)
class ShardEntry:
    """A shard's entry in the store's index."""

    windows: int
    rows: int
    """Rows that are neither excluded nor padding."""
    bytes: int
    sha256: str


class _Damaged(Exception):
    """A shard differs from what the index promises."""


class ShardFile:
    """An open shard file. Every tensor is checked against the index before it is returned."""

    def __init__(self, path: Path, entry: ShardEntry, context: int, file: Any):
        self._path, self._entry, self._file = path, entry, file
        self._windows = (entry.windows, context)

    def check_hash(self) -> None:
        """Compare all bytes of the file with the SHA-256 in the index."""
        _check_hash(self._path, self._entry)

    def segments(self) -> Int[Tensor, "m 5"]:
        """Return the shard's segments (`activations.rows`), which lie within its windows and do not overlap."""
        # Segments are expanded to the shape of `tokens`: a file that claims a huge shape must not be believed
        shape = self._file.get_slice("tokens").get_shape()
        if shape != [*self._windows]:
            raise _Damaged(f"tokens has shape {shape}, expected {[*self._windows]}")
        segments = self._file.get_tensor("segments")
        if segments.ndim != 2 or segments.shape[1] != 5 or segments.dtype != torch.int32:
            raise _Damaged(
                f"segments has type {segments.dtype} and shape {tuple(segments.shape)}, expected int32 and (m, 5)"
            )
        if not lie_within(segments, *self._windows):
            raise _Damaged("a segment lies outside the windows or overlaps another")
        return segments

    def per_row(self, name: str, dtype: torch.dtype, width: tuple[int, ...] = ()) -> Tensor:
        """Return a tensor [n, T, *width], memory-mapped."""
        return self.tensor(name, dtype, (*self._windows, *width))

    def columns(self, hook: str, dtype: torch.dtype, width: int) -> tuple[Tensor, ...]:
        """Return the tensors [n, T, …] that hold a hook point's activations, memory-mapped: themselves, or int8 and scales.

        A number that is not finite shows in the last of them."""
        stored = self.per_row(hook, dtype, (width,))
        if dtype != torch.int8:
            return (stored,)
        return stored, self.per_row(scales_name(hook), torch.bfloat16, (int8.n_blocks(width),))

    def tensor(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor, memory-mapped, after checking that it has this type and shape."""
        tensor = self._file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise _Damaged(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != dtype:
            raise _Damaged(f"{name} has type {tensor.dtype}, expected {dtype}")
        return tensor


@contextmanager
def open_shard(folder: Path, number: int, entry: ShardEntry, context: int) -> Iterator[ShardFile]:
    """Open shard `number` of the store in `folder`. Any fault found within the block is raised as a StoreError."""
    path = folder / shard_name(number)
    try:
        _check_size(path, entry)
        with safe_open(path, framework="pt") as file:
            yield ShardFile(path, entry, context, file)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is missing although the index lists it: restore it or harvest again"
        ) from error
    except (SafetensorError, OSError, _Damaged) as error:
        raise StoreError(
            f"{path} is damaged: {error}; restore it, or delete {folder} and harvest again"
        ) from error


def shard_fault(path: Path, entry: ShardEntry) -> str | None:
    """Return what is wrong with a shard's file, or None when it has the size and SHA-256 in the index."""
    try:
        _check_size(path, entry)
        _check_hash(path, entry)
    except FileNotFoundError:
        return "missing"
    except (OSError, _Damaged) as error:
        return str(error)
    return None


def _check_size(path: Path, entry: ShardEntry) -> None:
    size = files.plain(path).stat().st_size
    if size != entry.bytes:
        raise _Damaged(f"{size:,} bytes found, {entry.bytes:,} written")


def _check_hash(path: Path, entry: ShardEntry) -> None:
    if files.sha256(path) != entry.sha256:
        raise _Damaged("its bytes have changed")


def first_non_finite(
    x: Float[Tensor, "n T D"], documents: Int[Tensor, "n T"], positions: Int[Tensor, "n T"]
) -> str | None:
    """Return in words where the first row with a NaN or an infinity comes from, or None when all numbers are finite.

    All documents of the window are named, because through attention one of them can spoil the others."""
    # NaN propagates to the extremes, and finding those is far faster than testing every number
    if not x.numel() or torch.stack(x.aminmax()).isfinite().all():
        return None
    window, column = (~x.isfinite().all(-1)).nonzero()[0].tolist()
    in_window = [document for document in documents[window].unique().tolist() if document != NOWHERE]
    if not in_window:
        return f"place {column} of a window of no document"
    others = "" if len(in_window) == 1 else f", in a window of documents {in_window[0]} to {in_window[-1]}"
    document, position = int(documents[window, column]), int(positions[window, column])
    if document == NOWHERE:  # a BOS, or padding
        return (
            f"place {column}{others}" if others else f"place {column} of a window of document {in_window[0]}"
        )
    return f"token {position} of document {document}{others}"


def scales_name(hook: str) -> str:
    """Return the name of the tensor of scales beside a hook point's int8. No hook point has such a name."""
    return f"{hook}.scales"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"
