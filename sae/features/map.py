"""The map of features: every live latent as a point in two dimensions, near the latents with a similar decoder row.

The layout is UMAP's (McInnes, Healy & Melville 2018, arXiv:1802.03426, algorithms 1 to 5), written here because umap-learn
would be one more dependency and finds its own approximate neighbours, while the exact ones are known already. It runs
on one thread with a fixed seed: the same input gives the same map on the same machine."""

import math
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sae.features.neighbours import Near, nearest

NEAREST = 15  # neighbours that attract a latent, itself among them: UMAP's default
FEWEST = 5  # live latents that are worth a map
LEAST_UMAP = 64  # with fewer latents, principal components show as much
LEAST_CLUSTER = 10  # latents
SEED = 0
BLOCK = 8192  # rows
MANY = 16_384  # latents, from which on clusters are found from a triangulation
# Parameters of the similarity 1 / (1 + a d^2b) of two points at distance d, fitted to UMAP's defaults: a minimal distance
# of 0.1 and a spread of 1.
A, B = 1.5769434, 0.8950609
EPOCHS = 200  # UMAP's default from 10,000 points on
NEGATIVES = 5  # random points that a point is pushed away from, for each pull
STEPS = 64  # of the bisection for a point's scale
LEAST_SCALE = 1e-3  # smallest scale of a point, as a share of the mean distance to its neighbours


class Map(NamedTuple):
    """Position and cluster of each latent."""

    places: Float[Tensor, "F 2"]
    """Without a unit: only nearness has a meaning. NaN for latents that are left out."""
    clusters: NDArray[np.int64]
    """Number of each latent's cluster [F], 0 for the largest cluster; -1 for none."""


def available() -> bool:
    """Return whether the map can be made, which needs scikit-learn (pip install 'sae-workbench[map]')."""
    return find_spec("sklearn") is not None


def make_map(
    W_dec: Float[Tensor, "F D"],
    alive: Bool[Tensor, "F"],
    near: Near | None = None,
) -> Map:
    """Lay out the live latents so that those whose decoder rows have a large cosine lie together, and cluster them.

    UMAP's layout of the exact nearest neighbours by cosine, started from principal components. Clusters are HDBSCAN's
    (Campello, Moulavi & Sander 2013) on the map. Dead latents are left out, because their directions mean nothing; with
    fewer than 5 live latents all are. With fewer than 64 the principal components are the map. `near` are the NEAREST - 1 or more
    nearest of the live latents among themselves, where they are known. Needs scikit-learn (`available`)."""
    places = torch.full((len(W_dec), 2), torch.nan)
    clusters = np.full(len(W_dec), -1)
    if int(alive.sum()) >= FEWEST:
        living = _places(W_dec, alive.nonzero()[:, 0], near)
        places[alive] = torch.from_numpy(living)
        clusters[alive.numpy()] = _clusters(living)
    return Map(places, clusters)


def _places(W_dec: Float[Tensor, "F D"], live: Int[Tensor, "n"], near: Near | None) -> NDArray[np.float32]:
    """Return places [n, 2] of these latents."""
    start, n = _start(W_dec, live), len(live)
    if n < LEAST_UMAP:
        return start
    indices, cosines = (part[:, : NEAREST - 1] for part in near or nearest(W_dec[live], NEAREST - 1))
    return layout(indices, (1 - cosines).clamp_min(0), start, SEED)


def _start(W_dec: Float[Tensor, "F D"], live: Int[Tensor, "n"]) -> NDArray[np.float32]:
    """Return the first two principal components of these latents' decoder directions [n, 2], scaled to at most 10, as UMAP's start;
    directions of width 1 have no second one, and 0 in its place.

    An eigenvector's sign is arbitrary: its largest entry is made positive, so that the same rows give the same map."""

    def blocks() -> Iterator[Float[Tensor, "b D"]]:  # those of a wide SAE at once would take gigabytes
        return (F.normalize(W_dec[some].double(), dim=1) for some in live.split(BLOCK))

    width = W_dec.shape[1]
    mean, covariance = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for some in blocks():
        mean += some.sum(0) / len(live)
    for some in blocks():
        covariance.addmm_((some - mean).T, some - mean)
    _, vectors = torch.linalg.eigh(covariance)
    axes = vectors[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    components = F.pad(torch.cat([(some - mean) @ axes for some in blocks()]), (0, 2 - axes.shape[1]))
    return (10 * components / components.abs().max().clamp_min(1e-12)).float().numpy()


def _clusters(places: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return HDBSCAN's cluster of each place, numbered by falling size; -1 for none."""
    from sklearn.cluster import HDBSCAN

    n = len(places)
    least = min(max(LEAST_CLUSTER, n // 500), max(2, n // 4))
    points, how = places, {"algorithm": "kd_tree"}
    if n > MANY and np.ptp(places, axis=0).all():  # places on a line have no triangulation
        points, how = _edges(places), {"metric": "precomputed"}
    # "leaf" takes the finest clusters; the default rule tends to find one that holds nearly everything.
    # The types that scikit-learn 1.9 states call `copy` a string; it is a bool
    tree = HDBSCAN(least, min_samples=1, cluster_selection_method="leaf", copy=True, **how)  # pyright: ignore
    clusters = tree.fit_predict(points)
    order = [cluster for cluster, _ in Counter(clusters[clusters >= 0].tolist()).most_common()]
    number = {cluster: place for place, cluster in enumerate(order)}
    return np.array([number.get(cluster, -1) for cluster in clusters.tolist()])


def _edges(places: NDArray[np.float32]) -> Any:
    """Return the distances of places [n, 2] that are joined in their Delaunay triangulation, a sparse symmetric matrix [n, n].

    With `min_samples` = 1 HDBSCAN needs nothing but the shortest tree that joins all points, and the triangulation contains it
    (Toussaint 1980): the clusters are those of all distances, whose number grows with the square of n. Of places that coincide the triangulation has one, to which the others are joined."""
    from scipy.spatial import Delaunay

    exact = places.astype(np.float64)
    triangulation = Delaunay(exact)
    starts, tails = triangulation.vertex_neighbor_vertices
    again = triangulation.coplanar[:, [0, 2]].astype(np.int64)
    heads = np.concatenate([np.repeat(np.arange(len(places)), np.diff(starts)), again[:, 0], again[:, 1]])
    tails = np.concatenate([tails, again[:, 1], again[:, 0]])
    # 0 would be no edge
    distances = np.maximum(np.linalg.norm(exact[heads] - exact[tails], axis=1), np.finfo(np.float64).tiny)
    return sparse.csr_matrix((distances, (heads, tails)), shape=(len(places), len(places)))


def layout(
    neighbours: Int[Tensor, "n k"], distances: Float[Tensor, "n k"], start: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Return UMAP's places [n, 2] of points, given each point's k nearest others and their distances in rising order.

    `start` are the places [n, 2] to begin with; they are scaled to 0 to 10."""
    graph = _graph(neighbours, distances)
    low, high = start.min(0), start.max(0)
    places = (10 * (start - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
    every = (
        graph.data.max() / graph.data
    )  # the heaviest edge pulls in each epoch, one of half its weight in every second
    _optimize(places, graph.row, graph.col, every.astype(np.float32), EPOCHS, np.uint64(seed))
    return places


def _graph(neighbours: Int[Tensor, "n k"], distances: Float[Tensor, "n k"]) -> Any:
    """Return the symmetric graph of nearness: a + b - a b of both points' views, UMAP's fuzzy union.

    Edges too light to be drawn once in EPOCHS are left out."""
    n, k = neighbours.shape
    weights = _nearness(distances.double()).float().numpy().ravel()
    rows = np.repeat(np.arange(n), k)
    directed: Any = sparse.coo_matrix((weights, (rows, neighbours.numpy().ravel())), shape=(n, n)).tocsr()
    graph = (directed + directed.T - directed.multiply(directed.T)).tocoo()
    graph.data[graph.data < graph.data.max() / EPOCHS] = 0
    graph.eliminate_zeros()
    return graph


def _nearness(distances: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return exp(-(d - d_nearest) / scale), where each point's scale makes its k values add up to log2(k + 1).

    The scale is found by bisection; it grows by doubling until an upper end is known (UMAP's algorithm 3)."""
    k = distances.shape[1]
    nearest = distances.masked_fill(distances <= 0, math.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
    beyond = (distances - nearest).clamp_min(0)
    low, scale = torch.zeros_like(nearest), torch.ones_like(nearest)
    high = torch.full_like(nearest, math.inf)
    for _ in range(STEPS):
        too_large = (-beyond / scale).exp().sum(1, keepdim=True) > math.log2(k + 1)
        low, high = torch.where(too_large, low, scale), torch.where(too_large, scale, high)
        scale = torch.where(high.isinf(), 2 * scale, (low + high) / 2)
    mean = torch.where(nearest > 0, distances.mean(1, keepdim=True), distances.mean())
    return (-beyond / scale.maximum(LEAST_SCALE * mean).clamp_min(1e-30)).exp()


# As float32 constants: a Python number in the loop would turn everything it meets into float64.
_float32s = tuple(np.float32(v) for v in (1, A, B, -2 * A * B, 2 * B, 0.001))


@njit(cache=True)
def _optimize(places, heads, tails, every, epochs, seed):
    """Move the places in turn: pull the ends of edge e together once in every[e] epochs, and push its head away from random points.

    Stochastic gradient descent on UMAP's cross entropy with negative sampling (algorithm 5). Edges move their points one
    after the other, which is why it runs on one thread."""
    n, due, state = np.uint64(len(places)), every.copy(), seed
    unit, a, b, attract, repel, least = _float32s
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
                force = attract * power / (d * (unit + a * power))
                mx, my = pace * _clip(force * dx), pace * _clip(force * dy)
                x, y = x + mx, y + my
                places[j, 0] -= mx
                places[j, 1] -= my
            for _ in range(NEGATIVES):
                # Knuth's linear congruential generator; its upper 32 bits, scaled to 0 to n - 1, draw a point
                state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                other = ((state >> np.uint64(32)) * n) >> np.uint64(32)
                dx, dy = x - places[other, 0], y - places[other, 1]
                d = dx * dx + dy * dy
                if d > 0 and other != np.uint64(i):
                    force = repel / ((least + d) * (unit + a * d**b))
                    x, y = x + pace * _clip(force * dx), y + pace * _clip(force * dy)
            places[i, 0], places[i, 1] = x, y


@njit(cache=True)
def _clip(v):
    """Limit a move to 4 units, as UMAP does: the forces grow without bound as points meet."""
    return min(max(v, np.float32(-4)), np.float32(4))
