"""Forecast the side effects of steering by a latent from columns that are measured already: geometry, co-activation, logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from activations.language_model import LanguageModel
from sae.architectures import SAE
from sae.evaluation import bootstrap
from sae.evaluation.measures import Estimate
from sae.features.folder import FeaturesFolder
from sae.runs.records import FeatureRow
from sae.steering.arms import Bench, Push, kl_of

FOLDS = 8
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Strengths of the ridge penalty that are compared."""
RESAMPLES = 1000
PREDICTORS = ("energy", "mean_cosine", "footprint", "cofiring", "largest", "density")
Array = NDArray[np.float64]


class Fit(NamedTuple):
    """A ridge regression from `predictors` to the normal scores of what was measured."""

    weights: Float[np.ndarray, "P"]
    penalty: float

    def forecast(self, x: Float[np.ndarray, "n P"]) -> Float[np.ndarray, "n"]:
        """Return scores whose order is the forecast."""
        return x @ self.weights


def predictors(features: FeaturesFolder, sae: SAE) -> Float[np.ndarray, "F P"]:
    """Return the normal scores of every latent in each of PREDICTORS.

    A column is replaced by the ranks of its values, brought to the standard normal distribution, so that no unit and no outlier
    matters. A latent without a value, such as one that never fired, has the middle rank."""
    rows: list[FeatureRow] = features.table.to_pylist()  # type: ignore[assignment]
    decoder = sae.W_dec.detach().double().cpu()
    unit = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    density, mean, std = (
        torch.tensor([_number(row.get(name)) for row in rows], dtype=torch.float64)
        for name in ("density", "mean", "std")
    )
    # Activations vary by about the sum over latents of E[f^2] d d^T, each latent on its own. Where they vary much anyway, what
    # reads them is used to it. A latent's own part is left out: it only says how strong the latent is.
    squares = density * (mean**2 + std**2)
    moment = (decoder * squares[:, None]).T @ decoder
    energy = ((unit @ moment) * unit).sum(1) - squares * decoder.square().sum(1)
    average = sae.b_dec.detach().double().cpu() + (density * mean) @ decoder
    columns = {
        "energy": energy.tolist(),
        "mean_cosine": (unit @ average / average.norm().clamp_min(1e-12)).tolist(),
        "footprint": [_footprint(row) for row in rows],
        "cofiring": [max(row.get("cofiring_pmi") or [], default=math.nan) for row in rows],
        "largest": [max(row["max"] or 0.0, -(row["min"] or 0.0)) or math.nan for row in rows],
        "density": [row["density"] for row in rows],
    }
    return np.stack([_scores(np.array(columns[name], np.float64)) for name in PREDICTORS], 1)


def _number(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def _footprint(row: FeatureRow) -> float:
    raised, lowered = row.get("raised_logits") or [], row.get("lowered_logits") or []
    return float(np.mean(raised) - np.mean(lowered)) if raised and lowered else math.nan


def _scores(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Return the normal scores of the values' ranks; 0, the middle, where there is none."""
    known = ~np.isnan(values)
    scores = np.zeros(len(values))
    scores[known] = norm.ppf(rankdata(values[known]) / (known.sum() + 1))
    return scores


def fit(x: Float[np.ndarray, "n P"], y: Float[np.ndarray, "n"], seed: int = 0) -> Fit:
    """Fit the normal scores of y; the penalty that predicts left-out rows best is chosen."""
    penalty = max(STRENGTHS, key=lambda strength: _correlation(_left_out(x, y, strength, seed), y))
    return Fit(_ridge(x, _scores(y), penalty), penalty)


def out_of_sample(
    x: Float[np.ndarray, "n P"], y: Float[np.ndarray, "n"], seed: int = 0
) -> Float[np.ndarray, "n"]:
    """Return a forecast for every row by a fit that has seen neither it nor, for its penalty, any row of its fold."""
    out = np.zeros(len(y))
    for fold in _folds(len(y), seed):
        others = np.setdiff1d(np.arange(len(y)), fold)
        out[fold] = fit(x[others], y[others], seed + 1).forecast(x[fold])
    return out


def rank_correlation(forecast: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Estimate:
    """Return Spearman's correlation with a 95 % bootstrap interval over rows."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(y), size=(RESAMPLES, len(y)))
    low, high = bootstrap.limits(np.array([[_correlation(forecast[draw], y[draw])] for draw in draws]))
    return Estimate(_correlation(forecast, y), float(low[0]), float(high[0]))


def side_effect(
    model: LanguageModel,
    bench: Bench,
    rows: Float[Tensor, "n D"],
    length: float,
    clean: Float[Tensor, "W P V"],
) -> list[float]:
    """Return the mean KL on unrelated text where every activation moves by `length` along each of the rows, nats."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    with torch.no_grad():
        return [float(kl_of(model, bench, Push(row * length), clean).mean()) for row in unit]


def shares(forecast: Float[np.ndarray, "F"], among: Sequence[int]) -> Float[np.ndarray, "F"]:
    """Return for every latent the share of the latents `among` whose forecast is lower."""
    ordered = np.sort(forecast[list(among)])
    return np.searchsorted(ordered, forecast, side="left") / len(ordered)


def _correlation(a: Array, b: Array) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _folds(n: int, seed: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.random.default_rng(seed).permutation(n), min(FOLDS, n))


def _left_out(x: Array, y: Array, strength: float, seed: int) -> Array:
    out = np.zeros(len(y))
    for fold in _folds(len(y), seed):
        others = np.setdiff1d(np.arange(len(y)), fold)
        out[fold] = x[fold] @ _ridge(x[others], _scores(y[others]), strength)
    return out


def _ridge(x: Array, y: Array, strength: float) -> Array:
    return np.asarray(np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y), np.float64)
