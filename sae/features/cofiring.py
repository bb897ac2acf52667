"""Which latents fire on the same tokens: counts of all pairs, exact, and the partners that do so most for chance."""

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
DENSE_PIECE = 1024  # rows written out with their zeros at once, where codes are far from sparse
SPARSE_COST = 300  # a sparse product's step against one multiply-add of a dense one (CPU, one thread)
NONE = -1  # an empty place among the keys
LOW = 0xFFFFFFFF


class Cofiring(NamedTuple):
    """For each latent its n partners of the largest PMI, best first; -1, 0 and 0 where there are fewer."""

    latents: Int[Tensor, "F n"]
    counts: Int[Tensor, "F n"]
    """Rows on which both fire."""
    pmi: Float[Tensor, "F n"]
    """Pointwise mutual information in nats: ln of P(both) / (P(one) P(other)), over all rows read."""


def cofiring(
    shards: Callable[[], Iterable[Firings]],
    latents: range,
    fired: Int[Tensor, "F"],
    n_rows: int,
    n: int,
    least: int,
    block_bytes: int = BLOCK_BYTES,
    on_latents: Advance = ignore,
) -> Cofiring:
    """Partners of some latents among all F latents, from every firing, shard by shard.

    Firing is being non-zero, of either sign. A partner shares at least `least` rows and fires together with the
    latent more often than chance would have it (PMI above 0); of equally good ones (in float32) those of the lowest
    number are listed. `shards` is called once for each block of latents. Memory: `block_bytes` of counts, 20 bytes a
    firing of one shard, and without numba one shard's counts in sparse form (12 bytes a pair that fires together, at
    most three times `block_bytes`)."""
    F = len(fired)
    block = max(1, min(F, block_bytes // (4 * F)))
    room = torch.empty(min(block, len(latents)), F, dtype=torch.int32)
    parts = []
    for start in range(latents.start, latents.stop, block):
        some = range(start, min(start + block, latents.stop))
        counts = room[: len(some)].zero_()
        for firings in shards():
            add_together(counts, firings, some)
        counts[torch.arange(len(some)), torch.tensor(some)] = 0
        parts.append(_best(counts, some, fired, n_rows, min(n, F), least))
        on_latents(len(some))
    return Cofiring(*(torch.cat(column) for column in zip(*parts, strict=True)))


def add_together(counts: Int[Tensor, "f F"], firings: Firings, some: range) -> None:
    """Add to `counts` on how many of these rows each of some latents and each of all fire."""
    if not len(firings.rows):
        return
    starts, rows = firings.starts, firings.rows
    height = int(rows.max()) + 1
    entries = np.ones(len(rows), np.int8), rows.numpy(), starts.numpy()
    code: Any = sparse.csc_matrix(entries, shape=(height, len(starts) - 1)).tocsr()
    if loops := numba_pass.loops(len(rows)):
        own = starts[some.start : some.stop + 1].contiguous()
        numba_pass.by_latents(loops.together, own, rows, code.indptr, code.indices, counts)
    else:
        _multiply(counts.numpy(), code.astype(np.int32), some)


def _multiply(counts: Any, code: Any, some: range) -> None:
    """counts += code[:, some]^T code, by a sparse product or, where codes are far from sparse, a dense one."""
    part = code[:, some.start : some.stop]
    steps = np.diff(part.indptr).astype(np.int64) @ np.diff(code.indptr)
    if steps * SPARSE_COST > code.shape[0] * counts.size:
        for row in range(0, code.shape[0], DENSE_PIECE):
            few = code[row : row + DENSE_PIECE].toarray().astype(np.float32)
            counts += (few[:, some.start : some.stop].T @ few).astype(np.int32)
        return
    found = part.T.tocsr() @ code
    places = np.repeat(np.arange(len(some), dtype=np.int64) * counts.shape[1], np.diff(found.indptr))
    counts.reshape(-1)[places + found.indices] += found.data


def _best(
    counts: Int[Tensor, "f F"], some: range, fired: Int[Tensor, "F"], n_rows: int, n: int, least: int
) -> Cofiring:
    """The n partners of some latents, given their counts with 0 for oneself.

    A key is the bits of lift = P(both) / (P(one) P(other)) as float32, then the latent's number, the lowest best."""
    all_fired = fired.double()
    own = all_fired[some.start : some.stop]
    keys = torch.full((len(some), n), NONE)
    if loops := numba_pass.loops(counts.numel()):
        even = torch.arange(len(some) + 1)
        numba_pass.by_latents(loops.partners, even, counts, own, all_fired, n_rows, least, keys)
    else:
        for some_keys, piece, piece_own in zip(
            keys.split(256), counts.split(256), own.split(256), strict=True
        ):
            some_keys.copy_(_keys(piece, piece_own, all_fired, n_rows, least).topk(n, dim=1).values)
    there = keys >= 0
    partners = torch.where(there, LOW - (keys & LOW), 0)
    together = torch.where(there, counts.gather(1, partners), 0)
    lift = together.double() * n_rows / (own[:, None] * all_fired[partners])
    pmi = torch.where(there, lift.log().float(), 0.0)
    return Cofiring(torch.where(there, partners, -1), together, pmi)


def _keys(
    counts: Int[Tensor, "f F"],
    own: Float[Tensor, "f"],
    fired: Float[Tensor, "F"],
    n_rows: int,
    least: int,
) -> Int[Tensor, "f F"]:
    """Keys of all pairs, in plain torch; -1 where the pair is not to be listed."""
    lift = counts.double() * n_rows / (own[:, None] * fired)
    keys = lift.float().view(torch.int32).long() << 32 | (LOW - torch.arange(len(fired)))
    return torch.where((counts >= least) & (lift > 1), keys, NONE)
