"""Measure how well an SAE reconstructs held-out activations, and how its latents are used there (docs/metrics.md)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import RunError
from activations.rows import Positions, Split
from activations.store import Store
from sae.architectures import SAE
from sae.evaluation.bootstrap import ratio
from sae.evaluation.measures import DENSE

DENSITY_EDGES = np.arange(-7, 0.25, 0.25)  # log10 of the share of tokens a latent fires on


@torch.no_grad()
def reconstruction(
    sae: SAE,
    store: Store,
    hook: str,
    split: Split = "held-out",
    positions: Positions = "all",
    batch: int = 2048,
    on_rows: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Measure an SAE on one split of a store. `estimates` have 95 % bootstrap intervals over documents.

    `positions="last"` takes only the last row of each document in each window. `on_rows` is called after every batch with its
    number of rows. The measures, by their names in the result:

    fvu: sum over tokens of |x - x_hat|^2 divided by the sum of |x - mean|^2, where the mean [D] is the split's own; both
    sums are in float64. explained_variance: 1 - fvu. cosine: mean over tokens of the cosine of x and x_hat. l0: mean over
    tokens of the number of latents != 0. norm_ratio: mean over tokens of |x_hat| / |x|. dead: share of latents that are zero
    on every token of the split; dense: share of latents that fire on more than a tenth of them. encoder: the cost of
    encoding, `SAE.encoder_cost`. Raises RunError when the split is empty."""
    # A pass of its own: the index has the mean of all rows, and FVU is relative to the mean of the split
    mean, rows = _mean(store, hook, split, positions, batch)
    if not rows:
        raise RunError(f"{store.path} has no {split} tokens: harvest more documents (one in ten is held out)")
    totals: dict[int, Tensor] = {}  # document -> sums of the columns below
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    for x, chosen, shard, _ in store.batches(hook, batch, split, positions):
        code = sae.encode(x.to(sae.device))
        columns = _per_row(x.double(), sae.decode(code).cpu().double(), code.l0().cpu().double(), mean)
        for document, sums in _by_document(shard.documents.flatten()[chosen], columns):
            totals[document] = totals.get(document, 0) + sums
        fired += torch.bincount(code.indices[code.values != 0], minlength=sae.d_sae).cpu()
        on_rows(len(x))
    error, spread, cosine, l0, norm_ratio, tokens = torch.stack(list(totals.values())).T.numpy()
    fvu = ratio(error, spread)
    estimates = {
        "fvu": fvu,
        "explained_variance": type(fvu)(1 - fvu.value, 1 - fvu.high, 1 - fvu.low),
        "cosine": ratio(cosine, tokens),
        "l0": ratio(l0, tokens),
        "norm_ratio": ratio(norm_ratio, tokens),
    }
    density = fired.double() / rows
    counts, _ = np.histogram(density[fired > 0].log10().numpy(), DENSITY_EDGES)
    return {
        "split": split,
        "positions": positions,
        "documents": len(totals),
        "tokens": rows,
        "estimates": {name: estimate._asdict() for name, estimate in estimates.items()},
        "dead": (fired == 0).double().mean().item(),
        "dense": (density > DENSE).double().mean().item(),
        "encoder": sae.encoder_cost()._asdict(),
        "density_histogram": {"log10_edges": DENSITY_EDGES.tolist(), "latents": counts.tolist()},
    }


def held_out_rows(store: Store, positions: Positions = "all") -> int:
    """Return the number of held-out rows of a store."""
    shards = map(store.read, range(len(store.shards)))
    return int(sum(store.rows(shard, "held-out", positions=positions).sum() for shard in shards))


def _mean(
    store: Store, hook: str, split: Split, positions: Positions, batch: int
) -> tuple[Float[Tensor, "D"], int]:
    """Return the mean [D] in float64, and the number of rows, of a split."""
    total, rows = torch.zeros(store.width(hook), dtype=torch.float64), 0
    for x, *_ in store.batches(hook, batch, split, positions):
        total += x.double().sum(0)
        rows += len(x)
    return total / max(rows, 1), rows


def _per_row(x: Tensor, x_hat: Tensor, l0: Tensor, mean: Tensor) -> Float[Tensor, "B 6"]:
    """Return squared error, squared distance from the mean, cosine, L0, norm ratio and 1 for each row."""
    norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
    tiny = torch.finfo(x.dtype).tiny
    return torch.stack(
        [
            (x - x_hat).square().sum(1),
            (x - mean).square().sum(1),
            (x * x_hat).sum(1) / (norm * norm_hat).clamp_min(tiny),
            l0,
            norm_hat / norm.clamp_min(tiny),
            torch.ones_like(norm),
        ],
        dim=1,
    )


def _by_document(documents: Tensor, columns: Float[Tensor, "B C"]) -> list[tuple[int, Tensor]]:
    """Return (document, sums [C] of the columns over its rows) for each document."""
    numbers, index = documents.unique(return_inverse=True)
    sums = torch.zeros(len(numbers), columns.shape[1], dtype=columns.dtype).index_add_(0, index, columns)
    return list(zip(numbers.tolist(), sums, strict=True))
