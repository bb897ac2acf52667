"""How alike the latents of two SAEs are: by their decoder rows, or by what they do on the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from activations.errors import RunError, ShapeError
from activations.store import Store
from sae.architectures import SAE
from sae.code import SparseCode, offsets_of

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


def correlation(a: SparseCode, b: SparseCode, absolute: bool = False) -> Similarity:
    """Pearson correlations over N rows of the latents of two SAEs' codes of them, or their absolute values.

    Products are summed over the rows on which both latents fire; the means taken off are of all N. 0 for a
    latent that does the same on every row, as one that never fires. Memory: 24 bytes a firing."""
    (left, mean_left), (right, mean_right) = _standardised(a), _standardised(b)

    def between(mine: csr_array, others: csr_array, mean: Vector, other_mean: Vector) -> Rows:
        by_latent = mine.T.tocsr()

        def rows(chosen: Tensor) -> Tensor:
            numbers = chosen.numpy()
            products = (by_latent[numbers] @ others).toarray()
            products -= np.outer(mean[numbers], other_mean)
            return _sign_kept_or_not(torch.from_numpy(products).float().clamp_(-1, 1), absolute)

        return rows

    return Similarity(
        (a.n_latents, b.n_latents),
        between(left, right, mean_left, mean_right),
        between(right, left, mean_right, mean_left),
    )


def _standardised(code: SparseCode) -> tuple[csr_array, Vector]:
    """The code over std * sqrt(N), and mean / std of each latent; latents that never change become 0."""
    values, n = code.values.double(), code.n_rows
    sums = torch.zeros(2, code.n_latents, dtype=torch.float64)
    mean, square = sums.index_add_(1, code.indices, torch.stack([values, values**2])) / n
    variance = square - mean**2
    std = variance.clamp_min(0).sqrt().where(variance > CONSTANT * square, torch.inf)
    scaled = values / std[code.indices] / n**0.5
    arrays = (scaled.numpy(), code.indices.int().numpy(), code.offsets.numpy())
    return csr_array(arrays, shape=(n, code.n_latents)), (mean / std).numpy()


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
) -> SparseCode:
    """Codes of a store's first `rows` held-out rows, or of all when there are fewer, on the CPU, without zeros.

    Two SAEs are shown the same rows, each at its own hook point. Memory: 12 bytes a firing. Raises RunError
    when the store has no held-out row, StoreError when it lacks the hook point, ShapeError on another width."""
    store.width(hook)  # refuses a hook point that is not there, naming those that are
    values, indices, counts = [], [], []
    left = rows
    for x, *_ in store.batches(hook, batch, "held-out"):
        code = sae.encode(x[:left].to(sae.device)).without_zeros()
        values.append(code.values.cpu())
        indices.append(code.indices.cpu())
        counts.append(code.offsets.diff().cpu())
        on_rows(code.n_rows)
        left -= code.n_rows
        if not left:
            break
    if not counts:
        raise RunError(f"{store.path} has no held-out rows: harvest more documents (one in ten is held out)")
    return SparseCode(torch.cat(values), torch.cat(indices), offsets_of(torch.cat(counts)), sae.d_sae)
