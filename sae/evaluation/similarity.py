"""Similarity between the latents of two SAEs: of their decoder rows, or of their activations on the same tokens."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from activations.errors import RunError, ShapeError
from activations.progress import Advance, ignore
from activations.store import Store
from sae.architectures import SAE
from sae.code import SparseCode, offsets_of

Rows = Callable[[Tensor], Tensor]
Vector = NDArray[np.float64]
CONSTANT = 1e-12  # a variance below this share of the mean square is rounding: the latent is constant


@dataclass(frozen=True)
class Similarity:
    """A matrix [F_a, F_b] of numbers in [-1, 1], computed a few rows or columns at a time and never held whole."""

    shape: tuple[int, int]
    rows: Rows
    """Numbers of n latents of the first SAE -> [n, F_b] float32."""
    columns: Rows
    """Numbers of n latents of the second SAE -> [n, F_a] float32."""

    @property
    def T(self) -> "Similarity":
        """The transposed similarity, with the two SAEs exchanged."""
        return Similarity((self.shape[1], self.shape[0]), self.columns, self.rows)


def cosine(a: Float[Tensor, "F_a D"], b: Float[Tensor, "F_b D"], absolute: bool = False) -> Similarity:
    """Return the cosines of decoder rows, or their absolute values; 0 for a row of zeros. Raises ShapeError if D differs."""
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"decoder rows of width {a.shape[1]} and of width {b.shape[1]} have no cosine: "
            f"match SAEs that read activations of the same width"
        )
    a, b = (F.normalize(rows.detach().float().cpu(), dim=1) for rows in (a, b))

    def between(mine: Tensor, others: Tensor) -> Rows:
        return lambda chosen: _signed(mine[chosen] @ others.T, absolute)

    return Similarity((len(a), len(b)), between(a, b), between(b, a))


def correlation(a: SparseCode, b: SparseCode, absolute: bool = False) -> Similarity:
    """Return the Pearson correlations between the latents of two codes of the same N rows, or their absolute values.

    The correlation is 0 for a latent that is constant over the rows, such as one that never fires. Memory: 24 bytes per
    firing."""
    # The product of the centred values is taken apart: E[ab] needs only the rows on which both latents fire, which a
    # sparse product finds, and E[a] E[b], over all N rows, is subtracted afterwards.
    (left, mean_left), (right, mean_right) = _standardised(a), _standardised(b)

    def between(mine: csr_array, others: csr_array, mean: Vector, other_mean: Vector) -> Rows:
        by_latent = mine.T.tocsr()

        def rows(chosen: Tensor) -> Tensor:
            numbers = chosen.numpy()
            products = (by_latent[numbers] @ others).toarray()
            products -= np.outer(mean[numbers], other_mean)
            return _signed(torch.from_numpy(products).float().clamp_(-1, 1), absolute)

        return rows

    return Similarity(
        (a.n_latents, b.n_latents),
        between(left, right, mean_left, mean_right),
        between(right, left, mean_right, mean_left),
    )


def _standardised(code: SparseCode) -> tuple[csr_array, Vector]:
    """Return the code divided by std * sqrt(N), and each latent's mean / std; both are 0 for a constant latent."""
    values, n = code.values.double(), code.n_rows
    sums = torch.zeros(2, code.n_latents, dtype=torch.float64)
    mean, square = sums.index_add_(1, code.indices, torch.stack([values, values**2])) / n
    variance = square - mean**2
    std = variance.clamp_min(0).sqrt().where(variance > CONSTANT * square, torch.inf)
    scaled = values / std[code.indices] / n**0.5
    arrays = (scaled.numpy(), code.indices.int().numpy(), code.offsets.numpy())
    return csr_array(arrays, shape=(n, code.n_latents)), (mean / std).numpy()


def _signed(values: Tensor, absolute: bool) -> Tensor:
    return values.abs() if absolute else values


@torch.no_grad()
def codes(
    sae: SAE,
    store: Store,
    hook: str,
    rows: int,
    batch: int = 2048,
    advance: Advance = ignore,
) -> SparseCode:
    """Return the codes of a store's first `rows` held-out rows, or of all if there are fewer, on the CPU, without zeros.

    Two SAEs with different hook points read the same rows, each at its own hook point. `advance` is called after every batch
    with its number of rows. Memory: 12 bytes per firing. Raises RunError when the store has no held-out row, StoreError
    when it lacks the hook point, ShapeError when the width differs from the SAE's."""
    store.width(hook)  # raises StoreError
    held_out = (x for x, *_ in store.batches(hook, batch, "held-out"))
    code = encoded(sae, _first(rows, held_out), advance)
    if not code.n_rows:
        raise RunError(f"{store.path} has no held-out rows: harvest more documents (one in ten is held out)")
    return code


def _first(rows: int, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches until they have `rows` rows."""
    for x in batches:
        yield x[:rows]
        rows -= len(x)
        if rows <= 0:
            return


@torch.no_grad()
def encoded(sae: SAE, batches: Iterable[Float[Tensor, "B D"]], advance: Advance = ignore) -> SparseCode:
    """Return the codes of batches of rows as one code on the CPU, without zeros. `advance` is called after every batch with its rows."""
    values, indices, counts = (
        [torch.zeros(0)],
        [torch.zeros(0, dtype=torch.int64)],
        [torch.zeros(0, dtype=torch.int64)],
    )
    for x in batches:
        code = sae.encode(x.to(sae.device)).without_zeros()
        values.append(code.values.cpu())
        indices.append(code.indices.cpu())
        counts.append(code.offsets.diff().cpu())
        advance(code.n_rows)
    return SparseCode(torch.cat(values), torch.cat(indices), offsets_of(torch.cat(counts)), sae.d_sae)
