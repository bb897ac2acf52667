"""The kernels on a GPU, in Triton (`triton_select.py`, `triton_rows.py`), for float32, bfloat16 and float16.

The functions are those of `reference.py`, with the same results up to rounding; sums are taken in float32 and in one fixed
order. The host waits for the GPU only where the size of a result depends on numbers: in `above`, in `group`, and where
each row has its own k."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import offsets_of
from sae.kernels import triton_rows, triton_select
from sae.kernels.reference import Groups, Moments, Pace, Picked, in_place

TILE = 2048  # numbers that a program of the selection reads at once: 16 per thread
FEWER = 512  # the same where it writes entries, whose places take 64 bits
ROWS = 16  # rows that a program does one after the other, with the biases in registers
COLUMNS = 256  # columns of a sum of rows that a program does
ROUNDING = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def largest_per_row(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], k: int | Int[Tensor, "n"], by_size: bool
) -> Picked:
    """See `reference.largest_per_row`. Of equal entries the first in the selected groups are taken; NaN is the largest."""
    n, width = z.shape
    if isinstance(k, int):
        most = min(k, width)
        counts, total = torch.full((n,), most, device=z.device), n * most
    else:
        counts = k.clamp_max(width)
        most, total = torch.stack([counts.max(), counts.sum()]).tolist() if n else (0, 0)
    rows = _Grouped(z.contiguous(), bias.contiguous(), by_size, _size(width, most))
    if rows.size == 1:
        return Picked(*rows.entries(_choose(rows.maxima(), counts, offsets_of(counts), total)), counts)
    groups = _choose(rows.maxima(), counts, most * torch.arange(n, device=z.device), n * most)
    keys = rows.members(groups).view(n, most * rows.size)
    return Picked(*rows.entries(groups, _choose(keys, counts, offsets_of(counts), total)), counts)


def strongest(u: Float[Tensor, "n F"], k: int) -> Float[Tensor, "n F"]:
    """See `reference.strongest`."""
    return in_place(u, largest_per_row(u, u.new_zeros(u.shape[1]), k, by_size=True))


def largest_of_batch(z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], total: int, by_size: bool) -> Picked:
    """See `reference.largest_of_batch`: the whole batch is treated as one row."""
    n, width = z.shape
    total = min(total, z.numel())
    rows = _Grouped(z.contiguous(), bias.contiguous(), by_size, _size(width, triton.cdiv(total, max(n, 1))))
    groups = _largest(rows.maxima().flatten(), total)
    places = _largest(rows.members(groups).flatten(), total)
    owners = groups[places // rows.size] // rows.n_groups
    starts = torch.searchsorted(owners, torch.arange(n + 1, device=z.device))
    return Picked(*rows.entries(groups, places), starts.diff())


def above(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], threshold: Float[Tensor, "F"], by_size: bool
) -> Picked:
    """See `reference.above`. One pass counts by blocks, which gives each block its place; a second one writes."""
    n, width = z.shape
    blocks = triton.cdiv(width, FEWER)
    inputs = (z.contiguous(), bias.contiguous(), threshold.contiguous())
    dtype = torch.result_type(z, bias)
    how = {"BY_SIZE": by_size, "ROUND": ROUNDING[dtype], "BLOCK": FEWER, "ROWS": ROWS}
    grid = (triton.cdiv(n, ROWS), blocks)
    counts = torch.empty(n, blocks, dtype=torch.int32, device=z.device)
    _launch(triton_select.count_above, grid, *inputs, counts, n, width, **how)
    starts = offsets_of(counts.flatten())
    values, indices = _entries(int(starts[-1]), dtype, z.device)
    _launch(triton_select.take_above, grid, *inputs, starts, values, indices, n, width, **how)
    return Picked(values, indices, counts.sum(1))


def largest_ands(u: Float[Tensor, "n hp"], v: Float[Tensor, "n hq"], heads: int, k: int) -> Picked:
    """See `reference.largest_ands`. Heads are the groups; a head's largest latent is that of its largest u and v."""
    a, b = (side.relu().sqrt().unflatten(1, (heads, -1)) for side in (u, v))
    largest = a.amax(2) * b.amax(2)
    chosen = largest_per_row(largest, largest.new_zeros(heads), k, by_size=False).indices.view(
        len(u), min(k, heads)
    )
    row = torch.arange(len(u), device=u.device)[:, None]
    pairs = (a[row, chosen][:, :, :, None] * b[row, chosen][:, :, None, :]).flatten(1)
    picked = largest_per_row(pairs, pairs.new_zeros(pairs.shape[1]), k, by_size=False)
    each = a.shape[2] * b.shape[2]
    place = picked.indices.view(len(u), min(k, pairs.shape[1]))
    return picked._replace(indices=(chosen.gather(1, place // each) * each + place % each).flatten())


def weighted_rows(
    values: Float[Tensor, "nnz"],
    indices: Int[Tensor, "nnz"],
    offsets: Int[Tensor, "offsets"],
    W: Float[Tensor, "F D"],
) -> Float[Tensor, "B D"]:
    """See `reference.weighted_rows`."""
    out = W.new_empty(len(offsets) - 1, W.shape[1])
    _add_rows(values, indices, offsets, W, out)
    return out


def dots(
    g: Float[Tensor, "B D"], indices: Int[Tensor, "nnz"], offsets: Int[Tensor, "B+1"], W: Float[Tensor, "F D"]
) -> Float[Tensor, "nnz"]:
    """See `reference.dots`."""
    out = g.new_empty(len(indices))
    inputs = (g.contiguous(), indices.contiguous(), offsets.contiguous(), W.contiguous())
    block = min(COLUMNS, triton.next_power_of_2(W.shape[1]))
    _launch(triton_rows.dots, (len(g),), *inputs, out, W.shape[1], BLOCK=block, ENTRIES=32)
    return out


def group(indices: Int[Tensor, "nnz"], n_latents: int) -> Groups:
    """See `reference.group`: a stable radix sort, of 32-bit keys because it takes eight bits in a pass."""
    ordered, entries = indices.int().sort(stable=True)
    latents, counts = ordered.long().unique_consecutive(return_counts=True)
    return Groups(latents, offsets_of(counts), entries)


def sums_by_latent(
    groups: Groups,
    rows: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "B D"],
    out: Float[Tensor, "n D"],
) -> None:
    """See `reference.sums_by_latent`: a latent's sum is that of a row of a code whose indices name rows of x."""
    _add_rows(values[groups.entries], rows[groups.entries], groups.starts, x, out)


def squares(
    gradient: Float[Tensor, "n C"], toward: Float[Tensor, "R C"] | None, which: Int[Tensor, "n"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"] | None]:
    """See `reference.squares`."""
    gradient = gradient.contiguous()
    n, width = gradient.shape
    how = _columns(width, whole=toward is not None)
    blocks = triton.cdiv(width, how["BLOCK"])
    by_block, along = (gradient.new_empty(n, m, dtype=torch.float32) for m in (blocks, 1))
    # An argument that the kernel does not read still has to be a tensor.
    inputs = (
        gradient,
        gradient if toward is None else toward.contiguous(),
        by_block if which is None else which,
    )
    how |= {"TOWARD": toward is not None, "WHICH": which is not None}
    _launch(triton_rows.squares, (n, blocks), *inputs, by_block, along, width, **how)
    return by_block.sum(dtype=torch.float64), None if toward is None else along[:, 0]


def adam(
    W: Float[Tensor, "R C"],
    moments: Moments,
    gradient: Float[Tensor, "n C"],
    slots: Int[Tensor, "R"] | None,
    along: Float[Tensor, "n"] | None,
    pace: Pace,
    unit_norm: bool,
) -> None:
    """See `reference.adam`."""
    assert all(tensor.is_contiguous() for tensor in (W, *moments)), "changed in place"
    gradient = gradient.contiguous()
    inputs = (gradient, gradient if slots is None else slots, gradient if along is None else along)
    size = pace.lr / (1 - pace.beta1**pace.step)
    inverse = (1 - pace.beta2**pace.step) ** -0.5
    numbers = (pace.shrink, pace.beta2, 1 - pace.beta1, 1 - pace.beta2, size, inverse, pace.eps)
    n, width = W.shape
    how = _columns(width, whole=unit_norm)
    grid = (n, triton.cdiv(width, how["BLOCK"]))
    how |= {"SLOTS": slots is not None, "ALONG": along is not None, "UNIT_NORM": unit_norm}
    _launch(triton_rows.adam, grid, W, *moments, *inputs, width, *numbers, **how)


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Rows u = z + bias, each cut into groups of `size` neighbours. Group g of row r has the number r n_groups + g."""

    z: Float[Tensor, "n F"]
    bias: Float[Tensor, "F"]
    by_size: bool
    size: int

    @property
    def n_groups(self) -> int:
        """The number of groups of each row."""
        return triton.cdiv(self.z.shape[1], self.size)

    def maxima(self) -> Int[Tensor, "n groups"]:
        """Return the largest key of each group."""
        n, width = self.z.shape
        largest = torch.empty(n, self.n_groups, dtype=torch.int32, device=self.z.device)
        groups = max(1, TILE // self.size)
        grid = (triton.cdiv(n, ROWS), triton.cdiv(self.n_groups, groups))
        how = {"BY_SIZE": self.by_size, "SIZE": self.size, "GROUPS": groups, "ROWS": ROWS}
        _launch(triton_select.maxima, grid, self.z, self.bias, largest, n, width, self.n_groups, **how)
        return largest

    def members(self, groups: Int[Tensor, "m"]) -> Int[Tensor, "m size"]:
        """Return the keys of these groups. Past the end of a row, and for group -1, they are lower than that of any number."""
        m, block = len(groups), max(1, TILE // self.size)
        keys = torch.empty(m, self.size, dtype=torch.int32, device=self.z.device)
        how = {"BY_SIZE": self.by_size, "SIZE": self.size, "GROUPS": block}
        inputs = (self.z, self.bias, groups, keys, m, self.z.shape[1], self.n_groups)
        _launch(triton_select.members, (triton.cdiv(m, block),), *inputs, **how)
        return keys

    def entries(
        self, groups: Int[Tensor, "m"], places: Int[Tensor, "t"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return values and columns of the entries at these places of `members(groups)`; of all, where groups have size 1."""
        places = torch.arange(len(groups), device=groups.device) if places is None else places
        values, columns = _entries(len(places), torch.result_type(self.z, self.bias), self.z.device)
        inputs = (
            self.z,
            self.bias,
            groups,
            places,
            values,
            columns,
            len(places),
            self.z.shape[1],
            self.n_groups,
        )
        _launch(triton_select.take, (triton.cdiv(len(places), FEWER),), *inputs, SIZE=self.size, BLOCK=FEWER)
        return values, columns


def _size(width: int, k: int) -> int:
    """Return the size of groups that makes all maxima and all members of k groups fewest, with at least k groups."""
    size = 1
    while 2 * max(k, 1) * size * size < width:
        size *= 2
    return size


def _choose(
    keys: Int[Tensor, "n m"], ks: Int[Tensor, "n"], starts: Tensor, total: int
) -> Int[Tensor, "total"]:
    """Return the places in `keys` of the ks[r] largest of row r, from starts[r] on; -1 where no row writes one."""
    places = torch.full((total,), -1, device=keys.device)
    block = min(TILE, triton.next_power_of_2(max(keys.shape[1], 1)))
    _launch(triton_select.choose, (len(keys),), keys, ks, starts, places, keys.shape[1], BLOCK=block)
    return places


def _largest(keys: Int[Tensor, "m"], total: int) -> Int[Tensor, "total"]:
    """Return the places of the `total` largest keys, in rising order."""
    return keys.topk(total, sorted=False).indices.sort().values


def _entries(total: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.empty(total, dtype=dtype, device=device), torch.empty(
        total, dtype=torch.int64, device=device
    )


def _add_rows(weights: Tensor, names: Tensor, offsets: Tensor, rows: Tensor, out: Tensor) -> None:
    assert out.is_contiguous(), "changed in place"
    n, width = out.shape
    block = min(COLUMNS, triton.next_power_of_2(width))
    inputs = (weights.contiguous(), names.contiguous(), offsets.contiguous(), rows.contiguous())
    grid = (n, triton.cdiv(width, block))
    _launch(triton_rows.weighted_rows, grid, *inputs, out, width, BLOCK=block, MANY=32, FEW=4)


def _columns(width: int, whole: bool) -> dict[str, int]:
    """Return how many columns a program does, and on how many warps: 16 numbers per thread, and more where a row of more
    than 8,192 columns has to be done by one program."""
    block = triton.next_power_of_2(width) if whole else min(1024, triton.next_power_of_2(width))
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel on the GPU of its first argument, which need not be the current one."""
    if all(grid):  # CUDA refuses an empty grid
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **constants)
