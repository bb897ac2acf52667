"""The Steering page shows how steering by latents compares with its rivals: the report's HTML, concept by concept."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from tyro.conf import OmitArgPrefixes

from activations.disk import files
from app.session import arms
from sae.cli import arguments, steer
from sae.features.feature import FeatureStore
from sae.report import arms as report
from sae.report import render
from sae.runs.arms import FORMAT, ArmsRecord, ForecastRecord, Nulls
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.steering.forecast import PREDICTORS
from sae.workflows.arms import _overall
from tests.app.pages import button, source, text
from tests.sae.test_arms import planted_record

HOSTILE = "<i>praise</i>"  # what the planted concept is called; its texts are markup too


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Run:
    """Return a run that may be changed."""
    return Run(shutil.copytree(runs / "toy", tmp_path / "runs" / "toy"))


@pytest.fixture
def page(show, run: Run):
    """Return a function that opens the Steering page of the run."""
    return lambda **query: show("steering", folder=run.path.parent, run="toy", **query)


@pytest.fixture
def record(run: Run) -> ArmsRecord:
    """Return arms of three concepts, which lie in the run."""
    return recorded(run)


def recorded(run: Run) -> ArmsRecord:
    """Write arms of three concepts, which chose latents 17, 2 and 5, into a run, and return them."""
    planted = planted_record()
    (one,) = planted.concepts
    concepts = [one, replace(one, name="rain", latent=2, sign=-1), replace(one, name="birds", latent=5)]
    record = replace(
        planted,
        format=FORMAT,
        sae_sha256=run.digest,
        concepts=concepts,
        overall=_overall(concepts),
        nulls=Nulls(18, 1),
    )
    written(run, record)
    return record


def written(run: Run, record: ArmsRecord | ForecastRecord) -> Path:
    name = "arms.json" if isinstance(record, ArmsRecord) else "forecast.json"
    (run.path / "arms").mkdir(exist_ok=True)
    files.write_sealed(run.path / "arms" / name, asdict(record))
    return run.path / "arms" / name


def chooser(at: AppTest):
    return next(box for box in at.selectbox if box.label == "Concept")


def test_the_concept_that_chose_the_steered_latent_is_shown_as_the_report_shows_it(page, record):
    at = page(steer="2:add:1")
    assert chooser(at).value == "rain"
    assert report.concept(record.concepts[1], "toy") in source(at)
    assert at.expander[0].proto.expanded
    assert f'href="{render.feature_link("toy", 2)}"' in source(at)
    assert "beats random directions" in text(at) and "1 of 18 random directions" in text(at)
    assert source(at).count("<circle") == 12


def test_without_such_a_latent_all_concepts_come_first_and_a_choice_is_in_the_address(page, record):
    at = page(steer="9:add:1")
    assert not at.expander[0].proto.expanded
    assert report.overall(record) in source(at) and report.verdicts(record) in source(at)
    chooser(at).set_value("birds").run()
    assert at.query_params["concept"] == "birds"
    assert report.concept(record.concepts[2], "toy") in source(at)
    at.slider(key="strength 0").set_value(2.0).run()
    assert dict(at.query_params) == {"run": "toy", "steer": "9:add:2", "concept": "birds"}
    assert at.code[0].value.endswith("steer=9%3Aadd%3A2&concept=birds")


def test_a_concept_that_is_gone_is_not_insisted_on_and_names_stay_text(page, record):
    at = page(steer="17:add:1", concept="nosuch")
    assert chooser(at).value == HOSTILE
    assert report.concept(record.concepts[0], "toy") in source(at)
    for foreign in ("<i>praise", "<b>text"):
        assert foreign not in source(at)


def test_a_single_concept_needs_no_chooser(page, run, record):
    written(run, replace(record, concepts=record.concepts[:1], overall=[], nulls=Nulls(6, 0)))
    at = page(steer="9:add:1")
    assert "Concept" not in [box.label for box in at.selectbox]
    assert report.concept(record.concepts[0], "toy") in source(at)


def test_where_nothing_was_compared_it_is_said_how(page, run):
    at = page(steer="2:add:1")
    assert any("has not been measured" in each.value for each in at.caption)
    assert f"sae steer {run.path} --compare glue_sst2" in [each.value for each in at.code]


@pytest.mark.parametrize("change", [{"format": 1, "norm": None}, {"sae_sha256": "0"}])
def test_arms_of_an_older_release_or_of_other_weights_count_as_none(page, run, record, change):
    content = {**asdict(record), **change}
    files.write_sealed(run.path / "arms" / "arms.json", content)
    at = page(steer="2:add:1")
    assert not at.error
    assert any("has not been measured" in each.value for each in at.caption)


@pytest.mark.parametrize("name", ["arms.json", "forecast.json"])
def test_damage_is_one_line_with_its_command_and_the_page_goes_on(page, run, record, name):
    path = run.path / "arms" / name
    path.write_text('{"format": 2')
    at = page(steer="2:add:1,5:add:1")
    (error,) = at.error
    assert name in error.value.replace("\\", "")
    assert f"rm {path}" in [each.value for each in at.code]
    assert button(at, "Steer")


def test_a_forecast_that_is_too_weak_says_how_well_it_did_and_one_that_was_interrupted_goes_on(page, run):
    digest = FeatureStore(run.path / "features").digest
    correlation = Estimate(0.19, 0.05, 0.31)
    weights: dict[str, float] = dict.fromkeys(PREDICTORS, 1.0)
    found = ForecastRecord(FORMAT, run.digest, digest, 0.3, 6, 32, [1, 2], [0.1, 0.2], correlation, weights)
    path = written(run, found)
    at = page(steer="2:add:1")
    assert any("too weak to be shown" in each.value for each in at.caption)
    assert not any("moves unrelated text more than" in each.value for each in at.caption)
    written(run, replace(found, kl=[0.1], correlation=None, weights={}))
    assert json.loads(path.read_text())["kl"] == [0.1]
    at = page(steer="2:add:1")
    assert any("interrupted after 1 of 2 latents" in each.value for each in at.caption)
    assert f"sae steer {run.path} --forecast 2" in [each.value for each in at.code]


def test_a_forecast_goes_on_with_the_settings_it_was_begun_with():
    begun = ForecastRecord(FORMAT, "0", "0", 0.3, 4, 16, [1, 2, 3], [0.1], arms_seed=5)
    assert arms.goes_on(begun) == "--forecast 3 --unrelated-windows 4 --window-tokens 16 --arms-seed 5"
    told = vars(
        arguments.parse(steer.Steer, "sae steer", ["run", *arms.goes_on(begun).split()], OmitArgPrefixes)
    )
    cfg = told["comparing"]
    assert (cfg.unrelated_windows, cfg.window_tokens, cfg.arms_seed) == (4, 16, 5)
