"""The forecast of side effects: planted relations are foreseen on unseen rows, noise is not, and work goes on where it stopped."""

import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from activations.errors import ConfigError
from activations.language_model import load
from sae.features.feature import FeatureStore
from sae.report import arms as arms_report
from sae.runs.arms import FOLDER, FORECAST, read_forecast
from sae.runs.run import Run
from sae.steering import forecast
from sae.steering.arms import ArmsConfig
from sae.workflows.forecast import SHARE, forecast_shares, forecast_side_effects, holds
from tests import tiny

FEW = ArmsConfig(unrelated_windows=2, window_tokens=6)


def planted(seed: int, signal: float, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 11))
    return x, np.exp(signal * (x[:, 2] - x[:, 7]) + rng.normal(size=n))


def test_a_planted_relation_is_foreseen_on_unseen_rows_and_noise_is_not():
    x, y = planted(0, 1.0)
    found = forecast.rank_correlation(forecast.out_of_sample(x, y), y)
    assert found.value > 0.6
    assert found.low > 0.4
    nulls = [
        forecast.rank_correlation(forecast.out_of_sample(*planted(seed, 0.0)), planted(seed, 0.0)[1])
        for seed in range(1, 11)
    ]
    assert abs(np.mean([each.value for each in nulls])) < 0.15
    assert sum(each.value >= 0.3 and each.low > 0 for each in nulls) == 0


def test_no_row_is_forecast_by_a_fit_that_saw_it():
    x, y = planted(3, 1.0, 40)
    before = forecast.out_of_sample(x, y)
    y[5] = y.max() * 10
    assert forecast.out_of_sample(x, y)[5] == pytest.approx(before[5])


def test_the_rank_correlation_is_spearman_s():
    a, b = planted(4, 1.0)
    found = forecast.rank_correlation(a[:, 2], b)
    assert found.value == pytest.approx(spearmanr(a[:, 2], b).statistic)
    assert found.low < found.value < found.high


@pytest.fixture
def run(world, tmp_path) -> Run:
    return Run(shutil.copytree(world / "runs" / "toy", tmp_path / "run"))


def test_predictors_have_a_column_each_and_no_gap(run):
    features, sae = FeatureStore(run.path / "features"), run.sae()
    x = forecast.predictors(features, sae)
    assert x.shape == (len(features), len(forecast.PREDICTORS))
    assert np.isfinite(x).all()
    density = np.array(features.table["density"].to_pylist())
    assert spearmanr(x[:, [*forecast.PREDICTORS].index("density")], density).statistic == pytest.approx(1)
    # the energy along a row, written out: the sum over the other latents of E[f^2] cos^2, times their rows' squared norms
    rows = features.table.to_pylist()
    squares = [row["density"] * ((row["mean"] or 0) ** 2 + (row["std"] or 0) ** 2) for row in rows]
    decoder = sae.W_dec.double().numpy()
    energy = [
        sum(
            squares[other] * (decoder[other] @ decoder[own] / np.linalg.norm(decoder[own])) ** 2
            for other in range(len(rows))
            if other != own
        )
        for own in range(len(rows))
    ]
    column = x[:, [*forecast.PREDICTORS].index("energy")]
    assert spearmanr(column, energy).statistic == pytest.approx(1)


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(run, world, tmp_path, monkeypatch):
    monkeypatch.setattr("sae.workflows.forecast.LEAST_FIRINGS", 1)
    model = load(str(world / "model"))
    other = Run(shutil.copytree(run.path, tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        forecast_side_effects(run, 24, FEW, model, tiny.Told(end_at=0.5))
    features = FeatureStore(run.path / "features")
    begun = read_forecast(run, features.digest)
    assert begun and 0 < len(begun.kl) < 24 and begun.correlation is None
    assert not holds(begun)
    record = forecast_side_effects(run, 24, FEW, model)
    assert record.kl[: len(begun.kl)] == begun.kl
    forecast_side_effects(other, 24, FEW, model)
    written = (run.path / FOLDER / FORECAST).read_bytes()
    assert written == (other.path / FOLDER / FORECAST).read_bytes()
    more = forecast_side_effects(run, 26, FEW, model)
    assert more.kl[:24] == record.kl
    assert forecast_side_effects(run, 24, FEW, model) == more
    assert read_forecast(run, features.digest) == more
    assert read_forecast(run, "of other features") is None
    shares = forecast_shares(features, record, run.sae())
    assert 0 <= min(shares) < max(shares) <= 1
    assert f"{SHARE:g} of the norm" in arms_report.forecast(record, holds(record))


def test_few_latents_are_refused_and_a_weak_forecast_is_not_shown(run):
    with pytest.raises(ConfigError, match="24"):
        forecast_side_effects(run, 5)
    record = None
    assert not holds(record)
