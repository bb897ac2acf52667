"""The Feature page shows the lens that predicts best first, with how well it does, and says how to find out where that is not known."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from activations.jacobian import JacobianConfig
from sae.features.feature import FeatureStore
from sae.features.lenses import INDEX, Lenses
from sae.report import features as features_report
from sae.report import render
from sae.workflows.lens import LensConfig, lens
from tests.app import pages
from tests.app.pages import source
from tests.sae.test_lens import copied

CFG = LensConfig(latents=4, strongest=2, sampled=1, jacobian=JacobianConfig(rows=300))


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run whose lenses were measured."""
    made = tmp_path_factory.mktemp("lenses")
    lens(copied(world, made), CFG)
    return made


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
    return pages.opened("feature", {"run": "toy", "feature": "7"})


@pytest.mark.parametrize(("best", "other"), [("Jacobian", "Logit"), ("Logit", "Jacobian")])
def test_the_best_lens_comes_first_with_its_agreement(folder: Path, monkeypatch, best: str, other: str):
    index = folder / "toy" / "features" / INDEX
    about = json.loads(index.read_text())
    about["agreement"][best.lower()]["spearman"] = {"value": 0.61, "low": 0.5, "high": 0.7}
    about["agreement"][other.lower()]["spearman"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    index.write_text(json.dumps(about))
    at = shown(folder, monkeypatch)
    assert f"{best} lens" in source(at)
    captions = [caption.value for caption in at.caption]
    assert any(render.markdown("effects of 4 latents: 0.61 (0.50 to 0.70)") in text for text in captions)
    assert [expander.label for expander in at.expander if "lens" in expander.label] == [f"{other} lens"]
    assert not at.error
    table = pages.opened("features", {"run": "toy"}).dataframe[0].value
    store = FeatureStore(folder / "toy" / "features")
    by_lens = {"Jacobian": Lenses(store).table["raised_tokens"], "Logit": store.table["raised_tokens"]}
    raised = {
        name: features_report.features(store.table, tokens)["raises"] for name, tokens in by_lens.items()
    }
    assert raised["Jacobian"] != raised["Logit"]
    assert [list(tokens) for tokens in table["raises"]] == raised[best].to_pylist()


def test_an_open_page_shows_no_lenses_of_other_features(folder: Path, tmp_path: Path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "copy")
    at = shown(copy, monkeypatch)
    assert "effects of 4 latents" in " ".join(caption.value for caption in at.caption)
    pages.features_anew(copy / "toy" / "features")
    assert not at.run().exception
    assert ">Logit lens<" in source(at)
    assert "effects of 4 latents" not in " ".join(caption.value for caption in at.caption)


def test_damage_is_reported_and_the_logit_lens_stays(folder: Path, monkeypatch):
    index = folder / "toy" / "features" / INDEX
    whole = index.read_text()
    index.write_text(whole[: len(whole) // 2])
    at = shown(folder, monkeypatch)
    index.write_text(whole)
    assert any(render.markdown("lens.json") in error.value for error in at.error)
    assert "Logit lens" in source(at)
