"""How alike the latents of two SAEs are: by their decoder rows, or by what they do on the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from activations.store import Store
from sae.architectures import SAE
from sae.errors import RunError, ShapeError

Rows = Callable[[Tensor], Tensor]
Vector = NDArray[np.float64]
CONSTANT = 1e-12  # share of its mean square below which a latent's variance is rounding


@dataclass(frozen=True)
class Similarity:
    """A matrix [F_a, F_b] of numbers in [-1, 1], made some rows or columns at a time and never kept whole."""

    shape: tuple[int, int]
    rows: Rows
    """Numbers of n latents of the first SAE -> [n, F_b] float32."""
    columns: Rows
    """Numbers of n latents of the second SAE -> [n, F_a] float32."""

    @property
    def T(self) -> "Similarity":
        """The same with the two SAEs exchanged."""
        return Similarity((self.shape[1], self.shape[0]), self.columns, self.rows)


def cosine(a: Float[Tensor, "F_a D"], b: Float[Tensor, "F_b D"], absolute: bool = False) -> Similarity:
    """Cosines of decoder rows, or their absolute values; 0 for a row of zeros. Raises ShapeError if D differs."""
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"decoder rows of width {a.shape[1]} and of width {b.shape[1]} have no cosine: "
            f"match SAEs that read activations of one width"
        )
    a, b = (F.normalize(rows.detach().float().cpu(), dim=1) for rows in (a, b))

    def between(mine: Tensor, others: Tensor) -> Rows:
        return lambda chosen: _sign_kept_or_not(mine[chosen] @ others.T, absolute)

    return Similarity((len(a), len(b)), between(a, b), between(b, a))


def correlation(a: csr_matrix, b: csr_matrix, absolute: bool = False) -> Similarity:
    """Pearson correlations of latents over the same rows, or their absolute values.

    a [N, F_a] and b [N, F_b] are codes. Products are summed over the rows on which both latents fire; the
    means taken off are of all N. 0 for a latent that does the same on every row, as one that never fires.
    Memory: 24 bytes a firing beside the codes."""
    (a, mean_a), (b, mean_b) = _standardised(a), _standardised(b)

    def between(mine: csr_matrix, others: csr_matrix, mean: Vector, other_mean: Vector) -> Rows:
        by_latent = mine.T.tocsr()

        def rows(chosen: Tensor) -> Tensor:
            numbers = chosen.numpy()
            products = (by_latent[numbers] @ others).toarray()
            products -= np.outer(mean[numbers], other_mean)
            return _sign_kept_or_not(torch.from_numpy(products).float().clamp_(-1, 1), absolute)

        return rows

    return Similarity(
        (a.shape[1], b.shape[1]), between(a, b, mean_a, mean_b), between(b, a, mean_b, mean_a)
    )


def _standardised(code: csr_matrix) -> tuple[csr_matrix, Vector]:
    """The code over std * sqrt(N), and mean / std of each latent; latents that never change become 0."""
    n = code.shape[0]
    mean = np.asarray(code.mean(axis=0))[0]
    square = np.asarray(code.multiply(code).mean(axis=0))[0]
    variance = square - mean**2
    std = np.where(variance > CONSTANT * square, np.sqrt(variance.clip(0)), np.inf)
    scaled = code.copy()
    scaled.data /= std[scaled.indices] * n**0.5
    return scaled, mean / std


def _sign_kept_or_not(values: Tensor, absolute: bool) -> Tensor:
    return values.abs() if absolute else values


@torch.no_grad()
def codes(
    sae: SAE,
    store: Store,
    hook: str,
    rows: int,
    batch: int = 2048,
    on_rows: Callable[[int], None] = lambda n: None,
) -> csr_matrix:
    """Codes [N, F], float64, of a store's first `rows` held-out rows, or of all when there are fewer.

    12 bytes a firing. Two SAEs are shown the same rows, each at its own hook point. Raises RunError when the
    store has no held-out row, ShapeError when the SAE reads another width."""
    parts: list[csr_matrix] = []
    left = rows
    for x, *_ in store.batches(hook, batch, "held-out"):
        x = x[:left]
        code = sae.encode(x.to(sae.device)).without_zeros()
        columns = (code.values.double(), code.indices, code.offsets)
        parts.append(csr_matrix(tuple(t.cpu().numpy() for t in columns), shape=(len(x), sae.d_sae)))
        on_rows(len(x))
        left -= len(x)
        if not left:
            break
    if not parts:
        raise RunError(f"{store.path} has no held-out rows: harvest more documents (one in ten is held out)")
    return vstack(parts, format="csr")
