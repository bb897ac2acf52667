"""Score every method on one task: the AUC of each at each setting and number of columns, with intervals over reseeds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae import chance
from sae.architectures import SAE
from sae.code import SparseCode
from sae.probing import probes
from sae.probing.probes import Matrix, Penalty
from sae.probing.records import METHODS, SPARSE, Method, Score
from sae.probing.splits import Point, split
from sae.runs.records import Estimate

ROWS = 1024  # rows encoded at once


class Cell(NamedTuple):
    """One method at one point with one seed."""

    method: Method
    point: Point
    seed: int


def features(sae: SAE, x: Float[Tensor, "n D"], tokens: Matrix, seed: int) -> dict[Method, Matrix]:
    """Return what each method reads of the examples: activations [n, D], codes [n, F], counts of tokens [n, V].

    The random SAE is `sae` reading activations that were `turned`."""
    plain = x.numpy()
    codes = {"sae": encoded(sae, x), "random sae": encoded(sae, turned(sae, x, seed)[1])}
    return {name: codes.get(name, tokens if name == "tokens" else plain) for name in METHODS}


def turned(sae: SAE, x: Float[Tensor, "n D"], seed: int) -> tuple[Float[Tensor, "D D"], Float[Tensor, "n D"]]:
    """Return a random rotation and x turned about b_dec by it: each row minus b_dec times the rotation, plus b_dec.

    An SAE that reads the turned rows is a random one: its directions are random, its norms, biases, thresholds and the angles
    between its latents are the trained ones."""
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=chance.generator(seed)))[0]
    centre = sae.b_dec.detach().cpu()
    return turn, (x - centre) @ turn + centre


@torch.no_grad()
def encoded(sae: SAE, x: Float[Tensor, "n D"]) -> Matrix:
    """Return the codes of rows as a scipy CSR array [n, F]."""
    from scipy.sparse import vstack

    return vstack([as_csr(sae.encode(rows.to(sae.device))) for rows in x.split(ROWS)], format="csr")


def as_csr(code: SparseCode) -> Matrix:
    """Return a code as a scipy CSR array."""
    from scipy.sparse import csr_array

    code = code.without_zeros()
    parts = (code.values.float(), code.indices, code.offsets)
    return csr_array(tuple(part.cpu().numpy() for part in parts), shape=(code.n_rows, code.n_latents))


def counted(ids: Sequence[Sequence[int]], first: int) -> Matrix:
    """Return how often each token that occurs is in each text, without its `first` tokens, as a scipy CSR array."""
    from scipy.sparse import csr_array

    own = [np.asarray(each[first:], np.int64) for each in ids]
    _, column = np.unique(np.concatenate(own), return_inverse=True)
    rows = np.repeat(np.arange(len(own)), [*map(len, own)])
    return csr_array(
        (np.ones(len(rows), np.float32), (rows, column)), shape=(len(own), int(column.max()) + 1)
    )


def cells(points: Sequence[Point], seeds: Sequence[int]) -> list[Cell]:
    """Return everything there is to score."""
    return [Cell(*each) for each in product(METHODS, points, seeds)]


def cell_scores(
    cell: Cell, x: Matrix, labels: Bool[np.ndarray, "n"], ks: Sequence[int], penalty: Penalty
) -> list[tuple[int | None, float, list[int]]]:
    """Return (k, AUC, columns chosen) for each k that x has columns for; k is None for methods that read all columns."""
    from threadpoolctl import threadpool_limits

    train, test, y = split(labels, cell.point, cell.seed)
    truth, x_train, x_test = labels[test], x[train], x[test]
    with threadpool_limits(1):  # products are small: threads that wait for each other take ten times as long
        if cell.method in SPARSE:
            ks = [k for k in ks if k <= x.shape[1]]
            order = probes.strongest(x_train, y, max(ks, default=0))
            parts = [(k, probes.columns(x_train, order[:k]), probes.columns(x_test, order[:k])) for k in ks]
            return [
                (k, probes.auc(truth, probes.logistic(a, y, b, cell.seed, penalty)), order[:k].tolist())
                for k, a, b in parts
            ]
        rules: Mapping[str, Callable[[], Any]] = {
            "logistic": lambda: probes.logistic(x_train, y, x_test, cell.seed),
            "tokens": lambda: probes.logistic(x_train, y, x_test, cell.seed),
            "pca": lambda: probes.principal_components(x_train, y, x_test, cell.seed),
            "difference": lambda: probes.mean_difference(x_train, y, x_test),
        }
        return [(None, probes.auc(truth, rules[cell.method]()), [])]


def gathered(results: Sequence[tuple[Cell, list[tuple[int | None, float, list[int]]]]]) -> Iterator[Score]:
    """Yield one score for each method, k and point from the results of all its seeds."""
    grouped: dict[tuple[Method, int | None, Point], list[tuple[float, list[int]]]] = {}
    for cell, rows in results:
        for k, auc, columns in rows:
            grouped.setdefault((cell.method, k, cell.point), []).append((auc, columns))
    for (method, k, point), runs in grouped.items():
        aucs = [auc for auc, _ in runs]
        estimate = over_reseeds(aucs, point.n_train, point.n_test)
        yield Score(
            method, k, point.setting, point.level, point.n_train, point.n_test, estimate, aucs, runs[0][1]
        )


def over_reseeds(values: Sequence[float], n_train: int, n_test: int) -> Estimate:
    """Return the mean over reseeds with its 95 % interval; without one for a single reseed.

    Reseeds draw from the same examples, so that their spread alone is too small: this is the corrected resampled t interval of
    Nadeau and Bengio 2003, whose variance is s² (1 / J + n_test / n_train)."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, None, None)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / count + n_test / n_train)
    half = float(t.ppf(0.975, count - 1)) * spread
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0))
