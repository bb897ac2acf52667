"""Latents that mean nothing, to put beside those of an SAE: random directions of the activations, and shuffled firings."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from activations.store import Store
from sae import chance
from sae.code import SparseCode, offsets_of
from sae.rules.corpus import Corpus

SAMPLED_ROWS = 50_000  # rows that the thresholds of random directions are found on


class RandomDirections:
    """Random unit directions that fire where the activation, less its mean, lies far enough along them. Encodes like an SAE.

    A direction's threshold makes it fire on a given share of rows, which is exact up to the sample it was found on."""

    def __init__(
        self,
        directions: Float[Tensor, "C D"],
        thresholds: Float[Tensor, "C"],
        mean: Float[Tensor, "D"],
        device: torch.device,
    ):
        self.directions, self.thresholds, self.mean = (x.to(device) for x in (directions, thresholds, mean))
        self.d_sae, self.device = len(directions), device

    def encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return how far beyond its threshold each direction is, where it is."""
        beyond = (x - self.mean) @ self.directions.T - self.thresholds
        fires = beyond > 0
        rows, latents = fires.nonzero(as_tuple=True)
        return SparseCode(beyond[rows, latents], latents, offsets_of(fires.sum(1)), self.d_sae)


def random_directions(
    store: Store, hook: str, densities: NDArray[np.float64], seed: int, device: torch.device
) -> RandomDirections:
    """Draw a direction for each density and find its threshold on the store's first shards, which the share `density` of the rows
    exceeds; a single row where that share is less than a row."""
    mean = store.mean(hook).float()
    drawn = chance.directions(len(densities), len(mean), seed)
    parts, n_rows = [], 0
    for number in range(len(store.shards)):
        shard = store.read(number, (hook,))
        rows = store.rows(shard).flatten().nonzero()[:, 0]
        parts.append((shard.rows(hook, rows) - mean) @ drawn.T)
        n_rows += len(rows)
        if n_rows >= SAMPLED_ROWS:
            break
    along = torch.cat(parts).sort(0).values
    # a direction fires above its threshold: with n rows above it, the threshold is the value before these
    above = (torch.from_numpy(densities) * len(along)).round().long().clamp_min(1)
    place = (len(along) - 1 - above).clamp_min(0)
    return RandomDirections(drawn, along[place, torch.arange(len(densities))], mean, device)


def shuffled_rows(corpus: Corpus, seed: int) -> NDArray[np.int64]:
    """Return where each row [N] goes when the rows of each half are shuffled among themselves. Others stay."""
    generator = np.random.default_rng(seed)
    goes = np.arange(corpus.n_rows)
    for half in (corpus.choosing, corpus.scoring):
        rows = np.flatnonzero(half)
        goes[rows] = generator.permutation(rows)
    return goes


def moved_rows(rows: NDArray[np.int64], goes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where rows go, ascending."""
    return np.sort(goes[rows])
