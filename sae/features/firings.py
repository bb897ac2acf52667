"""The firings of a shard sorted by latent, and the files in which the pass over a store keeps them."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor

from activations.disk import files

FORMAT = "sae-firings-2"
CONTENT = ("starts", "rows", "values", "n_rows")


class Firings(NamedTuple):
    """Firings (row, latent, value != 0) of F latents on whole windows, sorted by latent, then by row."""

    starts: Int[Tensor, "F+1"]
    """Latent f's firings are starts[f] to starts[f + 1] - 1."""
    rows: Int[Tensor, "nnz"]
    """int32, relative to `first_row`."""
    values: Float[Tensor, "nnz"]
    first_row: int = 0
    """Number in the whole store of row 0."""

    def latents(self) -> Int[Tensor, "nnz"]:
        """Return the latent of each firing."""
        counts = self.starts.diff()
        return torch.arange(len(counts)).repeat_interleave(counts)


def by_latent(
    rows: Int[Tensor, "nnz"],
    latents: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    n_latents: int,
    first_row: int = 0,
) -> Firings:
    """Sort firings whose rows rise, such as a code's, by latent, in O(nnz): rows of a sparse matrix become columns."""
    ends = torch.bincount(rows.long() + 1).cumsum(0) if len(rows) else torch.zeros(1, dtype=torch.int64)
    entries = (values.float().numpy(), latents.int().numpy(), ends.numpy())
    by_row: Any = sparse.csr_matrix(entries, shape=(len(ends) - 1, n_latents))
    by_column = by_row.tocsc()
    starts, sorted_rows = (torch.from_numpy(part) for part in (by_column.indptr, by_column.indices))
    return Firings(starts.long(), sorted_rows.int(), torch.from_numpy(by_column.data), first_row)


def write(path: Path, firings: Firings, n_rows: int) -> None:
    """Write firings, and the number of rows that were encoded, to one file: 8 bytes a firing and 8 a latent."""
    tensors = {"starts": firings.starts, "rows": firings.rows, "values": firings.values}
    tensors["n_rows"] = torch.tensor(n_rows)
    files.write_tensors(path, {**tensors, "crc32": _crc32(tensors)}, FORMAT)


def is_whole(path: Path) -> bool:
    """Return whether a file exists and has all the bytes that were written."""
    if not path.exists():
        return False
    try:
        tensors = load_file(path)
        return bool(_crc32(tensors) == tensors["crc32"])
    except (SafetensorError, KeyError, ValueError):
        return False


def _crc32(tensors: Mapping[str, Tensor]) -> Tensor:
    checksum = 0
    for name in CONTENT:
        array = tensors[name].numpy()
        checksum = zlib.crc32(array.data, zlib.crc32(f"{array.dtype} {array.shape}".encode(), checksum))
    return torch.tensor(checksum)


def read(path: Path, latents: range, first_row: int) -> Firings:
    """Read the firings of a range of latents from a file; they become latents 0, 1, … of the result."""
    with safe_open(path, framework="pt") as file:
        starts = file.get_slice("starts")[latents.start : latents.stop + 1]
        begin, end = int(starts[0]), int(starts[-1])
        rows, values = (file.get_slice(name)[begin:end] for name in ("rows", "values"))
    return Firings(starts - begin, rows, values, first_row)


def read_counts(path: Path) -> tuple[int, Int[Tensor, "F"]]:
    """Read from a file the number of rows that were encoded, and the number of firings of each latent."""
    with safe_open(path, framework="pt") as file:
        return int(file.get_tensor("n_rows")), file.get_tensor("starts").diff()
