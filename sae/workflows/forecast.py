"""Measure the side effects of steering by some latents, and forecast those of all others from columns that are known."""

from dataclasses import asdict, replace

import numpy as np
import torch

from activations.disk import files
from activations.errors import ConfigError
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.architectures import SAE
from sae.features.feature import features_of
from sae.features.folder import FeaturesFolder
from sae.runs.arms import FOLDER, FORECAST, FORMAT, ForecastRecord, read_forecast
from sae.runs.run import Run
from sae.steering import forecast
from sae.steering.arms import ArmsConfig, unsteered
from sae.workflows.arms import bench_of
from sae.workflows.probe import model_of

SHARE = 0.3  # of the norm, by which activations are moved
LEAST, LEAST_FIRINGS = 24, 20
AT_ONCE = 8  # latents after which the result is written
HOLDS = 0.3
"""Rank correlation on unseen latents from which on a forecast is shown."""


def forecast_side_effects(
    run: Run,
    latents: int,
    cfg: ArmsConfig | None = None,
    model: LanguageModel | None = None,
    progress: Progress = no_progress,
) -> ForecastRecord:
    """Measure what steering by `latents` latents does to unrelated text, learn to foresee it, and write `arms/forecast.json`.

    They are drawn at random from those that fire at least 20 times. How well the forecast holds is measured on latents that it
    had not seen, in eight folds. Interrupted and called again, it goes on; more latents add to those that are measured, and fewer drop
    none of them.

    Raises ConfigError for fewer than 24 latents, RunError for a run without features or held-out text, BusyError when another
    process works in the folder."""
    if latents < LEAST:
        raise ConfigError(
            f"forecast = {latents} latents must be at least {LEAST}: fewer tell nothing about the others"
        )
    cfg = cfg or ArmsConfig()
    features, sae = features_of(run), run.sae()
    (run.path / FOLDER).mkdir(exist_ok=True)
    with files.alone_in(run.path / FOLDER):
        files.sweep(run.path / FOLDER)
        record = _begun(run, features, latents, cfg)
        if len(record.kl) < len(record.latents):
            record = _measured(run, sae, features, record, cfg, model or model_of(run), progress)
        x, y = forecast.predictors(features, sae)[record.latents], np.array(record.kl)
        correlation = forecast.rank_correlation(forecast.out_of_sample(x, y), y)
        weights = dict(zip(forecast.PREDICTORS, forecast.fit(x, y).weights.tolist(), strict=True))
        record = replace(record, correlation=correlation, weights=weights)
        files.write_sealed(run.path / FOLDER / FORECAST, asdict(record))
    return record


def _begun(run: Run, features: FeaturesFolder, latents: int, cfg: ArmsConfig) -> ForecastRecord:
    """Return what is measured already of the latents that are wanted."""
    fired = np.array([count or 0 for count in features.table["fired"].to_pylist()])
    alive = np.flatnonzero(fired >= LEAST_FIRINGS)
    chosen = np.random.default_rng(cfg.arms_seed).permutation(alive)[:latents].tolist()
    if len(chosen) < LEAST:
        raise ConfigError(
            f"{run.path} has {len(chosen)} latents that fire at least {LEAST_FIRINGS} times, and a forecast needs {LEAST}"
        )
    wanted = ForecastRecord(
        FORMAT,
        run.digest,
        features.digest,
        SHARE,
        cfg.unrelated_windows,
        cfg.window_tokens,
        chosen,
        [],
        arms_seed=cfg.arms_seed,
    )
    before = read_forecast(run, features.digest)
    # Older releases do not tell the seed; the latents that it drew do
    if before is None or replace(
        before, format=FORMAT, latents=[], kl=[], correlation=None, weights={}, arms_seed=cfg.arms_seed
    ) != replace(wanted, latents=[]):
        return wanted
    measured = before.latents[: len(before.kl)]
    shared = min(len(chosen), len(measured))
    if measured[:shared] != chosen[:shared]:
        return wanted
    return replace(wanted, latents=[*chosen, *measured[len(chosen) :]], kl=before.kl)


def _measured(
    run: Run,
    sae: SAE,
    features: FeaturesFolder,
    record: ForecastRecord,
    cfg: ArmsConfig,
    model: LanguageModel,
    progress: Progress,
) -> ForecastRecord:
    """Return the record with all of its latents measured; it is written as it grows."""
    bench = bench_of(run, model, cfg)
    clean = unsteered(model, bench)
    with progress("forecast", len(record.latents), "latents", len(record.kl)) as advance:
        while len(record.kl) < len(record.latents):
            some = record.latents[len(record.kl) : len(record.kl) + AT_ONCE]
            rows = sae.W_dec[torch.tensor(some)].detach().float().cpu()
            kl = forecast.side_effect(model, bench, rows, SHARE * features.record.unit, clean)
            record = replace(record, kl=[*record.kl, *kl])
            files.write_sealed(run.path / FOLDER / FORECAST, asdict(record))
            advance(len(some))
    return record


def holds(record: ForecastRecord | None) -> bool:
    """Return whether a forecast is worth showing: a rank correlation on unseen latents of at least HOLDS, with an interval above 0."""
    found = record and record.correlation
    return bool(found and (found.value or 0.0) >= HOLDS and (found.low or 0.0) > 0)


def forecast_shares(features: FeaturesFolder, record: ForecastRecord, sae: SAE) -> list[float]:
    """Return for every latent the share of the latents that fire whose side effects are forecast to be weaker."""
    x = forecast.predictors(features, sae)
    scores = x @ np.array([record.weights[name] for name in forecast.PREDICTORS])
    fired = np.array([count or 0 for count in features.table["fired"].to_pylist()])
    return forecast.shares(scores, np.flatnonzero(fired >= LEAST_FIRINGS).tolist()).tolist()
