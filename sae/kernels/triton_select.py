"""Selection on a GPU, in Triton: the kernels that `triton.py` combines.

As on the CPU (`cpu_select.py` has the proof), the k largest of a row are searched only in the k groups with the largest
maxima. A group is SIZE neighbours, so that reading it is one coalesced load. Numbers are compared as integers that have the
same order: bisection then ends at the exact threshold after at most 32 steps, and equal numbers are told apart by their
places. Offsets have 64 bits, because n F may exceed 2^31."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(2**31))  # below the key of any number


@triton.jit
def _key(z, bias, BY_SIZE: tl.constexpr):
    """Return an int32 with the order of u = z + bias, or of |u|: the bits of a negative number, except its sign, are inverted.

    u is not rounded to the precision in which it is kept: the order is the same, but fewer numbers are equal."""
    u = z.to(tl.float32) + bias.to(tl.float32)
    u = tl.abs(u) if BY_SIZE else u
    bits = u.to(tl.int32, bitcast=True)
    return tl.maximum(bits ^ ((bits >> 31) & 0x7FFFFFFF), NOTHING + 1)


@triton.jit
def maxima(
    z, bias, out, n, width, n_groups,
    BY_SIZE: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out[r, g] = the largest key of group g of row r. A program does ROWS rows of GROUPS groups."""
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = groups[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    inside = columns < width
    # Loaded once for all rows: in bfloat16 it is twice as wide as a row of z, and would dominate the traffic.
    shift = tl.load(bias + columns, mask=inside, other=0)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, n)):
        key = _key(tl.load(z + row * width + columns, mask=inside, other=0), shift, BY_SIZE)
        key = tl.where(inside, key, NOTHING)
        tl.store(out + row * n_groups + groups, tl.max(key, 1), mask=groups < n_groups)


@triton.jit
def members(
    z, bias, groups, out, n, width, n_groups,
    BY_SIZE: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """out[i] = the keys of group groups[i], which is r n_groups + g for group g of row r, or -1 for no group."""
    i = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    group = tl.load(groups + i, mask=i < n, other=-1)
    place = tl.arange(0, SIZE)[None, :]
    columns = (group % n_groups)[:, None] * SIZE + place
    inside = (group >= 0)[:, None] & (columns < width)
    at = (group // n_groups)[:, None] * width + columns
    shift = tl.load(bias + columns, mask=inside, other=0)
    key = _key(tl.load(z + at, mask=inside, other=0), shift, BY_SIZE)
    tl.store(out + i[:, None] * SIZE + place, tl.where(inside, key, NOTHING), mask=(i < n)[:, None])


@triton.jit
def _extremes(keys, width, BLOCK: tl.constexpr):
    """Return the smallest and the largest key, in 64 bits so that their difference does not overflow."""
    lane = tl.arange(0, BLOCK)
    low = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    high = tl.full([BLOCK], NOTHING, tl.int32)
    for start in range(0, width, BLOCK):
        inside = start + lane < width
        key = tl.load(keys + start + lane, mask=inside, other=0)
        low = tl.minimum(low, tl.where(inside, key, 0x7FFFFFFF))
        high = tl.maximum(high, tl.where(inside, key, NOTHING))
    return tl.min(low, 0).to(tl.int64), tl.max(high, 0).to(tl.int64)


@triton.jit
def _count_from(keys, width, threshold, BLOCK: tl.constexpr):
    """Return how many keys are at least the threshold."""
    lane = tl.arange(0, BLOCK)
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, width, BLOCK):
        inside = start + lane < width
        key = tl.load(keys + start + lane, mask=inside, other=0)
        counts += (inside & (key >= threshold)).to(tl.int32)
    return tl.sum(counts, 0)


@triton.jit
def choose(keys, ks, starts, out, width, BLOCK: tl.constexpr):
    """Write the places r width + j of the ks[r] <= width largest keys of row r to out, from starts[r] on; of equal ones the first.

    A program does a row. The bisection keeps two invariants: fewer than k keys, `above` of them, exceed `high`, and at
    least k keys reach `low`. Where exactly k keys reach the middle the search ends there, and all keys equal to that
    threshold are taken."""
    row = tl.program_id(0).to(tl.int64)
    keys += row * width
    out += tl.load(starts + row)
    k = tl.load(ks + row).to(tl.int32)
    low, high = _extremes(keys, width, BLOCK)
    above = 0
    while low < high:
        middle = low + ((high - low + 1) >> 1)
        reaching = _count_from(keys, width, middle.to(tl.int32), BLOCK)
        above = tl.where(reaching < k, reaching, tl.where(reaching == k, 0, above))
        high = tl.where(reaching < k, middle - 1, tl.where(reaching == k, middle, high))
        low = tl.where(reaching < k, low, middle)
    threshold = low.to(tl.int32)
    lane = tl.arange(0, BLOCK)
    seen, done = 0, 0
    for start in range(0, width, BLOCK):
        inside = start + lane < width
        key = tl.load(keys + start + lane, mask=inside, other=NOTHING)
        equal = (inside & (key == threshold)).to(tl.int32)
        taken = (inside & (key > threshold)) | ((equal > 0) & (seen + tl.cumsum(equal, 0) <= k - above))
        places = done + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(out + places, row * width + start + lane, mask=taken)
        seen += tl.sum(equal, 0)
        done += tl.sum(taken.to(tl.int32), 0)


@triton.jit
def take(
    z, bias, groups, places, values, indices, n, width, n_groups,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write value and column of the entries at `places` among the members of `groups`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    place = tl.load(places + i, mask=inside, other=0)
    group = tl.load(groups + place // SIZE, mask=inside, other=0)
    column = (group % n_groups) * SIZE + place % SIZE
    value = tl.load(z + group // n_groups * width + column, mask=inside, other=0).to(tl.float32)
    value += tl.load(bias + column, mask=inside, other=0).to(tl.float32)
    tl.store(values + i, value, mask=inside)
    tl.store(indices + i, column, mask=inside)


@triton.jit
def _columns_of_block(bias, thresholds, width, BLOCK: tl.constexpr):
    """Return a program's columns, which of them exist, and their biases and thresholds."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    shift = tl.load(bias + columns, mask=inside, other=0).to(tl.float32)
    level = tl.load(thresholds + columns, mask=inside, other=0).to(tl.float32)
    return columns, inside, shift, level


@triton.jit
def _above(z, inside, shift, level, BY_SIZE: tl.constexpr, ROUND: tl.constexpr):
    """Return u at some places, in the precision in which it is kept, and which are above their thresholds.

    It is rounded before it is compared, as in `reference.above`."""
    u = (tl.load(z, mask=inside, other=0).to(tl.float32) + shift).to(ROUND)
    size = tl.abs(u) if BY_SIZE else u
    return u, inside & (size.to(tl.float32) > level)


@triton.jit
def count_above(
    z, bias, thresholds, counts, n, width,
    BY_SIZE: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """counts[r, b] = how many of the BLOCK columns of block b are above their thresholds in row r."""
    columns, inside, shift, level = _columns_of_block(bias, thresholds, width, BLOCK)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, n)):
        _, chosen = _above(z + row * width + columns, inside, shift, level, BY_SIZE, ROUND)
        tl.store(counts + row * tl.num_programs(1) + tl.program_id(1), tl.sum(chosen.to(tl.int32), 0))


@triton.jit
def take_above(
    z, bias, thresholds, starts, values, indices, n, width,
    BY_SIZE: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write values and columns of the entries that `count_above` counts, those of each block from its start on."""
    columns, inside, shift, level = _columns_of_block(bias, thresholds, width, BLOCK)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, n)):
        u, chosen = _above(z + row * width + columns, inside, shift, level, BY_SIZE, ROUND)
        start = tl.load(starts + row * tl.num_programs(1) + tl.program_id(1))
        places = start + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(values + places, u, mask=chosen)
        tl.store(indices + places, columns, mask=chosen)
