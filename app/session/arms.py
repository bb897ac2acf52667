"""What `sae steer --compare` and `--forecast` measured of runs, read once for each state of the files."""

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from app.session import beside
from app.session.runs import stamp
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX as FEATURES
from sae.report import steering as steering_report
from sae.runs.arms import FOLDER, FORECAST, INDEX, ArmsRecord, ForecastRecord, read_arms, read_forecast
from sae.runs.run import Run
from sae.steering.arms import ArmsConfig
from sae.workflows.forecast import forecast_shares, holds


class Forecast(NamedTuple):
    """A forecast of side effects."""

    record: ForecastRecord
    shares: list[float] | None
    """For every latent the share of latents with weaker side effects; None where the forecast does not hold."""


def of(run: Run) -> ArmsRecord | None:
    """Return how steering by latents compares with its rivals in this run; None where that was not measured. Damage is reported in
    the page."""
    path = run.path / FOLDER / INDEX
    return beside.reported(lambda: _arms(run.path, stamp(path), run.digest)) if path.exists() else None


def forecast(run: Run) -> Forecast | None:
    """Return the forecast of side effects made of the run's features; None where there is none. Damage is reported in the page."""
    path, features = run.path / FOLDER / FORECAST, run.path / "features" / FEATURES
    return (
        beside.reported(lambda: _forecast(run.path, stamp(path), stamp(features))) if path.exists() else None
    )


def goes_on(record: ForecastRecord) -> str:
    """Return the options of `sae steer` that go on with a forecast: with other settings than it was begun with, it would start over."""
    usual, options = ArmsConfig(), f"--forecast {len(record.latents)}"
    for name, value in (
        ("unrelated_windows", record.windows),
        ("window_tokens", record.window_tokens),
        ("arms_seed", record.arms_seed),
    ):
        if value != getattr(usual, name):
            options += f" --{name.replace('_', '-')} {value}"
    return options


def side_effects(run: Run, latent: int) -> str:
    """Return how strong the side effects of steering by a feature are forecast to be, as a line; empty where that is not known."""
    found = forecast(run)
    return steering_report.side_effects(found.shares[latent]) if found and found.shares else ""


# The stamps are part of the keys, so that the results of another `sae steer` show up.
@st.cache_resource(max_entries=8, show_spinner=False)
def _arms(path: Path, stamp: tuple[int, int], digest: str) -> ArmsRecord | None:
    return read_arms(Run(path))


@st.cache_resource(max_entries=4, show_spinner=False)
def _forecast(path: Path, stamp: tuple[int, int], features_stamp: tuple[int, int]) -> Forecast | None:
    run, store = Run(path), FeatureStore(path / "features")
    record = read_forecast(run, store.digest)
    if record is None:
        return None
    return Forecast(record, forecast_shares(store, record, run.sae()) if holds(record) else None)
