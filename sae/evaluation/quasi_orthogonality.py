"""Ask of every row how far from orthogonal a dictionary must be for the code to have the norm that it has.

"Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality", arXiv:2503.24277; the norm of the code
as in the notebook of ZF plots of the authors' code, SewoongLee/top-afa-sae 1c7a683."""

from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures import SAE
from sae.code import SparseCode

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
POINTS = 300


class Quasi(TypedDict):
    """What `summary` returns, as eval.json has it (FORMAT.md)."""

    rows: int
    silent: int
    eps_lbo: dict[str, float]
    input_norms: list[float]
    code_norms: list[float]


def code_norm(sae: SAE, code: SparseCode) -> Float[Tensor, "B"]:
    """Return the norm of each row's code in float64: the values times their decoder rows' norms, and |b_dec| as one more.

    It is the norm that the reconstruction has where the decoder rows in use and b_dec are orthogonal."""
    squares = (code.values.double() * code.spread(sae.W_dec.double().norm(dim=1))) ** 2
    sums = squares.new_zeros(code.n_rows).index_add(0, code.rows(), squares)
    return (sums + sae.b_dec.double().square().sum()).sqrt()


def eps_lbo(input_norm: Float[Tensor, "B"], code_norm: Float[Tensor, "B"], d_sae: int) -> Float[Tensor, "B"]:
    """Return, for each row, | |x|^2 - |f|^2 | / ((d_sae - 1) |f|^2), the paper's lower bound on epsilon.

    Were the cosines of all pairs of decoder rows at most epsilon, then |f|^2 would lie between |x|^2 / (1 + epsilon (d_sae - 1))
    and |x|^2 / (1 - epsilon (d_sae - 1)); this is the least epsilon for which it does. It is infinite for an f of zero where
    x is not zero, and 0 where both are. `d_sae` must be at least 2."""
    assert d_sae >= 2
    x, f = input_norm.double().square(), code_norm.double().square()
    return torch.where(x == f, 0.0, (x - f).abs() / ((d_sae - 1) * f))


def summary(input_norms: Float[Tensor, "N"], code_norms: Float[Tensor, "N"], d_sae: int) -> Quasi:
    """Return the quantiles of eps_LBO over the rows where it is finite, and up to 300 rows' norms for a plot.

    `silent` counts the rows where it is infinite. The rows for the plot are drawn without replacement, the same each time.
    `eps_lbo` is empty where no row has a finite one."""
    eps = eps_lbo(input_norms, code_norms, d_sae).numpy()
    finite = eps[np.isfinite(eps)]
    chosen = np.random.default_rng(0).permutation(len(eps))[:POINTS]
    return {
        "rows": len(eps),
        "silent": len(eps) - len(finite),
        "eps_lbo": {str(q): float(np.quantile(finite, q)) for q in QUANTILES} if len(finite) else {},
        "input_norms": input_norms[chosen].tolist(),
        "code_norms": code_norms[chosen].tolist(),
    }
