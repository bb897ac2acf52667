"""UMAP's layout of points whose nearest neighbours are known: from a weighted graph to places in two dimensions.

McInnes, Healy & Melville 2018, arXiv:1802.03426, algorithms 1 to 5. The graph is plain arrays; the moves are a loop that
numba compiles, on one thread, seeded: the same input gives the same places on the same machine."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

# of 1 / (1 + a d^2b), fitted to a least distance of 0.1 and a spread of 1: UMAP's defaults
A, B = 1.5769434, 0.8950609
EPOCHS = 200  # its default from 10,000 points on
NEGATIVES = 5  # points drawn to push away from, for each pull
STEPS = 64  # of bisection
LEAST_SCALE = 1e-3  # of a point's scale, in its neighbours' mean distance


def layout(
    neighbours: Int[Tensor, "n k"], distances: Float[Tensor, "n k"], start: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Places [n, 2] from `start`, given each point's k nearest others and their distances in rising order."""
    graph = _graph(neighbours, distances)
    low, high = start.min(0), start.max(0)
    places = (10 * (start - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
    every = graph.data.max() / graph.data
    _settle(places, graph.row, graph.col, every.astype(np.float32), EPOCHS, np.uint64(seed))
    return places


def _graph(neighbours: Int[Tensor, "n k"], distances: Float[Tensor, "n k"]) -> Any:
    """The fuzzy union of each point's own view of which points are near; what is never drawn is left out."""
    n, k = neighbours.shape
    weights = _nearness(distances.double()).float().numpy().ravel()
    rows = np.repeat(np.arange(n), k)
    one: Any = sparse.coo_matrix((weights, (rows, neighbours.numpy().ravel())), shape=(n, n)).tocsr()
    graph = (one + one.T - one.multiply(one.T)).tocoo()
    graph.data[graph.data < graph.data.max() / EPOCHS] = 0
    graph.eliminate_zeros()
    return graph


def _nearness(distances: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """exp(-(d - nearest) / scale), the scale such that a point's k values add up to log2(k + 1)."""
    k = distances.shape[1]
    nearest = distances.masked_fill(distances <= 0, math.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
    beyond = (distances - nearest).clamp_min(0)
    low, scale = torch.zeros_like(nearest), torch.ones_like(nearest)
    high = torch.full_like(nearest, math.inf)
    for _ in range(STEPS):
        much = (-beyond / scale).exp().sum(1, keepdim=True) > math.log2(k + 1)
        low, high = torch.where(much, low, scale), torch.where(much, scale, high)
        scale = torch.where(high.isinf(), 2 * scale, (low + high) / 2)
    mean = torch.where(nearest > 0, distances.mean(1, keepdim=True), distances.mean())
    return (-beyond / scale.maximum(LEAST_SCALE * mean).clamp_min(1e-30)).exp()


# a number written in the loop would make doubles of all it meets
_float32s = tuple(np.float32(v) for v in (1, A, B, -2 * A * B, 2 * B, 0.001))


@njit(cache=True)
def _settle(places, heads, tails, every, epochs, seed):
    """Pull the ends of each edge together once in `every` epochs, and push its head away from points drawn at random."""
    n, due, state = np.uint64(len(places)), every.copy(), seed
    one, a, b, pull, push, least = _float32s
    for epoch in range(epochs):
        pace = np.float32(1 - epoch / epochs)
        for e in range(len(heads)):
            if due[e] > epoch:
                continue
            due[e] += every[e]
            i, j = heads[e], tails[e]
            x, y = places[i, 0], places[i, 1]
            dx, dy = x - places[j, 0], y - places[j, 1]
            d = dx * dx + dy * dy
            if d > 0:
                power = d**b
                force = pull * power / (d * (one + a * power))
                mx, my = pace * _clip(force * dx), pace * _clip(force * dy)
                x, y = x + mx, y + my
                places[j, 0] -= mx
                places[j, 1] -= my
            for _ in range(NEGATIVES):
                state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                other = ((state >> np.uint64(32)) * n) >> np.uint64(32)
                dx, dy = x - places[other, 0], y - places[other, 1]
                d = dx * dx + dy * dy
                if d > 0 and other != np.uint64(i):
                    force = push / ((least + d) * (one + a * d**b))
                    x, y = x + pace * _clip(force * dx), y + pace * _clip(force * dy)
            places[i, 0], places[i, 1] = x, y


@njit(cache=True)
def _clip(v):
    return min(max(v, np.float32(-4)), np.float32(4))
