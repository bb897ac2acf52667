"""The Activations page: stores of runs and of the folder, their geometry as the table and the figures show it."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from activations.geometry.measure import FILE, measure
from activations.geometry.records import GeometryConfig
from activations.store import Store
from sae.report import geometry as report
from tests.app.pages import button, resealed, settled, text


@pytest.fixture
def folder(world: Path, runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run and a copy of its store."""
    shutil.copytree(runs / "toy", tmp_path / "runs" / "toy")
    shutil.copytree(world / "store", tmp_path / "runs" / "copy")
    return tmp_path / "runs"


def words(at: AppTest) -> str:
    """Return the page's text and notes."""
    return " ".join([text(at), *(note.value.replace("\\", "") for note in at.caption)])


def test_a_measured_store_shows_its_table_its_advice_and_its_figures(show, folder: Path):
    store = Store(folder / "copy")
    geometry = measure(store, GeometryConfig(points=300))
    at = show("activations", folder, store="copy")
    assert "copy: " in text(at)
    assert f"{store.tokens:,} tokens" in text(at)
    assert report.advice(geometry) in words(at)
    assert at.dataframe[0].value.to_numpy().tolist() == report.rows(geometry)
    figures = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    assert len(figures) == 3  # one hook point: no linearity
    (hook,) = geometry.hooks
    assert figures[2]["data"][0]["y"] == [hook.two_nn.value]


def test_a_store_can_be_measured_on_the_spot(show, folder: Path):
    at = show("activations", folder, store="copy")
    assert "not measured yet" in text(at)
    assert any("sae store geometry" in code.value for code in at.code)
    button(at, "Measure it now").click().run()
    settled(at).run()
    assert len(at.dataframe) == 1
    assert (folder / "copy" / FILE).exists()
    other = measure(Store(folder / "copy"), GeometryConfig(points=300))  # by a command
    at.run()
    assert at.dataframe[0].value.to_numpy().tolist() == report.rows(other)


def test_the_store_of_the_run_seen_last_comes_first_and_others_can_be_chosen(show, world: Path, folder: Path):
    at = show("activations", folder, run="toy")
    assert str(world / "store") in text(at)
    box = next(box for box in at.selectbox if box.label == "Store")
    box.select("copy").run()
    assert at.query_params["store"] in ("copy", ["copy"])
    assert "copy: " in text(at)


def test_an_unknown_store_and_a_damaged_result_are_one_line(show, folder: Path):
    at = show("activations", folder, store="<b>nosuch")
    assert "There is no store '<b>nosuch'" in at.warning[0].value.replace("\\", "") and not at.error
    (folder / "copy" / FILE).write_text("{")
    at = show("activations", folder, store="copy")
    assert "damaged" in at.error[0].value
    assert any("sae store geometry" in code.value for code in at.code)


def test_for_a_store_that_is_gone_stands_the_one_seen_last_or_else_that_of_the_run(
    show, world: Path, folder: Path
):
    at = show("activations", folder, store="gone", run="toy")
    assert f"the page shows {world / 'store'}" in at.warning[0].value.replace("\\", "")
    at = show("activations", folder, store="copy", run="toy")
    at.query_params["store"] = "gone"
    at.run()
    assert "the page shows copy" in at.warning[0].value.replace("\\", "")


def test_when_another_run_is_chosen_its_store_is_shown(show, world: Path, folder: Path):
    shutil.copytree(folder / "toy", folder / "other")
    resealed(folder / "other", config={"store": str(folder / "copy")})
    at = show("activations", folder, run="toy")
    for run, store in (("toy", str(world / "store")), ("other", "copy"), ("other", "copy")):
        at.query_params.clear()
        at.query_params["run"] = run
        assert f"{store}: " in text(at.run())
    at.query_params["store"] = str(world / "store")
    at.run()
    at.query_params.clear()
    at.query_params["run"] = "other"
    assert f"{world / 'store'}: " in text(at.run()), "of the same run, the store seen last stays"


def test_stores_whose_names_are_alike_are_both_there(
    show, world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(world / "store", folder.parent / "copy")
    resealed(folder / "toy", config={"store": "copy"})
    monkeypatch.chdir(folder.parent)
    at = show("activations", folder, run="toy")
    box = next(box for box in at.selectbox if box.label == "Store")
    assert box.value == "copy" and sorted(box.options) == sorted(["copy", str(folder / "copy")])


def test_a_folder_without_stores_says_what_makes_one(show, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    at = show("activations", tmp_path / "empty")
    assert "No stores yet" in text(at)
    assert at.code[0].value == f"sae harvest --out {tmp_path / 'empty' / 'stores' / 'demo'}"
