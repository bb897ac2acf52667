"""Selection on the CPU, compiled by numba. Functions with lo and hi do rows lo to hi - 1 and write nothing of other rows.

The k largest of a row are found without sorting it. Cut the row into groups, here {j, j + S, j + 2 S, ...}, and take
each group's largest: the k groups whose largest are largest hold a top k, since an entry of the top k outside them
would have k larger entries above it, one in each. So a threshold with at least k group maxima above it bounds the
k-th entry from below, and only members of those groups are looked at again. A threshold with not many more than k maxima
above it is found by bisection, which starts at the threshold of the previous row: rows are alike. The key that is compared is
max(v, sign * v), with sign = -1 to compare sizes and 1 otherwise; this needs no branch, so that loops are vectorised.

Pre-activations z are float32, or bfloat16 as the 16-bit integers that torch stores them in, which numba has no type for."""

import numpy as np
from numba import njit, types
from numba.extending import overload

FAST = {"nsz", "contract", "reassoc"}  # not "nnan": a NaN must not lead a loop astray


def number(v):
    """Return a pre-activation as a float32: itself, or the bfloat16 in these 16 bits, which are a float32's upper half."""
    raise NotImplementedError("compiled code calls this, by the type of v")


@overload(number, inline="always")
def _number(v):
    if isinstance(v, types.Float):
        return lambda v: v
    return lambda v: np.uint32(np.uint32(v) << np.uint32(16)).view(np.float32)


@njit(nogil=True, fastmath=FAST | {"nnan", "ninf"}, error_model="numpy", cache=True)
def group_maxima(row, bias, sign, out):
    """out[j] = the largest key of group j, for groups of stride len(out)."""
    stride = len(out)
    for j in range(stride):
        v = number(row[j]) + bias[j]
        out[j] = max(v, sign * v)
    for start in range(stride, len(row), stride):
        # Slices and not offsets: numba wraps negative indices, and a loop that may do so is not vectorised.
        part = row[start : start + stride]
        shift = bias[start : start + stride]
        for j in range(len(part)):
            v = number(part[j]) + shift[j]
            v = max(v, sign * v)
            out[j] = v if v > out[j] else out[j]


@njit(nogil=True, fastmath=FAST | {"nnan", "ninf"}, error_model="numpy", cache=True)
def count_from(values, threshold):
    """Return how many values are at least the threshold."""
    n = np.int32(0)  # as wide as a float32, so that both fit the same vector registers
    for j in range(len(values)):
        n += np.int32(values[j] >= threshold)
    return n


@njit(nogil=True, fastmath=FAST | {"nnan", "ninf"}, error_model="numpy", cache=True)
def extremes(values):
    """Return the smallest and the largest value."""
    lo = hi = values[0]
    for j in range(len(values)):
        lo = min(lo, values[j])
        hi = max(hi, values[j])
    return lo, hi


@njit(nogil=True, error_model="numpy", cache=True)
def lower_bound(maxima, k, guess):
    """Return a threshold that at least k of the maxima reach, and usually not many more. Needs len(maxima) >= k."""
    lo, hi = extremes(maxima)
    t = guess if lo < guess < hi else np.float32(0.5) * (lo + hi)
    for _ in range(24):  # by then the precision of a float32 is used up
        n = count_from(maxima, t)
        if n >= k:
            lo = t
            if n <= k + k // 2 + 8:
                break
        else:
            hi = t
        t = np.float32(0.5) * (lo + hi)
        if t <= lo or t >= hi:
            break
    return lo


@njit(nogil=True, error_model="numpy", cache=True)
def kth_largest(a, n, k):
    """Return the k-th largest of a[:n], k counted from 1; reorders a. Hoare's quickselect with the median of three."""
    lo, hi, target = 0, n - 1, k - 1
    while lo < hi:
        first, middle, last = a[lo], a[(lo + hi) >> 1], a[hi]
        pivot = max(min(first, middle), min(max(first, middle), last))
        i, j = lo, hi
        while i <= j:
            while a[i] > pivot:
                i += 1
            while a[j] < pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if target <= j:
            hi = j
        elif target >= i:
            lo = i
        else:
            break
    return a[target]


@njit(nogil=True, error_model="numpy", cache=True)
def keep_best(keys, latents, values, n, k, scratch, out_values, out_indices):
    """Write the values and indices of the candidates with the k largest keys, of equal ones the first. Fills all k places."""
    cut = -np.inf
    if n > k:
        scratch[:n] = keys[:n]
        cut = kth_largest(scratch, n, k)
    m = 0
    for i in range(n):
        if keys[i] > cut and m < k:
            out_values[m], out_indices[m] = values[i], latents[i]
            m += 1
    for i in range(n):
        if keys[i] == cut and m < k:
            out_values[m], out_indices[m] = values[i], latents[i]
            m += 1
    for i in range(m, k):  # reached only where the row holds NaN, which compares false with everything
        out_values[i], out_indices[i] = np.nan, i


@njit(nogil=True, error_model="numpy", cache=True)
def gather(row, bias, sign, maxima, threshold, keys, latents, values):
    """Collect the entries that reach the threshold, from the groups whose maximum does. Return their number."""
    stride, n = len(maxima), 0
    for j in range(stride):
        if maxima[j] >= threshold:
            for o in range(j, len(row), stride):
                v = number(row[o]) + bias[o]
                key = max(v, sign * v)
                if key >= threshold:
                    keys[n], latents[n], values[n] = key, o, v
                    n += 1
    return n


@njit(nogil=True, error_model="numpy", cache=True)
def largest_per_row(lo, hi, z, bias, sign, ks, starts, stride, out_values, out_indices):
    """Write the ks[r] largest of row r to the outputs from starts[r] on. A row has `stride` groups, at least the largest k."""
    width = z.shape[1]
    maxima = np.empty(stride, np.float32)
    keys, values, scratch = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    latents = np.empty(width, np.int64)
    guess = np.float32(np.nan)
    for r in range(lo, hi):
        k = ks[r]
        if k == 0:
            continue
        group_maxima(z[r], bias, sign, maxima)
        guess = lower_bound(maxima, k, guess)
        n = gather(z[r], bias, sign, maxima, guess, keys, latents, values)
        begin = starts[r]
        keep_best(
            keys,
            latents,
            values,
            n,
            k,
            scratch,
            out_values[begin : begin + k],
            out_indices[begin : begin + k],
        )


@njit(nogil=True, error_model="numpy", cache=True)
def strongest(lo, hi, u, out, k):
    """out[r] = u[r] where it is among the k largest of the row in size, else 0. Both are the bits of floating point numbers.

    Without the sign bit, these bits read as an integer are in the order of the numbers' sizes. Bisection over the bits of the k-th
    largest needs no list of candidates, which pays where k is a good part of the row."""
    size = np.empty(u.shape[1], np.int32)
    for r in range(lo, hi):
        row, kept = u[r], out[r]
        magnitudes(row, size)
        least = np.int32(0)
        for bit in range(8 * u.itemsize - 2, -1, -1):
            tried = np.int32(least | np.int32(1 << bit))
            n = count_from(size, tried)
            if n >= k:
                least = tried
                if n == k:
                    break
        surplus = keep_from(row, size, least, kept) - k
        for j in range(len(row) - 1, -1, -1):
            if surplus <= 0:
                break
            if size[j] == least:
                kept[j] = 0
                surplus -= 1


@njit(nogil=True, error_model="numpy", cache=True)
def magnitudes(row, out):
    """out[j] = the bits of row[j] without its sign bit."""
    mask = np.int32(2 ** (8 * row.itemsize - 1) - 1)
    for j in range(len(row)):
        out[j] = np.int32(row[j]) & mask


@njit(nogil=True, error_model="numpy", cache=True)
def keep_from(row, size, least, out):
    """out[j] = row[j] where size[j] is at least `least`, else 0. Return how many are kept."""
    n = np.int32(0)
    for j in range(len(row)):
        is_kept = size[j] >= least
        out[j] = row[j] if is_kept else row[j] ^ row[j]
        n += np.int32(is_kept)
    return n


@njit(nogil=True, error_model="numpy", cache=True)
def maxima_of_rows(lo, hi, z, bias, sign, out):
    """out[r] = the group maxima of row r."""
    for r in range(lo, hi):
        group_maxima(z[r], bias, sign, out[r])


@njit(nogil=True, error_model="numpy", cache=True)
def count_above(lo, hi, z, bias, sign, thresholds, counts):
    """counts[r] = how many entries of row r are above their latent's threshold."""
    for r in range(lo, hi):
        row, n = z[r], np.int64(0)
        for j in range(len(row)):
            v = number(row[j]) + bias[j]
            n += np.int64(max(v, sign * v) > thresholds[j])
        counts[r] = n


@njit(nogil=True, error_model="numpy", cache=True)
def take_above(lo, hi, z, bias, sign, thresholds, starts, out_values, out_indices):
    """Write the entries above their latent's threshold, those of row r from starts[r] on."""
    for r in range(lo, hi):
        row, n = z[r], starts[r]
        for j in range(len(row)):
            v = number(row[j]) + bias[j]
            if max(v, sign * v) > thresholds[j]:
                out_values[n], out_indices[n] = v, j
                n += 1


@njit(nogil=True, error_model="numpy", cache=True)
def candidates(lo, hi, z, bias, sign, stride, threshold):
    """Return keys, latents and values of all entries of rows lo to hi - 1 that reach the threshold, and the count by row."""
    width, n = z.shape[1], 0
    counts, maxima = np.empty(hi - lo, np.int64), np.empty(stride, np.float32)
    room = 2 * width
    keys, latents, values = np.empty(room, np.float32), np.empty(room, np.int64), np.empty(room, np.float32)
    for r in range(lo, hi):
        if n + width > room:
            room *= 2
            keys = np.concatenate((keys[:n], np.empty(room - n, np.float32)))
            latents = np.concatenate((latents[:n], np.empty(room - n, np.int64)))
            values = np.concatenate((values[:n], np.empty(room - n, np.float32)))
        group_maxima(z[r], bias, sign, maxima)
        counts[r - lo] = gather(z[r], bias, sign, maxima, threshold, keys[n:], latents[n:], values[n:])
        n += counts[r - lo]
    return keys[:n], latents[:n], values[:n], counts


@njit(nogil=True, error_model="numpy", cache=True)
def largest_ands(lo, hi, u, v, heads, k, out_values, out_indices):
    """Select KronSAE's k largest latents of each row. Heads are the groups; a head's maximum is sqrt(max u) sqrt(max v)."""
    p, q = u.shape[1] // heads, v.shape[1] // heads
    a, b = np.empty(u.shape[1], np.float32), np.empty(v.shape[1], np.float32)
    maxima = np.empty(heads, np.float32)
    keys, scratch = np.empty(heads * p * q, np.float32), np.empty(heads * p * q, np.float32)
    latents = np.empty(heads * p * q, np.int64)
    guess = np.float32(np.nan)
    for r in range(lo, hi):
        for j in range(len(a)):
            a[j] = np.sqrt(max(u[r, j], np.float32(0)))
        for j in range(len(b)):
            b[j] = np.sqrt(max(v[r, j], np.float32(0)))
        for h in range(heads):
            maxima[h] = a[h * p : h * p + p].max() * b[h * q : h * q + q].max()
        # With fewer heads than k their maxima say nothing of the k-th latent: all latents are candidates.
        guess = lower_bound(maxima, k, guess) if heads >= k else np.float32(0)
        n = 0
        for h in range(heads):
            if maxima[h] >= guess:
                for i in range(h * p, h * p + p):
                    for j in range(h * q, h * q + q):
                        key = a[i] * b[j]
                        if key >= guess:
                            keys[n], latents[n] = key, i * q + j - h * q
                            n += 1
        keep_best(keys, latents, keys, n, k, scratch, out_values[r], out_indices[r])
