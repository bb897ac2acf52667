"""Probes: which of two classes a text belongs to, by logistic regression on a few columns, on all, and by simpler rules.

`logistic`, `principal_components` and `strongest` follow sae-probes 0.4.2 (`utils_training.py`, `run_sae_evals.py`)."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Matrix = Any
"""Rows of features: a numpy array or a scipy CSR array."""
Penalty = Literal["l1", "l2"]
STRENGTHS = np.logspace(5, -5, 10)
"""Inverse regularisation strengths that are compared."""
MOST_COMPONENTS = 100


def logistic(
    x: Matrix, y: Bool[np.ndarray, "n"], x_test: Matrix, seed: int, penalty: Penalty = "l2"
) -> Float[np.ndarray, "m"]:
    """Return each test row's probability of the second class, by logistic regression.

    The regularisation is chosen by AUC on validation rows within the training rows: the last 100 or fifth of them; below 128
    rows six folds; up to 12 rows all pairs; up to 3 rows none is chosen. Features are used as they are."""
    return _chosen(x, y, seed, penalty).predict_proba(x_test)[:, 1]


def weights(x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"], seed: int) -> Float[np.ndarray, "D"]:
    """Return the weights of the regression of `logistic`: the direction in which rows look more like the second class."""
    return _chosen(x, y, seed, "l2").coef_[0]


def principal_components(
    x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"], x_test: Float[np.ndarray, "m D"], seed: int
) -> Float[np.ndarray, "m"]:
    """Return each test row's probability of the second class, by logistic regression on the first principal components.

    Their number, of ten from 1 to 100, is chosen as in `logistic`. Columns are standardised first."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    most = min(*x.shape, MOST_COMPONENTS)
    scaler, pca = StandardScaler(), PCA(n_components=most, random_state=seed)
    z = pca.fit_transform(scaler.fit_transform(x))
    z_test = pca.transform(scaler.transform(x_test))
    counts = np.unique(np.logspace(0, np.log2(most), num=10, base=2, dtype=int))
    count = most
    if len(x) > 3:
        folds = [*_folds(y, seed)]
        count = counts[np.argmax([_validated(z[:, :n], y, folds, 1.0, seed, "l2") for n in counts])]
    return _fitted(z[:, :count], y, 1.0, seed, "l2").predict_proba(z_test[:, :count])[:, 1]


def mean_difference(
    x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"], x_test: Float[np.ndarray, "m D"]
) -> NDArray[Any]:
    """Return the projection of each test row on the difference of the two classes' means."""
    return x_test @ (x[y].mean(0) - x[~y].mean(0))


def strongest(x: Matrix, y: Bool[np.ndarray, "n"], count: int) -> Int[np.ndarray, "k"]:
    """Return the columns whose class means differ most, the most different first.

    Each column is first divided by the mean size of its non-zero values, so that rare strong latents and frequent weak ones
    compare."""
    size = np.asarray(abs(x).sum(0)).ravel() / (np.asarray((x != 0).sum(0)).ravel() + 1e-6)
    means = [np.asarray(x[side].mean(0)).ravel() for side in (y, ~y)]
    return np.argsort(-abs(means[0] - means[1]) / (size + 1e-6), kind="stable")[:count]


def columns(x: Matrix, which: Int[np.ndarray, "k"]) -> Float[np.ndarray, "n k"]:
    """Return some columns, dense."""
    chosen = x[:, which]
    return chosen if isinstance(chosen, np.ndarray) else chosen.toarray()


def auc(y: Bool[np.ndarray, "n"], score: Float[np.ndarray, "n"]) -> float:
    """Return the area under the ROC curve: how often a row of the second class scores higher than one of the first."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, score))


def _chosen(x: Matrix, y: Bool[np.ndarray, "n"], seed: int, penalty: Penalty) -> Any:
    """Return a logistic regression fitted with the strength of regularisation that validates best."""
    strength = 1.0
    if x.shape[0] > 3:
        folds = [*_folds(y, seed)]
        scores = [_validated(x, y, folds, float(c), seed, penalty) for c in STRENGTHS]
        strength = float(STRENGTHS[np.argmax(scores)])
    order = np.random.RandomState(seed).permutation(x.shape[0])
    return _fitted(x[order], y[order], strength, seed, penalty)


def _folds(y: Bool[np.ndarray, "n"], seed: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield the training and the validation rows of each fold, with both classes among the latter where folds are drawn."""
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    n = len(y)
    if n >= 128:
        first = n - min(int(0.2 * n), 100)
        yield np.arange(first), np.arange(first, n)
        return
    folds = LeavePOut(2) if n <= 12 else StratifiedKFold(n_splits=6, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer rows than folds
        for train, validation in folds.split(y, y):
            if len(np.unique(y[validation])) == 2:
                yield train, validation


def _validated(
    x: Matrix,
    y: Bool[np.ndarray, "n"],
    folds: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    strength: float,
    seed: int,
    penalty: Penalty,
) -> float:
    """Return the mean AUC over folds; .5 stands for a fold with one class, of which there is no AUC."""
    scores = []
    for train, validation in folds:
        if len(np.unique(y[train])) < 2 or len(np.unique(y[validation])) < 2:
            scores.append(0.5)
            continue
        model = _fitted(x[train], y[train], strength, seed, penalty)
        scores.append(auc(y[validation], model.predict_proba(x[validation])[:, 1]))
    return float(np.mean(scores)) if scores else 0.5


def _fitted(x: Matrix, y: Bool[np.ndarray, "n"], strength: float, seed: int, penalty: Penalty) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    lasso: dict[str, Any] = {"l1_ratio": 1, "solver": "saga"} if penalty == "l1" else {}
    with warnings.catch_warnings():
        # With next to no regularisation a separable task has no end: the limit of iterations is part of the protocol
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000, random_state=seed, **lasso).fit(x, y)
