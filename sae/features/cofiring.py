"""Which latents fire on the same tokens: counts of all pairs, exact, and the partners that do so most for chance."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

BLOCK_BYTES = 2**28  # of counts held at once
DENSE_PIECE = 1024  # rows written out with their zeros at once, where codes are far from sparse
SPARSE_COST = 300  # a sparse product's step against one multiply-add of a dense one (CPU, one thread)


class Cofiring(NamedTuple):
    """For each latent its n partners of the largest PMI, best first; -1, 0 and 0 where there are fewer."""

    latents: Int[Tensor, "F n"]
    counts: Int[Tensor, "F n"]
    """Rows on which both fire."""
    pmi: Float[Tensor, "F n"]
    """Pointwise mutual information in nats: ln of P(both) / (P(one) P(other)), over all rows read."""


def cofiring(
    shards: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    fired: Int[Tensor, "F"],
    n_rows: int,
    n: int,
    least: int,
    block_bytes: int = BLOCK_BYTES,
) -> Cofiring:
    """Partners of every latent among all latents, from (row, latent) of every firing, shard by shard.

    Firing is being non-zero, of either sign. A partner shares at least `least` rows and fires together with the
    latent more often than chance would have it (PMI above 0). `shards` is called once for each block of latents and
    gives int32 tensors, rows numbered within the shard, in rising order. Memory: `block_bytes` of counts, one
    shard's counts in sparse form (12 bytes a pair that fires together, at most three times `block_bytes`) and 24
    bytes a firing of one shard."""
    F = len(fired)
    block = max(1, min(F, block_bytes // (4 * F)))
    parts = []
    for start in range(0, F, block):
        stop = min(start + block, F)
        counts = np.zeros((stop - start, F), np.int32)
        for rows, latents in shards():
            count_together(counts, rows.numpy(), latents.numpy(), start)
        own = np.arange(stop - start)
        counts[own, own + start] = 0
        parts.append(_best(torch.from_numpy(counts), fired, start, n_rows, min(n, F), least))
    return Cofiring(*(torch.cat(column) for column in zip(*parts, strict=True)))


def count_together(
    counts: NDArray[np.int32], rows: NDArray[np.int32], latents: NDArray[np.int32], start: int
) -> None:
    """Add to counts [block, F] on how many of these rows latent start + i and latent j both fire."""
    if not len(rows):
        return
    block, F = counts.shape
    ends = np.bincount(rows + 1).cumsum()
    code: Any = sparse.csr_matrix((np.ones(len(rows), np.int32), latents, ends), shape=(len(ends) - 1, F))
    part = code if block == F else code[:, start : start + block]
    steps = np.diff(part.indptr).astype(np.int64) @ np.diff(code.indptr)
    if steps * SPARSE_COST > code.shape[0] * counts.size:
        for row in range(0, code.shape[0], DENSE_PIECE):
            few = code[row : row + DENSE_PIECE].toarray().astype(np.float32)
            counts += (few[:, start : start + block].T @ few).astype(np.int32)
        return
    found = part.T.tocsr() @ code
    places = np.repeat(np.arange(block, dtype=np.int64) * F, np.diff(found.indptr)) + found.indices
    counts.reshape(-1)[places] += found.data


def _best(counts: Tensor, fired: Tensor, start: int, n_rows: int, n: int, least: int) -> Cofiring:
    """The n partners of latents start, start + 1, …, given their counts [block, F] with 0 for oneself."""
    once = fired.double().log().float()
    parts = []
    for place, piece in enumerate(counts.split(256)):
        own = once[start + 256 * place :][: len(piece), None]
        pmi = piece.float().log_() - own - once + np.log(n_rows)
        pmi[(piece < least) | ~(pmi > 0)] = 0.0
        pmi, partners = pmi.topk(n, dim=1)
        there = pmi > 0
        together = torch.where(there, piece.gather(1, partners), 0)
        parts.append((torch.where(there, partners, -1), together, pmi))
    return Cofiring(*(torch.cat(column) for column in zip(*parts, strict=True)))
