"""What is explained: the firings of latents, by sign, and those of the controls that stand beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from activations.shard import shard_name
from activations.store import Store
from sae.features import firings
from sae.features.explanations import RANDOM, SHUFFLED, Kind
from sae.rules.controls import moved_rows
from sae.rules.corpus import Corpus

STRONG = 0.5  # share of a latent's largest value from which a firing is strong
NEAREST = 5  # latents by decoder cosine that a rule is held against


@dataclass(frozen=True)
class Target:
    """What is explained: the firings of one sign of a latent, or those of a control."""

    kind: Kind
    latent: int
    """Of a control the latent that it goes with: it fires as often."""
    sign: int


@dataclass(frozen=True)
class AllFirings:
    """All firings of F latents on N rows, one byte each."""

    signs: Any
    """CSR [F, N] of int8: the sign of each firing, doubled where it is strong."""

    @property
    def n_latents(self) -> int:
        """F."""
        return self.signs.shape[0]

    def rows(self, latent: int, sign: int = 0, strong: bool = False) -> NDArray[np.int64]:
        """Return the rows on which a latent fires, ascending; with a value of that sign unless it is 0; only strongly if `strong`."""
        begin, end = self.signs.indptr[latent : latent + 2]
        rows, signs = self.signs.indices[begin:end], self.signs.data[begin:end]
        kept = (signs * sign > 0) if sign else np.ones(len(signs), bool)
        return rows[kept & (np.abs(signs) > 1)] if strong else rows[kept]


def read_firings(
    scratch: Path,
    store: Store,
    n_shards: int,
    n_latents: int,
    largest: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    above: float = 0.0,
) -> AllFirings:
    """Return the firings that `collect.encode_shard` wrote. `largest` has each latent's largest value and its most negative one's size,
    from which those below a share `above` are left out, and those of at least STRONG are strong; None: all count, none is strong.

    So it is for a latent, or a sign of it, that has no largest value, since it never fired where that was measured."""
    parts = []
    for number in range(n_shards):
        starts, rows, values, _ = firings.read(scratch / shard_name(number), range(n_latents), 0)
        signs = np.sign(values.numpy()).astype(np.int8)
        width = store.shards[number].windows * store.context
        part: Any = sparse.csr_matrix((signs, rows.numpy(), starts.numpy()), shape=(n_latents, width))
        if largest is not None:
            owner = np.repeat(np.arange(n_latents), np.diff(part.indptr))
            positive, negative = largest
            size = np.where(signs > 0, positive[owner], negative[owner])
            known = size > 0
            share = np.divide(np.abs(values.numpy()), size, out=np.zeros(len(size)), where=known)
            part.data = np.where(~known | (share >= above), signs * (1 + (share >= STRONG)), 0).astype(
                np.int8
            )
            part.eliminate_zeros()
        parts.append(part)
    return AllFirings(sparse.hstack(parts, format="csr", dtype=np.int8))


def targets_of(fires: AllFirings, corpus: Corpus, least: int) -> list[Target]:
    """Return every latent and sign with enough firings in both halves, by latent."""
    found = []
    for sign in (1, -1):
        of_sign = fires.signs.multiply(fires.signs * sign > 0)
        of_sign.data = np.ones_like(of_sign.data, dtype=np.int64)
        enough = np.logical_and.reduce(
            [of_sign @ half.astype(np.int64) >= least for half in (corpus.choosing, corpus.scoring)]
        )
        found += [Target("latent", latent, sign) for latent in np.flatnonzero(enough).tolist()]
    return sorted(found, key=lambda target: (target.latent, -target.sign))


@dataclass(frozen=True)
class Sources:
    """Where the rows of each target come from."""

    latents: AllFirings
    random: AllFirings
    """Of the random directions."""
    goes: NDArray[np.int64]
    """Where each row [N] goes when firings are shuffled (`controls.shuffled_rows`)."""
    neighbours: Sequence[Sequence[int]]
    """The nearest latents of each latent."""
    directions: Mapping[int, int]
    """The random direction that goes with a latent, by latent."""
    neighbours_of_random: Sequence[Sequence[int]]
    """The latents nearest to each random direction."""

    def rows(self, target: Target, strong: bool = False) -> NDArray[np.int64]:
        """Return the rows on which a target fires, ascending; only where it does so strongly if `strong`."""
        if target.kind == RANDOM:
            return self.random.rows(self.directions[target.latent], strong=strong)
        rows = self.latents.rows(target.latent, target.sign, strong)
        return moved_rows(rows, self.goes) if target.kind == SHUFFLED else rows

    def nearest(self, target: Target) -> list[tuple[int, NDArray[np.int64]]]:
        """Return a target's nearest latents, each with the rows on which it fires."""
        if target.kind == RANDOM:
            near = self.neighbours_of_random[self.directions[target.latent]]
        else:
            near = self.neighbours[target.latent]
        return [(other, self.latents.rows(other)) for other in near[:NEAREST]]

    def controls(self, targets: Sequence[Target]) -> list[Target]:
        """Return the controls of those targets that have a random direction: one of each kind for the sign of more firings."""
        main: dict[int, Target] = {}
        for target in targets:
            before = main.get(target.latent)
            if target.latent in self.directions and (
                before is None or len(self.rows(before)) < len(self.rows(target))
            ):
                main[target.latent] = target
        return [Target(kind, one.latent, one.sign) for kind in (SHUFFLED, RANDOM) for one in main.values()]
