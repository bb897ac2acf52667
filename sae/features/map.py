"""The map: every live latent as a point, near its neighbours by decoder cosine; the layout minimises UMAP's objective."""

import math
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from activations.progress import Progress, no_progress
from sae.features.neighbours import nearest

NEAREST = 15  # neighbours that keep a latent in its place, itself among them: UMAP's default
FEWEST = 5  # alive latents that are worth a map
LEAST_UMAP = 64  # below, principal components show as much
LEAST_CLUSTER = 10  # latents
NAMES = 3  # tokens a cluster is called by
SEED = 0


class Map(NamedTuple):
    """Where each latent stands, and in which cluster."""

    places: Float[Tensor, "F 2"]
    """No unit, only nearness means something; nan for latents left out."""
    clusters: NDArray[np.int64]
    """Number of its cluster [F], the largest one 0; -1 for none."""


def available() -> bool:
    """Whether the map can be made: scikit-learn is there (pip install 'sae-workbench[map]')."""
    return find_spec("sklearn") is not None


def make_map(
    W_dec: Float[Tensor, "F D"],
    alive: Bool[Tensor, "F"],
    near: tuple[Tensor, Tensor] | None = None,
    progress: Progress = no_progress,
) -> Map:
    """Lay out the alive latents so that those whose decoder rows have a large cosine stand together.

    UMAP (McInnes et al. 2018, arXiv:1802.03426) of exact nearest neighbours by cosine, from principal components,
    seeded and on one thread: the same input gives the same map on the same machine. Clusters are HDBSCAN's
    (Campello et al. 2013) on the map. Dead latents, whose direction says nothing, are left out, and dictionaries of
    fewer than 5 alive ones; fewer than 64 stand where principal components put them. `near`: what `nearest` finds for
    all latents, at least `NEAREST - 1` for each, where it is known. Needs what `available` asks for."""
    places = torch.full((len(W_dec), 2), torch.nan)
    clusters = np.full(len(W_dec), -1)
    if int(alive.sum()) >= FEWEST:
        found = _layout(W_dec[alive].float(), near if alive.all() else None, progress)
        places[alive] = torch.from_numpy(found)
        clusters[alive.numpy()] = _clusters(found)
    return Map(places, clusters)


def cluster_tokens(clusters: Sequence[int | None], peak_tokens: Sequence[Sequence[str]]) -> list[list[str]]:
    """What each cluster is called by: the commonest peak tokens of its latents, at most `NAMES`, commonest first.

    Case and spaces around do not count; equally common: in the alphabet's order. `clusters` are numbers from 0 on,
    None for none."""
    counts: list[Counter[str]] = [
        Counter() for _ in range(1 + max((c for c in clusters if c is not None), default=-1))
    ]
    for cluster, tokens in zip(clusters, peak_tokens, strict=True):
        if cluster is not None:
            counts[cluster].update(word for token in tokens if (word := token.strip().lower()))
    ordered = (sorted(count.items(), key=lambda item: (-item[1], item[0])) for count in counts)
    return [[token for token, _ in found[:NAMES]] for found in ordered]


def _layout(
    rows: Float[Tensor, "n D"], near: tuple[Tensor, Tensor] | None, progress: Progress
) -> NDArray[np.float32]:
    rows = torch.nn.functional.normalize(rows, dim=1)
    start, n = _start(rows), len(rows)
    if n < LEAST_UMAP:
        return start
    if near is None:
        with progress("neighbours of the alive", n, "latents") as advance:
            near = nearest(rows, NEAREST - 1, on_latents=advance)
    indices, cosines = (part[:, : NEAREST - 1] for part in near)
    layout = import_module("sae.features.map").layout
    return layout(indices, (1 - cosines).clamp_min(0), start, SEED)


def _start(rows: Float[Tensor, "n D"]) -> NDArray[np.float32]:
    """The first two principal components, each with a sign of its own choosing, at the scale UMAP starts from."""
    centred = (rows - rows.mean(0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    found = centred @ axes
    return (10 * found / found.abs().max().clamp_min(1e-12)).float().numpy()


def _clusters(places: NDArray[np.float32]) -> NDArray[np.int64]:
    """HDBSCAN's clusters, numbered by falling size."""
    from sklearn.cluster import HDBSCAN

    n = len(places)
    least = min(max(LEAST_CLUSTER, n // 500), max(2, n // 4))
    settings: dict[str, Any] = {"min_samples": 1, "algorithm": "kd_tree", "copy": True}
    # "leaf": the finest clusters; the usual rule prefers one that holds nearly everything
    found = HDBSCAN(least, cluster_selection_method="leaf", **settings).fit_predict(places)
    order = [cluster for cluster, _ in Counter(found[found >= 0].tolist()).most_common()]
    number = {cluster: place for place, cluster in enumerate(order)}
    return np.array([number.get(cluster, -1) for cluster in found.tolist()])


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
