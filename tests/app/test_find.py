"""The Find page: two sets of texts, the library's own ranking, links to features, and a monitor that is saved."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from sae.probing.latents import Found, FoundLatent
from sae.report import find as find_report
from sae.runs.run import Run
from sae.workflows.find import find, load_monitor
from tests.app.pages import button, metrics, settled, text
from tests.sae.test_probing import sentences

FIRST, SECOND = sentences("birds", 30, 0), sentences("rain", 30, 1)


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run that may be changed."""
    shutil.copytree(runs / "toy", tmp_path / "runs" / "toy")
    return tmp_path / "runs"


@pytest.fixture
def page(show, own: Path) -> AppTest:
    return show("find", folder=own, run="toy")


def searched(at: AppTest, first: list[str] = FIRST, second: list[str] = SECOND) -> AppTest:
    for place, texts in enumerate((first, second)):
        at.text_area[place].set_value("\n".join(texts))
    return settled(button(at, "Find").click().run())


def test_nothing_is_searched_before_there_are_texts(page: AppTest):
    assert "Nothing to compare yet" in text(page)
    assert not len(page.dataframe)


def test_the_table_is_what_the_library_finds(page: AppTest, own: Path):
    at = searched(page)
    found = find(Run(own / "toy"), FIRST, SECOND).found
    table = at.dataframe[0].value
    assert [int(number) for number in table["feature"]] == [each.latent for each in found.latents]
    assert table["AUC"].tolist() == pytest.approx([each.auc for each in found.latents])
    assert table["q"].tolist() == pytest.approx([each.q for each in found.latents])
    assert metrics(at)["Found"] == str(len(found.kept(0.05)))


def test_a_latent_is_saved_as_a_monitor_and_a_taken_name_is_refused(page: AppTest, own: Path):
    at = searched(page)
    at.text_input[0].set_value("birds")
    at = button(at, "Save monitor").click().run()
    assert not at.exception
    assert "texts of the first set" in at.success[0].value
    assert load_monitor(Run(own / "toy"), "birds").latent == int(at.dataframe[0].value["feature"][0])
    at = button(at, "Save monitor").click().run()
    assert "exists already" in at.error[0].value


def test_too_few_texts_are_one_line(page: AppTest):
    at = searched(page, FIRST[:2], SECOND[:1])
    assert "2 and 1 different texts" in at.error[0].value


def test_latents_sort_as_their_numbers_do():
    found = Found([FoundLatent(n, 1, 0.9, 0.9, 0.0, 0.0, (1.0, 0.0)) for n in (10, 2, 100)], np.array([True]))
    numbers = find_report.listing(found, None)["feature"].to_pylist()
    assert sorted(numbers) == ["  2", " 10", "100"]
    assert not len(find_report.listing(Found([], np.array([True])), None))
