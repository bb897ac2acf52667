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
    size = len(rows)
    every, live = (_Lists(size, max(0, min(n, int(others) - 1))) for others in (size, alive.sum()))
    buffer, told = rows.new_empty(min(block, size) * min(COLUMNS, size)), 0
    for start in range(0, size, block):
        some = rows[start : start + block]
        for first in range(start, size, COLUMNS):
            others = rows[first : first + COLUMNS]
            out = buffer[: len(some) * len(others)].view(len(some), len(others))
            tile = torch.mm(some, others.T, out=out)
            every.enter(tile, start, first)
            if not alive.all():
                tile[~alive[start : start + block]] = -torch.inf
                tile[:, ~alive[first : first + COLUMNS]] = -torch.inf
                live.enter(tile, start, first)
        # the first blocks have most of the work: what is told grows with the work done
        left = (size - start - len(some)) / size
        done = round(size * (1 - left**2))
        advance(done - told)
        told = done
    if alive.all():
        return every.near, every.near
    number = alive.cumsum(0) - 1
    return every.near, Near(number[live.near.latents[alive]], live.near.cosines[alive])


class _Lists:
    """The nearest latents of each latent among those it has been compared with so far."""

    def __init__(self, size: int, n: int):
        self.near = Near(torch.zeros(size, n, dtype=torch.int64), torch.full((size, n), -torch.inf))
        # a latent's least cosine, again, side by side: most cosines are compared with nothing else
        self._least = np.full(size, -np.inf, np.float32)

    def enter(self, tile: Float[Tensor, "b m"], start: int, first: int) -> None:
        """Enter the cosines of b latents, `start` and on, with m latents, `first` and on; of each pair the lower latent comes first."""
        latents, cosines = self.near
        if not cosines.shape[1]:
            return
        # columns first, which have to do with lower latents: of equal cosines the first that comes stays in front
        for loop, count in ((_of_columns, tile.shape[1]), (_of_rows, tile.shape[0])):
            share(
                loop, evenly(count), tile.numpy(), start, first, cosines.numpy(), latents.numpy(), self._least
            )


@torch.no_grad()
def cosines(W_dec: Float[Tensor, "F D"], latents: Sequence[int]) -> Float[Tensor, "n n"]:
    """Return the decoder cosine of every pair of these latents."""
    rows = F.normalize(W_dec[list(latents)].float(), dim=1)
    return rows @ rows.T


@torch.no_grad()
def encoder_decoder_cosine(sae: SAE) -> Float[Tensor, "F"]:
    """Return the cosine of each latent's encoder direction and decoder row: 1 at tied initialisation."""
    return F.cosine_similarity(sae.encoder_directions(), sae.W_dec, dim=1)


@njit(nogil=True, error_model="numpy", cache=True)
def _of_rows(lo, hi, tile, start, first, values, latents, least):
    """Enter the cosines of latents `start` + lo to `start` + hi - 1 with latents after them, `first` and on, into the former's lists."""
    for r in range(lo, hi):
        latent = start + r
        for begin in range(max(0, latent + 1 - first), tile.shape[1], CHUNK):
            part = tile[r, begin : begin + CHUNK]
            bound, above = least[latent], np.int32(0)
            for j in range(len(part)):
                above += np.int32(part[j] > bound)
            if above:
                for j in range(len(part)):
                    if part[j] > least[latent]:
                        _enter(latent, first + begin + j, part[j], values, latents, least)


@njit(nogil=True, error_model="numpy", cache=True)
def _of_columns(lo, hi, tile, start, first, values, latents, least):
    """Enter the cosines of latents `first` + lo to `first` + hi - 1 with latents before them, `start` and on, into the former's lists."""
    for r in range(tile.shape[0]):
        for begin in range(max(lo, start + r + 1 - first), hi, CHUNK):
            part = tile[r, begin : min(begin + CHUNK, hi)]
            bounds, above = least[first + begin : first + begin + len(part)], np.int32(0)
            for j in range(len(part)):
                above += np.int32(part[j] > bounds[j])
            if above:
                for j in range(len(part)):
                    if part[j] > bounds[j]:
                        _enter(first + begin + j, start + r, part[j], values, latents, least)


@njit(nogil=True, error_model="numpy", cache=True)
def _enter(latent, other, cosine, values, latents, least):
    """Enter another latent, whose cosine is above the least of a latent's list, into the list at its place."""
    place = values.shape[1] - 1
    while place > 0 and values[latent, place - 1] < cosine:
        values[latent, place], latents[latent, place] = values[latent, place - 1], latents[latent, place - 1]
        place -= 1
    values[latent, place], latents[latent, place] = cosine, other
    least[latent] = values[latent, values.shape[1] - 1]
