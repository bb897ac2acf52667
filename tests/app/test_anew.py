"""A run that is trained anew under the same name, or whose features are collected anew: nothing of before is shown as its own."""

import shutil
from pathlib import Path

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from app.session import jobs
from tests.app import pages
from tests.app.pages import source, text


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run of 32 latents that tests may change."""
    shutil.copytree(runs / "toy", tmp_path / "runs" / "toy")
    return tmp_path / "runs"


def narrower(folder: Path, runs: Path) -> None:
    """Put a run of 24 latents into the place of the one of 32, and let the app's caches of the old one run out."""
    shutil.rmtree(folder / "toy")
    shutil.copytree(runs / "signed", folder / "toy")
    streamlit.cache_resource.clear()


def tried(at: AppTest) -> AppTest:
    """Try a text on the Feature page."""
    at.text_area(key="own text toy").set_value("the cat")
    pages.button(at, "Try").click().run()
    return pages.settled(at)


def test_texts_steered_with_other_features_are_not_shown(show, folder):
    at = show("steering", folder, run="toy", steer="2:add:1", tokens="2", prompt="the cat")
    for label in ("Steer", "Dose-response"):
        pages.button(at, label).click().run()
        pages.settled(at)
    assert 'class="strip"' in source(at) and len(at.get("plotly_chart")) == 1
    pages.features_anew(folder / "toy" / "features")
    at.run()
    assert "Nothing written yet" in text(at)
    assert not at.get("plotly_chart")


def test_a_text_tried_with_other_features_is_not_shown(show, folder):
    at = tried(show("feature", folder, run="toy", feature="2"))
    assert 'class="sae strip own"' in source(at)
    pages.features_anew(folder / "toy" / "features")
    at.run()
    assert 'class="sae strip own"' not in source(at)


def test_a_text_is_read_anew_with_features_collected_anew(show, folder):
    at = pages.settled(show("text", folder, run="toy", text="the cat"))
    first = jobs._jobs[-1]
    pages.settled(at.run())
    assert jobs._jobs[-1] is first
    pages.features_anew(folder / "toy" / "features")
    pages.settled(at.run())
    assert jobs._jobs[-1] is not first and jobs._jobs[-1].what[2] == "the cat"


def test_the_feature_seen_last_is_left_behind_where_a_narrower_run_lacks_it(show, folder, runs):
    at = tried(show("feature", folder, run="toy", feature="30"))
    narrower(folder, runs)
    del at.query_params["feature"]
    at.run()
    assert not at.error and not at.exception
    assert "Feature 30" not in text(at) and "Feature " in text(at)


def test_settings_of_steering_are_left_behind_where_a_narrower_run_lacks_their_features(show, folder, runs):
    at = show("steering", folder, run="toy", steer="2:add:1", when="30>1")
    narrower(folder, runs)
    at.switch_page("feature/page.py")
    at.query_params.update(run="toy", feature="2")
    at.run()
    (link,) = [each.proto.query_string for each in at.sidebar.get("page_link") if each.value == "Steering"]
    assert link == "run=toy&feature=2"
