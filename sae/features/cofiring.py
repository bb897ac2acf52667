"""Find which latents fire on the same tokens: exact counts of all pairs, and for each latent its partners by PMI."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from activations.progress import Advance, ignore
from sae.features import numba_pass
from sae.features.firings import Firings

BLOCK_BYTES = 2**28  # of counts held at once
DENSE_PIECE = 1024  # rows made dense at once, where codes are far from sparse
SPARSE_COST = 300  # cost of a sparse product's step in multiply-adds of a dense one (CPU, one thread)
NONE = -1  # key of an empty place: smaller than every other
LOW = 0xFFFFFFFF  # the lower half of a key


class Cofiring(NamedTuple):
    """For each latent the n partners with the largest PMI, largest first; -1, 0 and 0 where there are fewer."""

    latents: Int[Tensor, "F n"]
    counts: Int[Tensor, "F n"]
    """Rows on which both fire."""
    pmi: Float[Tensor, "F n"]
    """Pointwise mutual information in nats: ln of P(both) / (P(latent) P(partner)), over all rows read."""


def cofiring(
    shards: Callable[[], Iterable[Firings]],
    latents: range,
    fired: Int[Tensor, "F"],
    n_rows: int,
    n: int,
    least: int,
    block_bytes: int = BLOCK_BYTES,
    advance: Advance = ignore,
) -> Cofiring:
    """Find the partners of a range of latents among all F latents, from every firing, shard by shard.

    A latent fires where it is not zero, of either sign. A partner shares at least `least` rows with the latent and fires
    together with it more often than by chance (PMI above 0). Of partners with equal PMI (in float32) the lowest numbers
    are listed. `shards` is called once for each block of latents. Memory: `block_bytes` of counts, 20 bytes a firing of
    one shard and, for a shard too small for the compiled loop, its counts in sparse form (12 bytes a pair that fires
    together, at most three times `block_bytes`)."""
    F = len(fired)
    block = max(1, min(F, block_bytes // (4 * F)))
    buffer = torch.empty(min(block, len(latents)), F, dtype=torch.int32)
    parts = []
    for start in range(latents.start, latents.stop, block):
        some = range(start, min(start + block, latents.stop))
        counts = buffer[: len(some)].zero_()
        for firings in shards():
            add_together(counts, firings, some)
        counts[torch.arange(len(some)), torch.tensor(some)] = 0  # a latent is not its own partner
        parts.append(_best(counts, some, fired, n_rows, min(n, F), least))
        advance(len(some))
    return Cofiring(*(torch.cat(column) for column in zip(*parts, strict=True)))


def add_together(counts: Int[Tensor, "f F"], firings: Firings, some: range) -> None:
    """Add to counts[i, j] the number of rows on which both latent some[i] and latent j fire."""
    if not len(firings.rows):
        return
    starts, rows = firings.starts, firings.rows
    height = int(rows.max()) + 1
    entries = np.ones(len(rows), np.int8), rows.numpy(), starts.numpy()
    code: Any = sparse.csc_matrix(entries, shape=(height, len(starts) - 1)).tocsr()
    if numba_pass.worthwhile(len(rows)):
        own = starts[some.start : some.stop + 1].contiguous()
        numba_pass.by_latents(numba_pass.together, own, rows, code.indptr, code.indices, counts)
    else:
        _multiply(counts.numpy(), code.astype(np.int32), some)


def _multiply(counts: Any, code: Any, some: range) -> None:
    """Add code[:, some]^T code to counts, by a sparse product or, where codes are far from sparse, a dense one.

    float32 counts are exact: a piece has fewer than 2^24 rows."""
    part = code[:, some.start : some.stop]
    steps = np.diff(part.indptr).astype(np.int64) @ np.diff(code.indptr)
    if steps * SPARSE_COST > code.shape[0] * counts.size:
        for row in range(0, code.shape[0], DENSE_PIECE):
            few = code[row : row + DENSE_PIECE].toarray().astype(np.float32)
            counts += (few[:, some.start : some.stop].T @ few).astype(np.int32)
        return
    product = part.T.tocsr() @ code
    places = np.repeat(np.arange(len(some), dtype=np.int64) * counts.shape[1], np.diff(product.indptr))
    counts.reshape(-1)[places + product.indices] += product.data


def _best(
    counts: Int[Tensor, "f F"], some: range, fired: Int[Tensor, "F"], n_rows: int, n: int, least: int
) -> Cofiring:
    """Return the n best partners of a range of latents, given their counts, which are 0 for the latent itself.

    Partners are ordered by an int64 key: the bits of lift = P(both) / (P(latent) P(partner)) as float32 in its upper half,
    which rise with the value, and in its lower half the partner's number, inverted so that lower numbers win."""
    all_fired = fired.double()
    own = all_fired[some.start : some.stop]
    keys = torch.full((len(some), n), NONE)
    if numba_pass.worthwhile(counts.numel()):
        one_each = torch.arange(len(some) + 1)  # every latent costs the same here
        numba_pass.by_latents(numba_pass.partners, one_each, counts, own, all_fired, n_rows, least, keys)
    else:
        for some_keys, piece, piece_own in zip(
            keys.split(256), counts.split(256), own.split(256), strict=True
        ):
            some_keys.copy_(_keys(piece, piece_own, all_fired, n_rows, least).topk(n, dim=1).values)
    exists = keys >= 0
    partners = torch.where(exists, LOW - (keys & LOW), 0)
    together = torch.where(exists, counts.gather(1, partners), 0)
    lift = together.double() * n_rows / (own[:, None] * all_fired[partners])
    pmi = torch.where(exists, lift.log().float(), 0.0)
    return Cofiring(torch.where(exists, partners, -1), together, pmi)


def _keys(
    counts: Int[Tensor, "f F"],
    own: Float[Tensor, "f"],
    fired: Float[Tensor, "F"],
    n_rows: int,
    least: int,
) -> Int[Tensor, "f F"]:
    """Return the keys of all pairs, in plain torch; -1 where the pair is not listed. See `_best`."""
    lift = counts.double() * n_rows / (own[:, None] * fired)
    keys = lift.float().view(torch.int32).long() << 32 | (LOW - torch.arange(len(fired)))
    return torch.where((counts >= least) & (lift > 1), keys, NONE)
