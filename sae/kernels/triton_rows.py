"""Sums of rows, and Adam, on a GPU, in Triton: the kernels that `triton.py` launches.

Everything is summed in float32, whatever its own precision, and in one fixed order: no atomics, so that two runs give the same
bits. Offsets have 64 bits, because F D may exceed 2^31."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)  # smallest normal float32


@triton.jit
def _piece(weights, names, rows, begin, end, columns, width, ENTRIES: tl.constexpr):
    """Return the sum, over entries begin to begin + ENTRIES - 1 that lie before `end`, of weight * rows[name] in these columns."""
    entry = begin + tl.arange(0, ENTRIES)
    inside = entry < end
    name = tl.load(names + entry, mask=inside, other=0).to(tl.int64)
    weight = tl.load(weights + entry, mask=inside, other=0).to(tl.float32)
    at = name[:, None] * width + columns[None, :]
    piece = tl.load(rows + at, mask=inside[:, None] & (columns < width)[None, :], other=0).to(tl.float32)
    return tl.sum(weight[:, None] * piece, 0)


@triton.jit
def weighted_rows(
    weights, names, offsets, rows, out, width, BLOCK: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr
):
    """out[i] = the sum over the entries of i of weight * rows[name]. A program does a block of columns of one i.

    It takes MANY entries at a time, so that their loads are in flight together, and the rest FEW at a time, so that little of
    a load is masked out."""
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(offsets + i), tl.load(offsets + i + 1)
    total = tl.zeros([BLOCK], tl.float32)
    whole = end - (end - begin) % MANY
    for entry in range(begin, whole, MANY):
        total += _piece(weights, names, rows, entry, whole, columns, width, MANY)
    for entry in range(whole, end, FEW):
        total += _piece(weights, names, rows, entry, end, columns, width, FEW)
    tl.store(out + i * width + columns, total, mask=columns < width)


@triton.jit
def dots(g, indices, offsets, W, out, width, BLOCK: tl.constexpr, ENTRIES: tl.constexpr):
    """out[e] = g[r] . W[index] for each entry e of row r. A program does a row."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    for first in range(begin, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        inside = entry < end
        at = tl.load(indices + entry, mask=inside, other=0).to(tl.int64) * width
        total = tl.zeros([ENTRIES], tl.float32)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            valid = columns < width
            beside = tl.load(g + row * width + columns, mask=valid, other=0).to(tl.float32)
            piece = tl.load(
                W + at[:, None] + columns[None, :], mask=inside[:, None] & valid[None, :], other=0
            )
            total += tl.sum(piece.to(tl.float32) * beside[None, :], 1)
        tl.store(out + entry, total, mask=inside)


@triton.jit
def squares(
    gradient, toward, which, out, along, width, TOWARD: tl.constexpr, WHICH: tl.constexpr, BLOCK: tl.constexpr
):
    """out[i, b] = |block b of gradient[i]|^2; with TOWARD without the component along[i] times its row of `toward`.

    With TOWARD a block has to hold the whole row, since the component follows from all of it."""
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(gradient + i * width + columns, mask=inside, other=0).to(tl.float32)
    if TOWARD:
        row = tl.load(which + i).to(tl.int64) if WHICH else i
        w = tl.load(toward + row * width + columns, mask=inside, other=0).to(tl.float32)
        factor = tl.sum(g * w, 0) / tl.maximum(tl.sum(w * w, 0), TINY)
        tl.store(along + i, factor)
        g -= factor * w
    tl.store(out + i * tl.num_programs(1) + tl.program_id(1), tl.sum(g * g, 0))


@triton.jit
def adam(
    W, mean, square, gradient, slots, along, width, shrink, beta2, rate1, rate2, size, inverse, eps,
    SLOTS: tl.constexpr, ALONG: tl.constexpr, UNIT_NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take a step on a block of columns of a row, with UNIT_NORM on a whole row; see `reference.adam`.

    `rate1` is 1 - beta1, `rate2` 1 - beta2, `size` lr / (1 - beta1^t), `inverse` 1 / sqrt(1 - beta2^t)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    slot = tl.load(slots + row).to(tl.int64) if SLOTS else row
    w = tl.load(W + at, mask=inside, other=0).to(tl.float32)
    m = tl.load(mean + at, mask=inside, other=0).to(tl.float32)
    v = tl.load(square + at, mask=inside, other=0).to(tl.float32)
    g = tl.load(gradient + slot * width + columns, mask=inside & (slot >= 0), other=0).to(tl.float32)
    if ALONG:
        g -= tl.load(along + slot, mask=slot >= 0, other=0) * w
    g *= shrink
    m += rate1 * (g - m)
    v = beta2 * v + rate2 * g * g
    w -= size * m / (tl.sqrt(v) * inverse + eps)
    if UNIT_NORM:
        w = w / tl.maximum(tl.sqrt(tl.sum(tl.where(inside, w * w, 0), 0)), TINY)
    tl.store(W + at, w, mask=inside)
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
