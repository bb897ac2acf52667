"""The kernels on the CPU in float32: loops compiled by numba (`cpu_select.py`, `cpu_rows.py`) and run on several threads.
What is selected from may be in bfloat16.

The functions are those of `reference.py`, with the same results up to rounding. Neither sums nor selections depend on the
number of threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from activations.parallel.threads import evenly, share
from sae.code import offsets_of
from sae.kernels import cpu_rows, cpu_select
from sae.kernels.reference import Groups, Moments, Pace, Picked

SAMPLED = 16  # one row in so many is looked at to guess the threshold of a batch's largest


def largest_per_row(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], k: int | Int[Tensor, "n"], by_size: bool
) -> Picked:
    """See `reference.largest_per_row`."""
    width = z.shape[1]
    counts = torch.full((len(z),), k) if isinstance(k, int) else k
    counts = counts.clamp_max(width)
    starts = offsets_of(counts)
    values, indices = torch.empty(int(starts[-1])), torch.empty(int(starts[-1]), dtype=torch.int64)
    most = int(counts.max()) if len(counts) else 0
    share(
        cpu_select.largest_per_row, evenly(len(z)), *_arrays(z, bias), _sign(by_size), *_arrays(counts, starts),
        _groups(width, most), *_arrays(values, indices),
    )  # fmt: skip
    return Picked(values, indices, counts)


def strongest(u: Float[Tensor, "n F"], k: int) -> Float[Tensor, "n F"]:
    """See `reference.strongest`. Of equal ones the first are kept; NaN counts as larger than all numbers."""
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    bits = torch.uint16 if u.dtype == torch.bfloat16 else torch.uint32
    words = (tensor.detach().contiguous().view(bits).numpy() for tensor in (u, out))
    share(cpu_select.strongest, evenly(len(u)), *words, k)
    return out


def largest_of_batch(z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], total: int, by_size: bool) -> Picked:
    """See `reference.largest_of_batch`. A threshold is guessed from the group maxima of some rows; what reaches it is gathered
    while its row is in the cache. The guess was good if at least `total` entries reach it."""
    n, width = z.shape
    total = min(total, z.numel())
    rows, shift, sign = *_arrays(z, bias), _sign(by_size)
    sample = rows[::SAMPLED]
    maxima = np.empty((len(sample), _groups(width, -(-total // max(n, 1)))), np.float32)
    share(cpu_select.maxima_of_rows, evenly(len(sample)), sample, shift, sign, maxima)
    parts: list[tuple[NDArray[Any], ...]] = []
    # The guess aims 20 % too low: gathering a few entries too many is cheap, a second pass over all rows is not.
    for threshold in _thresholds(maxima, int(1.2 * total * len(sample) / max(n, 1)) + 1):
        parts = share(cpu_select.candidates, evenly(n), rows, shift, sign, maxima.shape[1], threshold)
        if sum(len(keys) for keys, *_ in parts) >= total:
            break
    if not parts:
        return Picked(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.zeros(n, dtype=torch.int64))
    keys, latents, values, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    is_kept, starts = torch.from_numpy(_best(keys, total)), offsets_of(torch.from_numpy(counts))
    running = torch.cat([starts.new_zeros(1), is_kept.cumsum(0)])
    return Picked(
        torch.from_numpy(values)[is_kept], torch.from_numpy(latents)[is_kept], running[starts].diff()
    )


def above(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], threshold: Float[Tensor, "F"], by_size: bool
) -> Picked:
    """See `reference.above`."""
    counts = torch.empty(len(z), dtype=torch.int64)
    inputs = (*_arrays(z, bias), _sign(by_size), *_arrays(threshold))
    share(cpu_select.count_above, evenly(len(z)), *inputs, counts.numpy())
    starts = offsets_of(counts)
    values, indices = torch.empty(int(starts[-1])), torch.empty(int(starts[-1]), dtype=torch.int64)
    share(cpu_select.take_above, evenly(len(z)), *inputs, *_arrays(starts, values, indices))
    return Picked(values, indices, counts)


def largest_ands(u: Float[Tensor, "n hp"], v: Float[Tensor, "n hq"], heads: int, k: int) -> Picked:
    """See `reference.largest_ands`."""
    n = len(u)
    k = min(k, u.shape[1] * v.shape[1] // heads)
    values, indices = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
    share(cpu_select.largest_ands, evenly(n), *_arrays(u, v), heads, k, *_arrays(values, indices))
    return Picked(values.flatten(), indices.flatten(), torch.full((n,), k))


def weighted_rows(
    values: Float[Tensor, "nnz"],
    indices: Int[Tensor, "nnz"],
    offsets: Int[Tensor, "offsets"],
    W: Float[Tensor, "F D"],
) -> Float[Tensor, "B D"]:
    """See `reference.weighted_rows`."""
    out = torch.empty(len(offsets) - 1, W.shape[1])
    share(cpu_rows.weighted_rows, evenly(len(out)), *_arrays(values, indices, offsets, W, out))
    return out


def dots(
    g: Float[Tensor, "B D"], indices: Int[Tensor, "nnz"], offsets: Int[Tensor, "B+1"], W: Float[Tensor, "F D"]
) -> Float[Tensor, "nnz"]:
    """See `reference.dots`."""
    out = torch.empty(len(indices))
    share(cpu_rows.dots, evenly(len(g)), *_arrays(g, indices, offsets, W, out))
    return out


def group(indices: Int[Tensor, "nnz"], n_latents: int) -> Groups:
    """See `reference.group`."""
    most = min(n_latents, len(indices))
    latents, entries = np.empty(most, np.int64), np.empty(len(indices), np.int64)
    starts = np.empty(n_latents + 1, np.int64)
    n = cpu_rows.group(indices.numpy(), starts, latents, entries)
    return Groups(torch.from_numpy(latents[:n]), torch.from_numpy(starts[: n + 1]), torch.from_numpy(entries))


def sums_by_latent(
    groups: Groups,
    rows: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "B D"],
    out: Float[Tensor, "n D"],
) -> None:
    """See `reference.sums_by_latent`: a latent's sum is that of a row of a code whose indices name rows of x."""
    names, weights = rows[groups.entries], values[groups.entries]
    share(cpu_rows.weighted_rows, evenly(len(out)), *_arrays(weights, names, groups.starts, x, out))


def squares(
    gradient: Float[Tensor, "n C"], toward: Float[Tensor, "R C"] | None, which: Int[Tensor, "n"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"] | None]:
    """See `reference.squares`."""
    by_row = torch.empty(len(gradient))
    if toward is None:
        share(cpu_rows.squares, evenly(len(gradient)), *_arrays(gradient, by_row))
        return by_row.sum(dtype=torch.float64), None
    along = torch.empty(len(gradient))
    which = torch.arange(len(gradient)) if which is None else which
    share(cpu_rows.squares_beside, evenly(len(gradient)), *_arrays(gradient, toward, which, by_row, along))
    return by_row.sum(dtype=torch.float64), along


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
    slots = torch.arange(len(W), dtype=torch.int32) if slots is None else slots
    along = torch.zeros(len(gradient)) if along is None else along
    size = pace.lr / (1 - pace.beta1**pace.step)
    inverse = (1 - pace.beta2**pace.step) ** -0.5
    numbers = (np.float32(n) for n in (pace.shrink, pace.beta1, pace.beta2, size, inverse, pace.eps))
    share(cpu_rows.adam, evenly(len(W)), *_arrays(W, *moments, gradient, slots, along), *numbers, unit_norm)


def _groups(width: int, k: int) -> int:
    """Return into how many groups a row of this width is cut; at least k, since k of them are looked at again.

    Comparing the maxima costs the number of groups, looking into k groups costs k times their size; the sizes are powers of 2."""
    size, k = 1, max(k, 1)
    while width // (2 * size) >= 4 * k and 4 * size * size * k <= 2 * width:
        size *= 2
    return -(-width // size)


def _thresholds(maxima: NDArray[np.float32], wanted: int) -> Iterator[np.float32]:
    """Yield a threshold that `wanted` of the maxima reach, one that twice as many reach, and so on, and last -inf."""
    while wanted < maxima.size:
        yield cpu_select.lower_bound(maxima.ravel(), wanted, np.float32(np.nan))
        wanted *= 2
    yield np.float32(-np.inf)


def _best(keys: NDArray[np.float32], total: int) -> NDArray[np.bool_]:
    """Return which are the `total` largest keys; of equal ones the first are taken."""
    if len(keys) <= total or not total:
        return np.full(len(keys), total > 0)
    cut = np.partition(keys, len(keys) - total)[len(keys) - total]
    is_best = keys > cut
    equal = np.flatnonzero(keys == cut)
    is_best[equal[: total - int(is_best.sum())]] = True
    return is_best


def _sign(by_size: bool) -> np.float32:
    return np.float32(-1 if by_size else 1)


def _arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    """Return tensors as numpy's arrays on the same memory; bfloat16, which numpy lacks, as the 16-bit integers that hold it."""
    plain = (tensor.detach().contiguous() for tensor in tensors)
    return [(t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy() for t in plain]
