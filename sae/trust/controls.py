"""The controls of a run: its settings with a part frozen or another seed, and dictionaries that need no training.

Korznikov et al. 2026, "Sanity Checks for Sparse Autoencoders: Do SAEs Beat Random Baselines?", arXiv:2602.14111, has the frozen
parts."""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from sae import chance
from sae.architectures import AbsTopK, AbsTopKConfig
from sae.config import LARGEST_SEED, FrozenPart, RunConfig

FROZEN: dict[str, FrozenPart] = {
    "frozen-decoder": "decoder",
    "soft-frozen-decoder": "soft-decoder",
    "frozen-encoder": "encoder",
}
"""Controls that are trained, and the part of each that stays as it starts."""
UNTRAINED = ("pca", "random-dictionary")


def with_frozen(cfg: RunConfig, part: FrozenPart) -> RunConfig:
    """Return the settings of a run with a part frozen: the same start, rows, steps and L0."""
    return dataclasses.replace(cfg, loggers=(), train=dataclasses.replace(cfg.train, frozen=part))


def with_seeds(cfg: RunConfig, seeds: int) -> dict[str, RunConfig]:
    """Return the settings of `seeds` runs that differ from a run in the seed alone, by name: of the start and the order of rows."""
    numbers = [(cfg.train.seed + i) % (LARGEST_SEED + 1) for i in range(1, seeds + 1)]
    return {
        f"seed-{seed}": dataclasses.replace(cfg, loggers=(), train=dataclasses.replace(cfg.train, seed=seed))
        for seed in numbers
    }


def covariance(batches: Iterable[Float[Tensor, "B D"]]) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"]]:
    """Return the mean and the covariance of rows, in float64."""
    total, products, rows = torch.zeros(()), torch.zeros(()), 0
    shift: Tensor | None = None
    for x in batches:
        # Products in float32 about a point near the mean: about 0, the mean's square would drown the variance.
        shift = x.mean(0) if shift is None else shift
        centred = x - shift
        total = total + centred.sum(0).double()
        products = products + (centred.T @ centred).double()
        rows += len(x)
    assert shift is not None, "a covariance needs rows"
    mean = total / rows
    return shift.double() + mean, products / rows - torch.outer(mean, mean)


def principal_components(mean: Float[Tensor, "D"], covariance: Float[Tensor, "D D"], k: int) -> AbsTopK:
    """Return PCA as a dictionary: all D components, of which each row keeps the k largest in size, with their signs."""
    components = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)
    return _dictionary(mean, components, k)


def random_dictionary(
    x: Float[Tensor, "n D"], mean: Float[Tensor, "D"], d_sae: int, k: int, seed: int
) -> AbsTopK:
    """Return random unit rows as a dictionary: each row of x keeps the k largest cosines in size, with their signs.

    Random rows are not orthogonal, so that their sum overshoots: all values are multiplied by the number that makes the error on
    x least. Signs make it as good as unsigned random rows twice as many, so the control is on the strong side."""
    rows = chance.directions(d_sae, x.shape[1], seed)
    sae = _dictionary(mean, rows, k)
    centred, x_hat = x - sae.b_dec, sae(x) - sae.b_dec
    gain = (centred * x_hat).sum() / x_hat.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    sae.W_enc.mul_(gain)
    return sae


def _dictionary(mean: Tensor, rows: Tensor, k: int) -> AbsTopK:
    """Return the SAE that reads and writes these unit rows, around a mean."""
    sae = AbsTopK(rows.shape[1], AbsTopKConfig(d_sae=len(rows), k=min(k, len(rows))), seed=None)
    sae.requires_grad_(False).eval()
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    sae.b_dec.copy_(mean)
    return sae
