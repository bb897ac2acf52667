"""A map of the dictionary: decoder directions in two dimensions (UMAP), and the clusters they form there (HDBSCAN)."""

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from sae.features.neighbours import nearest
from sae.features.watch import Watch, unwatched

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
    watch: Watch = unwatched,
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
        found = _layout(W_dec[alive].float(), near if alive.all() else None, watch)
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
    rows: Float[Tensor, "n D"], near: tuple[Tensor, Tensor] | None, watch: Watch
) -> NDArray[np.float32]:
    rows = torch.nn.functional.normalize(rows, dim=1)
    start, n = _start(rows), len(rows)
    if n < LEAST_UMAP:
        return start
    if near is None:
        with watch("neighbours of the alive", n, "latents") as advance:
            near = nearest(rows, NEAREST - 1, on_latents=advance)
    indices, cosines = (part[:, : NEAREST - 1] for part in near)
    layout = import_module("sae.features.layout").layout
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
