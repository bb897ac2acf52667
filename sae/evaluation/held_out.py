"""Measure an SAE on a store's held-out text: what it reconstructs. `splicing.py` has what that costs the language model.

Every measure (docs/metrics.md) is a ratio of sums over tokens, with a bootstrap interval over documents, because tokens of
one document are not independent."""

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from activations.errors import RunError
from activations.progress import Advance, ignore
from activations.rows import Split
from activations.store import Store
from sae.architectures import SAE
from sae.code import SparseCode
from sae.evaluation import l0_proxies
from sae.evaluation.bootstrap import ratio
from sae.evaluation.l0_proxies import Proxies
from sae.evaluation.measures import DENSE
from sae.evaluation.quasi_orthogonality import Quasi, code_norm, summary

DENSITY_EDGES = np.arange(-7, 0.25, 0.25)  # log10 of the share of tokens a latent fires on


Sums = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Numerators and denominators by the name of a measure, one entry for each document."""


class Reconstruction(TypedDict):
    """What `reconstruction` measures, as eval.json has it (FORMAT.md)."""

    split: str
    positions: str
    documents: int
    tokens: int
    estimates: dict[str, dict[str, float]]
    dead: float
    dense: float
    encoder: dict[str, int]
    density_histogram: dict[str, Sequence[float]]
    quasi_orthogonality: NotRequired[Quasi]
    l0_proxies: NotRequired[Proxies]


@torch.no_grad()
def reconstruction(
    sae: SAE,
    store: Store,
    hook: str,
    split: Split = "held-out",
    batch: int = 2048,
    advance: Advance = ignore,
) -> Reconstruction:
    """Measure an SAE on one split of a store. `estimates` have 95 % bootstrap intervals over documents.

    Which rows of a document count is the store's `positions`. `advance` is called after every batch with its number of rows.
    The measures, by their names in the result:

    fvu: sum over tokens of |x - x_hat|^2 divided by the sum of |x - mean|^2, where the mean [D] is the split's own; both
    sums are in float64. explained_variance: 1 - fvu. cosine: mean over tokens of the cosine of x and x_hat. l0: mean over
    tokens of the number of latents != 0. norm_ratio: mean over tokens of |x_hat| / |x|. dead: share of latents that are zero
    on every token of the split; dense: share of latents that fire on more than a tenth of them. encoder: the cost of
    encoding, `SAE.encoder_cost`. quasi_orthogonality: norms of inputs and codes and their eps_LBO; l0_proxies: c_dec
    and s_n^dec, the latter over at most 4096 rows drawn from the split. Both are left out for a single latent. Raises RunError when the split is empty."""
    # A pass of its own: the index has the mean of all rows, and FVU is relative to the mean of the split
    mean, rows = _mean(store, hook, split, batch)
    totals: dict[int, Tensor] = {}  # document -> sums of the columns of `_per_row`
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    input_norms, code_norms = [], []
    sampled, sample = l0_proxies.drawn(rows, l0_proxies.ROWS), []
    seen = 0
    for x, code, documents in _encoded(sae, store, hook, split, batch, mean):
        for document, sums in documents:
            totals[document] = totals.get(document, 0) + sums
        fired += torch.bincount(code.indices[code.values != 0], minlength=sae.d_sae).cpu()
        input_norms.append(x.double().norm(dim=1))
        code_norms.append(code_norm(sae, code).cpu())
        here = sampled[(sampled >= seen) & (sampled < seen + len(x))] - seen
        sample.append(x[here])
        seen += len(x)
        advance(len(x))
    density = fired.double() / rows
    measured: Reconstruction = {
        "split": split,
        "positions": store.positions,
        "documents": len(totals),
        "tokens": rows,
        "estimates": _estimates(torch.stack(list(totals.values()))),
        "dead": (fired == 0).double().mean().item(),
        "dense": (density > DENSE).double().mean().item(),
        "encoder": sae.encoder_cost()._asdict(),
        "density_histogram": {"log10_edges": DENSITY_EDGES.tolist(), "latents": latents_by_density(density)},
    }
    if sae.d_sae > 1:
        norms = torch.cat(input_norms), torch.cat(code_norms)
        measured["quasi_orthogonality"] = summary(*norms, sae.d_sae)
        measured["l0_proxies"] = l0_proxies.proxies(sae, torch.cat(sample))
    return measured


@torch.no_grad()
def document_sums(
    sae: SAE,
    store: Store,
    hook: str,
    batch: int = 2048,
    advance: Advance = ignore,
) -> Sums:
    """Return, for each measure of `reconstruction` that is a ratio of sums, its numerators and denominators per document.

    The documents are the held-out ones of the store, in the same order for every SAE. Raises RunError when there are none."""
    mean, _ = _mean(store, hook, "held-out", batch)
    totals: dict[int, Tensor] = {}
    for x, _, documents in _encoded(sae, store, hook, "held-out", batch, mean):
        for document, sums in documents:
            totals[document] = totals.get(document, 0) + sums
        advance(len(x))
    return _sums(torch.stack(list(totals.values())))


def _encoded(
    sae: SAE, store: Store, hook: str, split: Split, batch: int, mean: Tensor
) -> Iterator[tuple[Tensor, SparseCode, list[tuple[int, Tensor]]]]:
    """Yield rows, their codes, and (document, sums of the columns of `_per_row`), a batch at a time."""
    for x, chosen, shard, _ in store.batches(hook, batch, split):
        code = sae.encode(x.to(sae.device))
        columns = _per_row(x.double(), sae.decode(code).cpu().double(), code.l0().cpu().double(), mean)
        yield x, code, _by_document(shard.documents.flatten()[chosen], columns)


def _sums(documents: Float[Tensor, "documents 6"]) -> Sums:
    """Return numerators and denominators by measure, from the sums of the columns of `_per_row` over each document."""
    error, spread, cosine, l0, norm_ratio, tokens = documents.T.numpy()
    over_tokens = {"cosine": cosine, "l0": l0, "norm_ratio": norm_ratio}
    return {"fvu": (error, spread), **{name: (sums, tokens) for name, sums in over_tokens.items()}}


def _estimates(documents: Float[Tensor, "documents 6"]) -> dict[str, dict[str, float]]:
    """Return the measures by name, from the sums of the columns of `_per_row` over each document."""
    fvu, *others = (ratio(*sums) for sums in _sums(documents).values())
    explained = type(fvu)(1 - fvu.value, 1 - fvu.high, 1 - fvu.low)
    names = ("fvu", "explained_variance", "cosine", "l0", "norm_ratio")
    return {name: estimate._asdict() for name, estimate in zip(names, (fvu, explained, *others), strict=True)}


def latents_by_density(density: Float[Tensor, "F"]) -> list[int]:
    """Count the latents that fire between each two of DENSITY_EDGES. The first count has those that fire more rarely, too."""
    logs = density[density > 0].log10().clamp_min(DENSITY_EDGES[0])
    return np.histogram(logs.numpy(), DENSITY_EDGES)[0].tolist()


def held_out_rows(store: Store) -> int:
    """Return the number of held-out rows of a store."""
    return sum(store.count(number, "held-out") for number in range(len(store.shards)))


def _mean(store: Store, hook: str, split: Split, batch: int) -> tuple[Float[Tensor, "D"], int]:
    """Return the mean [D] in float64, and the number of rows, of a split. Raises RunError when it is empty."""
    total, rows = torch.zeros(store.width(hook), dtype=torch.float64), 0
    for x, *_ in store.batches(hook, batch, split):
        total += x.double().sum(0)
        rows += len(x)
    if not rows:
        raise RunError(f"{store.path} has no {split} tokens: harvest more documents (one in ten is held out)")
    return total / rows, rows


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
