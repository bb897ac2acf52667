"""The pass over a store's firings in loops that numba compiles: counts, sums, histograms and largest values of every latent.

Each loop does latents lo to hi - 1 and writes to nothing else, so nothing depends on which thread does which latents.
Firings are sorted by latent (`firings.Firings`): a latent's state stays in the cache while its firings go by. Floats
are compared and added in the order written, without fastmath, so that the plain torch beside each call
(`firings.py`, `examples.py`, `cofiring.py`) gives the same bits; it does the work that is too small to compile for."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from activations.parallel.threads import blocks_wanted, share

WORTHWHILE = 2**18  # firings, or pairs, from which the loops repay the second or two it takes to load them
LOW = 0xFFFFFFFF


def worthwhile(work: int) -> bool:
    """Return whether `work` firings, or pairs, are enough to use the compiled loops instead of plain torch."""
    return work >= WORTHWHILE


def by_latents(loop: Callable[..., None], starts: Tensor, *args: Any) -> None:
    """Call loop(lo, hi, starts, *args) for ranges of latents that cover them all, on as many threads as torch uses.

    Tensors are passed as arrays. Ranges hold about equally many firings: latent f has starts[f + 1] - starts[f]."""
    arrays = [arg.numpy() if isinstance(arg, Tensor) else arg for arg in (starts, *args)]
    n = len(starts) - 1
    targets = torch.linspace(0, float(starts[-1]), blocks_wanted() + 1)[1:-1].long()
    share(loop, [0, *torch.searchsorted(starts, targets).clamp_max(n).tolist(), n], *arrays)


@njit(nogil=True, cache=True)
def statistics(
    lo, hi, starts, rows, values, first_row, unit, quarters, lowest, fired, positive, powers, high, low, first, last, histogram
):  # fmt: skip
    """Add firings to the state of `statistics.Statistics`."""
    bins = histogram.shape[2]
    for f in range(lo, hi):
        begin, end = starts[f], starts[f + 1]
        if begin == end:
            continue
        one, two, three, four = powers[f, 0], powers[f, 1], powers[f, 2], powers[f, 3]
        most, least, above = high[f], low[f], 0
        counts = histogram[f]
        for i in range(begin, end):
            value = values[i]
            most, least = max(most, value), min(least, value)
            side = 1 if value > 0 else 0
            above += side
            # Powers are multiplied up one by one, as plain torch does: v**3 may round differently.
            v = np.float64(value)
            power = v
            one += power
            power *= v
            two += power
            power *= v
            three += power
            power *= v
            four += power
            # Bins are found from the mantissa, in [1/2, 1), and the exponent: exact, where a logarithm rounds.
            mantissa, exponent = math.frexp(abs(v) / unit)
            place = 4 * (exponent - 1 - lowest)
            for quarter in quarters:
                place += mantissa >= quarter
            counts[side, min(max(place, 0), bins - 1)] += 1
        fired[f] += end - begin
        positive[f] += above
        powers[f, 0], powers[f, 1], powers[f, 2], powers[f, 3] = one, two, three, four
        high[f], low[f] = most, least
        first[f] = min(first[f], first_row + rows[begin])
        last[f] = max(last[f], first_row + rows[end - 1])


@njit(nogil=True, cache=True)
def selection(
    lo, hi, starts, rows, values, bits, first_row, context, first_latent, positive, negative, sampled
):
    """Add firings to the state of `examples.Selection`; `bits` are the bits of `values`, as int32.

    The bits of positive floats are in the order of their values, so they serve as the upper half of an int64 key."""
    for f in range(lo, hi):
        i, stop = starts[f], starts[f + 1]
        ups, downs, draws = positive[f], negative[f], sampled[f]
        while i < stop:
            # A latent's firings are sorted by row, so those of a window follow one another.
            window = (first_row + rows[i]) // context
            end = (window + 1) * context - first_row
            high = low = i
            i += 1
            while i < stop and rows[i] < end:
                high = i if values[i] > values[high] else high
                low = i if values[i] < values[low] else low
                i += 1
            if values[high] > 0:
                keep(ups, np.int64(bits[high]) << 32 | (LOW - window))
            if values[low] < 0:
                # without the sign bit: the size of the value
                keep(downs, np.int64(bits[low] & 0x7FFFFFFF) << 32 | (LOW - window))
            keep(draws, -(hash31((first_latent + f) << 32 | window) << 32 | window))


@njit(nogil=True, cache=True)
def keep(best, key):
    """Insert a key among the largest so far, in falling order; the smallest drops out."""
    j = len(best) - 1
    if key <= best[j]:
        return
    while j > 0 and best[j - 1] < key:
        best[j] = best[j - 1]
        j -= 1
    best[j] = key


@njit(nogil=True, cache=True)
def hash31(pair):
    """Return the 31 bits of `examples.hash31`."""
    h = pair * -7046029254386353131
    h = (h ^ (h >> 32 & LOW)) * -4658895280553007687
    return (h ^ (h >> 29 & 0x7FFFFFFFF)) >> 33 & 0x7FFFFFFF


@njit(nogil=True, cache=True)
def gather(lo, hi, starts, rows, first_row, context, wanted, edges, places):
    """Set places[i] to the place in `wanted` of the (latent, window) pair of firing i, or -1 where it is not wanted.

    Latent f's pairs are wanted[edges[f]] to wanted[edges[f + 1] - 1], by rising window; see `examples.gather`."""
    for f in range(lo, hi):
        w, end = edges[f], edges[f + 1]
        window, stop = np.int64(-1), np.int64(0)
        for i in range(starts[f], starts[f + 1]):
            if rows[i] >= stop:
                window = (first_row + rows[i]) // context
                stop = (window + 1) * context - first_row
                while w < end and (wanted[w] & LOW) < window:
                    w += 1
            hit = w < end and (wanted[w] & LOW) == window
            places[i] = w if hit else -1


@njit(nogil=True, cache=True)
def together(lo, hi, starts, rows, row_starts, row_latents, counts):
    """Add to counts[f, j] the number of latent f's rows on which latent j fires."""
    for f in range(lo, hi):
        row_of_counts = counts[f]
        for i in range(starts[f], starts[f + 1]):
            row = rows[i]
            for j in row_latents[row_starts[row] : row_starts[row + 1]]:
                row_of_counts[j] += 1


@njit(nogil=True, cache=True)
def partners(lo, hi, starts, counts, own, fired, n_rows, least, keys):
    """Set keys[f] to the largest of latent f's keys of `cofiring._keys`, in falling order."""
    # A float32 and an int32 view of the same four bytes: numba has no other way to read a float's bits.
    cell = np.empty(1, np.float32)
    bits = cell.view(np.int32)
    for f in range(lo, hi):
        best, row = keys[f], counts[f]
        for j in range(len(row)):
            if row[j] >= least:
                lift = np.float64(row[j]) * n_rows / (own[f] * fired[j])
                if lift > 1:
                    cell[0] = lift
                    keep(best, np.int64(bits[0]) << 32 | (LOW - j))
