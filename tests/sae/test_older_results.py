"""Results of an older format, which was computed differently, count as missing, and a line says how to make them anew."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from activations.disk import files
from activations.errors import RunError
from sae.architectures import AbsTopKConfig
from sae.features.explanations import explanations_of
from sae.features.feature import features_of
from sae.probing.absorption import AbsorptionRecord
from sae.probing.records import Monitor, ProbesRecord
from sae.rules.explaining import ExplainConfig
from sae.runs.arms import ArmsRecord, ForecastRecord, Nulls, read_arms, read_forecast
from sae.runs.run import Run
from sae.runs.saved_sae import read_results
from sae.workflows.absorption import read_absorption
from sae.workflows.compare import keep, kept, match_runs
from sae.workflows.explain import explain
from sae.workflows.find import LatentPooling, load_monitor
from sae.workflows.probe import read_probes
from tests import tiny


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(world / "runs" / "toy", tmp_path / "run"))


@pytest.fixture(params=[[], None], ids=["no BOS", "no store"])
def without_a_bos(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what takes the BOS from a run's windows, or the store that tells of it."""
    return lambda: monkeypatch.setattr(Run, "first_tokens", request.param)


def test_an_older_file_is_missing_and_a_newer_one_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "probes.json"
    record = ProbesRecord(2, "0", "h", {}, [])

    def read(format: int, unchanged: bool = False) -> ProbesRecord | None:
        files.write_sealed(path, asdict(record) | {"format": format})
        return read_results(path, "probes", 2, ProbesRecord, "sae probe R", None, lambda record: unchanged)

    assert read_results(path, "probes", 2, ProbesRecord, "sae probe R") is None
    assert read(2) == record and not caplog.messages
    assert read(1, unchanged=True) == ProbesRecord(1, "0", "h", {}, []) and not caplog.messages
    with caplog.at_level(logging.WARNING):
        assert read(1) is None is read(1)
    (line,) = caplog.messages
    assert line.startswith(f"{path} is of probes format 1") and line.endswith("sae probe R")
    with pytest.raises(RunError, match="probes format 3, this release reads up to 2"):
        read(3)


def test_an_older_file_is_missing_also_without_its_number_or_a_field_of_today(tmp_path: Path):
    path = tmp_path / "probes.json"
    whole = {"sae_sha256": "0", "hook": "h", "config": {}, "tasks": []}

    def read() -> ProbesRecord | None:
        return read_results(path, "probes", 2, ProbesRecord, "sae probe R", None, lambda record: True)

    files.write_sealed(path, whole)
    assert read() is None
    files.write_sealed(path, {"format": 1, "sae_sha256": "0", "hook": "h"})
    assert read() is None
    files.write_sealed(path, {"format": 2, "sae_sha256": "0", "hook": "h"})
    with pytest.raises(RunError, match="damaged"):
        read()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_explanations_had_other_random_directions(run: Run, number: int):
    explained = explain(run, ExplainConfig(controls=4, least_firings=2, embeddings=False))
    path = explained.path / "explanations.json"
    files.write_sealed(path, files.read_json(path) | {"format": number})
    assert explanations_of(features_of(run)) is None
    explain(run, ExplainConfig(controls=4, least_firings=2, embeddings=False))
    assert files.read_json(path)["format"] == 4


@pytest.mark.parametrize("signed", [False, True])
def test_absorption_of_signed_latents_was_measured_by_one_sign(
    world: Path, tmp_path: Path, run: Run, signed: bool
):
    if signed:
        out = tmp_path / "signed"
        run = tiny.run(
            Path(shutil.copytree(world, tmp_path / "world")), "signed", AbsTopKConfig(d_sae=32, k=4), 2, out
        )
    record = AbsorptionRecord(1, run.digest, run.hook, {}, 0, {"sae": [], "random sae": []}, complete=True)
    files.write_sealed(run.path / "absorption.json", asdict(record))
    assert read_absorption(run) == (None if signed else record)


def test_arms_and_forecasts_took_other_unrelated_text_and_random_directions(run: Run):
    arms = ArmsRecord(4, run.digest, run.hook, 1.0, {}, [], [], Nulls(0, 0), {})
    forecast = ForecastRecord(4, run.digest, "features", 0.3, 6, 32, [1], [0.1])
    for number in (1, 2, 3, 4):
        files.write_sealed(run.path / "arms" / "arms.json", asdict(arms) | {"format": number})
        files.write_sealed(run.path / "arms" / "forecast.json", asdict(forecast) | {"format": number})
        found = read_arms(run), read_forecast(run, "features")
        assert found == ((arms, forecast) if number == 4 else (None, None))


def test_means_without_a_bos_counted_the_first_token(run: Run, without_a_bos: Callable[[], None]):
    probes = {
        pooling: ProbesRecord(1, run.digest, run.hook, {"pooling": pooling}, [])
        for pooling in ("mean", "last")
    }
    files.write_sealed(run.path / "probes.json", asdict(probes["mean"]))
    assert read_probes(run) == probes["mean"]
    without_a_bos()
    assert read_probes(run) is None
    files.write_sealed(run.path / "probes.json", asdict(probes["last"]))
    assert read_probes(run) == probes["last"]


def test_a_monitor_whose_threshold_counts_the_first_token_is_refused(
    run: Run, without_a_bos: Callable[[], None]
):
    poolings: dict[str, LatentPooling] = {"largest": "max", "last": "last"}
    for name, pooling in poolings.items():
        monitor = Monitor(
            1, name, run.digest, run.hook, 3, 1, pooling, 64, 0.5, 0.05, 0.9, 0.8, 0.1, [9, 9], 9
        )
        files.write_sealed(run.path / "monitors" / f"{name}.json", asdict(monitor))
        assert load_monitor(run, name) == monitor
    without_a_bos()
    assert load_monitor(run, "last").pooling == "last"
    with pytest.raises(RunError, match="first token") as caught:
        load_monitor(run, "largest")
    assert caught.value.fix == f"rm {run.path / 'monitors' / 'largest.json'}"


def test_a_monitor_that_leaves_out_negative_values_is_refused_where_latents_are_signed(
    world: Path, tmp_path: Path, run: Run
):
    signed = tiny.run(
        Path(shutil.copytree(world, tmp_path / "world")),
        "signed",
        AbsTopKConfig(d_sae=32, k=4),
        2,
        tmp_path / "signed",
    )
    for one in (run, signed):
        monitor = Monitor(2, "m", one.digest, one.hook, 3, 1, "max", 64, 0.5, 0.05, 0.9, 0.8, 0.1, [9, 9], 9)
        files.write_sealed(one.path / "monitors" / "m.json", asdict(monitor))
    assert load_monitor(run, "m").latent == 3
    with pytest.raises(RunError, match="negative values"):
        load_monitor(signed, "m")


def test_evaluations_and_comparisons_have_a_format_too(run: Run, world: Path):
    assert run.evaluation is not None
    path = run.path / "eval.json"
    files.write_sealed(path, files.read_json(path) | {"format": 3})
    with pytest.raises(RunError, match="evaluation format 3"):
        _ = run.evaluation
    files.write_sealed(path, files.read_json(path) | {"format": 1})
    assert run.evaluation is None, "the language model read windows of few documents"
    files.write_sealed(path, files.read_json(path) | {"splice": None})
    assert run.evaluation is not None
    other = Run(world / "runs" / "toy")
    path = keep(run, other, match_runs(run, other))
    assert kept(run, other) is not None
    files.write_sealed(path, files.read_json(path) | {"format": 0})
    assert kept(run, other) is None
