"""Ridge regression in closed form, in float64: y ~ x w + b with the bias free."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FOLDS = 5


def fit(
    x: Float[Tensor, "n D"], y: Float[Tensor, "n"], penalties: Sequence[float]
) -> tuple[Float[Tensor, "L D"], Float[Tensor, "L"]]:
    """For each penalty, the w and b that make sum of (x w + b - y)^2 + penalty * |w|^2 least; float64."""
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean()
    centred = x - x_mean
    gram, target = centred.T @ centred, centred.T @ (y - y_mean)
    ones = torch.eye(len(gram), dtype=gram.dtype)
    w = torch.stack([torch.linalg.solve(gram + penalty * ones, target) for penalty in penalties])
    return w, y_mean - w @ x_mean


def cross_validated(x: Float[Tensor, "n D"], y: Float[Tensor, "n"], penalties: Sequence[float]) -> float:
    """The penalty of least squared error in five-fold cross-validation; the first of equals.

    Rows of one label stay together: those of one document would else be on both sides, and be remembered.
    Needs two different labels at least."""
    values, place = y.unique(return_inverse=True)
    folds = min(FOLDS, len(values))
    fold = (torch.randperm(len(values), generator=torch.Generator().manual_seed(0)) % folds)[place]
    errors = torch.zeros(len(penalties), dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        w, b = fit(x[~out], y[~out], penalties)
        errors += (x[out].double() @ w.T + b - y[out, None]).square().sum(0)
    return penalties[int(errors.argmin())]
