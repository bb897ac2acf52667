"""Cosines between the directions of latents, and the nearest latents of each, exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numba import njit
from torch import Tensor

from activations.parallel.threads import evenly, share
from activations.progress import Advance, ignore
from sae.architectures import SAE

CHUNK = 64  # cosines compared at once, in vector registers, before any is looked at
COLUMNS = 4096  # of a tile: with 1,024 rows it stays in the processor's cache between the product and the two looks at it


class Near(NamedTuple):
    """For each latent the n others with the largest decoder cosine, largest first; of equal cosines the lower latent comes first."""

    latents: Int[Tensor, "F n"]
    cosines: Float[Tensor, "F n"]


def nearest(W_dec: Float[Tensor, "F D"], n: int, advance: Advance = ignore) -> Near:
    """Return the n nearest latents of each latent; see `nearest_and_live`."""
    return nearest_and_live(W_dec, n, torch.ones(len(W_dec), dtype=torch.bool), advance=advance)[0]


@torch.no_grad()
def nearest_and_live(
    W_dec: Float[Tensor, "F D"],
    n: int,
    alive: Bool[Tensor, "F"],
    block: int = 1024,
    advance: Advance = ignore,
) -> tuple[Near, Near]:
    """Return the n nearest latents of each latent, and those of the L live latents among the live alone, numbered as in W_dec[alive].

    n is lowered where there are fewer others. Each cosine is computed once and serves both of its latents: the product of a block of
    latents with itself and those after it is looked at twice, for its rows and for its columns. Memory: block * COLUMNS floats beside
    the rows and the result."""
    rows = F.normalize(W_dec.float(), dim=1)
    size, living = len(rows), int(alive.sum())
    every = _unknown(size, min(n, size - 1))
    live = _unknown(size, min(n, living - 1) if living < size else 0)
    lists = [part.numpy() for part in (*every, *live)]
    # Where no cosine is above a latent's entry here, none belongs in a list of its: most cosines are compared with nothing else
    low = np.full(size, -np.inf if min(n, size - 1) > 0 else np.inf, np.float32)
    buffer, told = rows.new_empty(min(block, size) * min(COLUMNS, size)), 0
    for start in range(0, size, block):
        some = rows[start : start + block]
        for first in range(start, size, COLUMNS):
            others = rows[first : first + COLUMNS]
            out = buffer[: len(some) * len(others)].view(len(some), len(others))
            tile = torch.mm(some, others.T, out=out).numpy()
            # columns first, whose latents get the lower of a pair: of equal cosines the first that comes stays in front
            for loop, count in ((_of_columns, len(others)), (_of_rows, len(some))):
                share(loop, evenly(count), tile, start, first, alive.numpy(), low, *lists)
        # the first blocks have most of the work: what is told grows with the work done
        left = (size - start - len(some)) / size
        done = round(size * (1 - left**2))
        advance(done - told)
        told = done
    if living == size:
        return every, every
    number = alive.cumsum(0) - 1
    return every, Near(number[live.latents[alive]], live.cosines[alive])


def _unknown(size: int, n: int) -> Near:
    """Return lists of n latents each in which nothing has been entered."""
    n = max(0, n)
    return Near(torch.zeros(size, n, dtype=torch.int64), torch.full((size, n), -torch.inf))


@torch.no_grad()
def cosines(W_dec: Float[Tensor, "F D"], latents: Sequence[int]) -> Float[Tensor, "n n"]:
    """Return the decoder cosine of every pair of these latents."""
    rows = F.normalize(W_dec[list(latents)].float(), dim=1)
    return rows @ rows.T


@torch.no_grad()
def encoder_decoder_cosine(sae: SAE) -> Float[Tensor, "F"]:
    """Return the cosine of each latent's encoder direction and decoder row: 1 at tied initialisation."""
    blocks = zip(sae.encoder_directions().split(COLUMNS), sae.W_dec.split(COLUMNS), strict=True)
    return torch.cat([F.cosine_similarity(*pair, dim=1) for pair in blocks])


@njit(nogil=True, error_model="numpy", cache=True)
def _of_rows(lo, hi, tile, start, first, alive, low, *lists):
    """Tell latents `start` + lo to `start` + hi - 1 of their cosines with latents after them, `first` and on."""
    for r in range(lo, hi):
        latent = start + r
        for begin in range(max(0, latent + 1 - first), tile.shape[1], CHUNK):
            part = tile[r, begin : begin + CHUNK]
            bound, above = low[latent], np.int32(0)
            for j in range(len(part)):
                above += np.int32(part[j] > bound)
            if above:
                for j in range(len(part)):
                    if part[j] > low[latent]:
                        _consider(latent, first + begin + j, part[j], alive, low, *lists)


@njit(nogil=True, error_model="numpy", cache=True)
def _of_columns(lo, hi, tile, start, first, alive, low, *lists):
    """Tell latents `first` + lo to `first` + hi - 1 of their cosines with latents before them, `start` and on."""
    for r in range(tile.shape[0]):
        for begin in range(max(lo, start + r + 1 - first), hi, CHUNK):
            part = tile[r, begin : min(begin + CHUNK, hi)]
            bounds, above = low[first + begin : first + begin + len(part)], np.int32(0)
            for j in range(len(part)):
                above += np.int32(part[j] > bounds[j])
            if above:
                for j in range(len(part)):
                    if part[j] > bounds[j]:
                        _consider(first + begin + j, start + r, part[j], alive, low, *lists)


@njit(nogil=True, error_model="numpy", cache=True)
def _consider(latent, other, cosine, alive, low, latents, cosines, live_latents, live_cosines):
    """Enter another latent into the lists of a latent in which it belongs."""
    _enter(latent, other, cosine, latents, cosines)
    least = cosines[latent, -1]
    if alive[latent] and live_cosines.shape[1]:
        if alive[other]:
            _enter(latent, other, cosine, live_latents, live_cosines)
        least = min(least, live_cosines[latent, -1])
    low[latent] = least


@njit(nogil=True, error_model="numpy", cache=True)
def _enter(latent, other, cosine, latents, cosines):
    """Enter another latent into a latent's list, at its place by cosine, unless its cosine is below those of a full list."""
    place = cosines.shape[1] - 1
    if not cosine > cosines[latent, place]:
        return
    while place > 0 and cosines[latent, place - 1] < cosine:
        latents[latent, place], cosines[latent, place] = (
            latents[latent, place - 1],
            cosines[latent, place - 1],
        )
        place -= 1
    latents[latent, place], cosines[latent, place] = other, cosine
