"""Sums of rows, and Adam, on the CPU, compiled by numba. Functions with lo and hi do items lo to hi - 1 of their first axis.

Sums run in one fixed order, so results do not depend on how the work is divided among threads."""

import numpy as np
from numba import njit

# Reordering sums lets the compiler vectorise them; it does so the same way in every call, whatever the division of work.
FAST = {"nnan", "ninf", "nsz", "contract", "reassoc"}


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def add_weighted(total, a, row):
    """total += a * row."""
    for i in range(len(total)):
        total[i] += a * row[i]


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def add_four(total, a, b, c, d, rows, i, j, k, m):
    """total += a rows[i] + b rows[j] + c rows[k] + d rows[m].

    Four at once, because memory limits this loop: the total is then loaded and stored once instead of four times."""
    first, second, third, fourth = rows[i], rows[j], rows[k], rows[m]
    for n in range(len(total)):
        total[n] += (a * first[n] + b * second[n]) + (c * third[n] + d * fourth[n])


@njit(nogil=True, error_model="numpy", cache=True)
def add_rows(total, weights, names, rows):
    """total += sum of weights[e] * rows[names[e]]."""
    n = len(names)
    whole = n - n % 4
    for e in range(0, whole, 4):
        add_four(
            total, weights[e], weights[e + 1], weights[e + 2], weights[e + 3],
            rows, names[e], names[e + 1], names[e + 2], names[e + 3],
        )  # fmt: skip
    for e in range(whole, n):
        add_weighted(total, weights[e], rows[names[e]])


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def dot(a, b):
    """Scalar product."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(nogil=True, error_model="numpy", cache=True)
def weighted_rows(lo, hi, values, indices, offsets, W, out):
    """out[r] = sum over the entries of row r of value * W[index]."""
    for r in range(lo, hi):
        total = out[r]
        total[:] = 0
        begin, end = offsets[r], offsets[r + 1]
        add_rows(total, values[begin:end], indices[begin:end], W)


@njit(nogil=True, error_model="numpy", cache=True)
def dots(lo, hi, g, indices, offsets, W, out):
    """out[e] = g[r] . W[index] for each entry e of row r."""
    for r in range(lo, hi):
        row = g[r]
        for e in range(offsets[r], offsets[r + 1]):
            out[e] = dot(row, W[indices[e]])


@njit(nogil=True, error_model="numpy", cache=True)
def group(indices, starts, latents, entries):
    """Sort entries by latent, stably, by counting. Return how many latents have one; `starts` has room for F + 1 numbers."""
    n_latents = len(starts) - 1
    counts = np.zeros(n_latents, np.int64)
    for e in range(len(indices)):
        counts[indices[e]] += 1
    place, n = 0, 0
    for latent in range(n_latents):
        if counts[latent]:
            latents[n], starts[n] = latent, place
            # From here on counts[latent] is where the latent's next entry goes.
            place, counts[latent] = place + counts[latent], place
            n += 1
    starts[n] = place
    for e in range(len(indices)):
        latent = indices[e]
        entries[counts[latent]] = e
        counts[latent] += 1
    return n


@njit(nogil=True, error_model="numpy", cache=True)
def squares(lo, hi, gradient, out):
    """out[i] = |gradient[i]|^2."""
    for i in range(lo, hi):
        out[i] = dot(gradient[i], gradient[i])


@njit(nogil=True, error_model="numpy", cache=True)
def squares_beside(lo, hi, gradient, toward, which, out, along):
    """out[i] = |gradient[i]|^2 without its component along[i] times the row toward[which[i]]."""
    for i in range(lo, hi):
        row = toward[which[i]]
        product, size = dot(gradient[i], row), max(dot(row, row), np.finfo(np.float32).tiny)
        along[i] = product / size
        # Pythagoras. Rounding could leave a gradient that is parallel to its row with less than nothing.
        out[i] = max(dot(gradient[i], gradient[i]) - along[i] * product, np.float32(0))


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def step_row(w, mean, square, g, a, shrink, beta1, beta2, size, inverse, eps):
    """Take a step of Adam on one row, with the gradient shrink * (g - a w). Return the new |w|^2."""
    c1, c2 = np.float32(1) - beta1, np.float32(1) - beta2
    norm = np.float32(0)
    for i in range(len(w)):
        gradient = shrink * (g[i] - a * w[i])
        m = mean[i] + c1 * (gradient - mean[i])
        v = beta2 * square[i] + c2 * (gradient * gradient)
        mean[i], square[i] = m, v
        new = w[i] - size * m / (np.sqrt(v) * inverse + eps)
        w[i] = new
        norm += new * new
    return norm


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def step_idle_row(w, mean, square, beta1, beta2, size, inverse, eps):
    """Take a step of Adam on a row without a gradient, which momentum alone moves. Return the new |w|^2."""
    norm = np.float32(0)
    for i in range(len(w)):
        m = beta1 * mean[i]
        v = beta2 * square[i]
        mean[i], square[i] = m, v
        new = w[i] - size * m / (np.sqrt(v) * inverse + eps)
        w[i] = new
        norm += new * new
    return norm


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def scale(row, factor):
    """row *= factor."""
    for i in range(len(row)):
        row[i] *= factor


@njit(nogil=True, error_model="numpy", cache=True)
def adam(
    lo, hi, W, mean, square, gradient, slots, along, shrink, beta1, beta2, size, inverse, eps, unit_norm
):
    """Take a step on rows lo to hi - 1; see `reference.adam`. `size` is lr / (1 - beta1^t), `inverse` 1 / sqrt(1 - beta2^t)."""
    for r in range(lo, hi):
        slot = slots[r]
        if slot >= 0:
            norm = step_row(
                W[r],
                mean[r],
                square[r],
                gradient[slot],
                along[slot],
                shrink,
                beta1,
                beta2,
                size,
                inverse,
                eps,
            )
        else:
            norm = step_idle_row(W[r], mean[r], square[r], beta1, beta2, size, inverse, eps)
        if unit_norm:
            scale(W[r], np.float32(1) / max(np.sqrt(norm), np.finfo(np.float32).tiny))
