"""Imported SAEs in the app: facts of their files replace the curves, and pages that need a store say so."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sae.foreign import saelens
from sae.runs.run import Run
from sae.workflows.import_sae import import_sae, origin_of
from tests.app import pages
from tests.app.pages import source, text
from tests.sae import lens

PAGES = ("runs", "features", "feature", "text", "dead", "steering", "evidence", "compare")


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two imported runs without a store, and one with a store and features."""
    made = tmp_path_factory.mktemp("imported")
    about = {**lens.METADATA, "dataset_path": "<b>text</b>", "nested": {"not": "shown"}, "context_size": 1024}
    for name in ("one", "two"):
        import_sae(lens.folder(made / "files" / name, "jumprelu", metadata=about), made / "runs" / name)
    toy = Run(world / "runs/toy")
    saelens.write(toy.sae(), origin_of(toy), made / "files/toy")
    import_sae(made / "files/toy", made / "runs/whole", store=world / "store")
    assert Run(made / "runs/whole").digest == toy.digest  # to the last bit, so that its features are these
    shutil.copytree(toy.path / "features", made / "runs/whole/features")
    return made / "runs"


@pytest.fixture
def show(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def show(page: str = "runs", **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, query)

    return show


def test_where_an_sae_comes_from_stands_in_the_place_of_curves(show):
    at = show(run="one")
    page = text(at)
    assert "trained elsewhere" in page
    assert "dataset path <b>text</b>" in page and "<b>text" not in source(at)
    assert "context size 1,024" in page
    assert "nested" not in page
    assert "b_dec W_enc moved into the encoder's biases" in page


def test_an_imported_sae_has_no_controls_to_train(show):
    at = show("evidence", run="one")
    assert "was imported: its controls would need the store" in text(at)
    assert not at.code


@pytest.mark.parametrize("page", ["runs", "features", "dead"])
def test_without_a_store_pages_name_the_import_that_gives_one(show, page):
    at = show(page, run="one")
    commands = [code.value for code in at.code]
    assert any(command.startswith("sae import saelens ") and "--store …" in command for command in commands)
    assert not any(command.startswith(("sae features", "sae evaluate", "sae dead")) for command in commands)
    assert "was imported without a store" in text(at)
    assert "Run it now" not in [button.label for button in at.button]


def test_imported_runs_side_by_side_have_no_number_of_steps(show):
    at = show(**{"with": ["one", "two"]})
    assert "None steps" not in text(at)


@pytest.mark.parametrize("run", ["one", "whole"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens(show, page, run):
    at = show(page, run=run)
    assert not at.exception


def test_pages_of_a_run_with_a_store_are_as_of_any_other(show):
    assert "32 features" in text(show("features", run="whole"))
