"""Lists of features in the app: collected on a feature's page or from what the table shows, shown with notes, shared as a file."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Selectbox

from tests.app.pages import button, features, store


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run that may be changed."""
    shutil.copytree(runs / "toy", tmp_path / "runs" / "toy")
    return tmp_path / "runs"


def name_box(at: AppTest) -> Selectbox:
    """Return the box for the name of the list that features are added to."""
    return next(box for box in at.selectbox if (box.key or "").startswith("list name"))


def test_a_feature_is_collected_annotated_shown_and_removed(show, own: Path):
    store(own).lists.add("dates", {1: ""})
    at = show("feature", folder=own, run="toy", feature="7")
    name_box(at).set_value("dates")
    next(area for area in at.text_area if area.label == "Note" and "list" in area.placeholder).set_value(
        "**y**"
    )
    button(at, "Add to the list").click().run()
    assert not at.exception
    assert store(own).lists.all() == {"dates": {1: "", 7: "**y**"}}
    table = show("features", folder=own, run="toy", list="dates")
    assert features(table) == [1, 7]
    assert list(table.dataframe[0].value["note"].fillna("")) == ["", "**y**"]
    at = show("feature", folder=own, run="toy", feature="7")
    button(at, "Remove").click().run()
    assert store(own).lists.all() == {"dates": {1: ""}}


def test_what_the_table_shows_is_collected_and_filters_apply_within_the_list(show, own: Path):
    at = show("features", folder=own, run="toy", state="dense")
    dense = features(at)
    store(own).lists.add("dense ones", dict.fromkeys(dense[:1], ""))
    at.run()
    name_box(at).set_value("dense ones")
    button(at, f"Add the {len(dense)} features shown").click().run()
    assert list(store(own).lists.all()["dense ones"]) == dense
    assert features(show("features", folder=own, run="toy", list="dense ones")) == dense
    assert not show("features", folder=own, run="toy", list="dense ones", state="dead").dataframe


def test_what_is_shown_is_added_to_the_list_shown(show, own: Path):
    store(own).lists.add("first", {1: ""})
    store(own).lists.add("second", {7: ""})
    at = show("features", folder=own, run="toy", list="first")
    assert name_box(at).value == "first"
    at.selectbox(key="features list").set_value("second").run()
    assert name_box(at).value == "second"
    button(at, "Add the feature shown").click().run()
    assert store(own).lists.all() == {"first": {1: ""}, "second": {7: ""}}
    at.selectbox(key="features list").set_value("").run()
    assert name_box(at).value is None
    at.selectbox(key="features list").set_value("first").run()
    assert name_box(at).value == "first"


def test_a_list_that_is_gone_is_one_line_above_all_features(show, own: Path):
    at = show("features", folder=own, run="toy", list="<b>x</b>")
    (warning,) = at.warning
    assert "There is no list '<b>x</b>'" in warning.value.replace("\\", "") and not at.error
    assert len(features(at)) == 32
    store(own).lists.add("dates", {1: ""})
    at = show("features", folder=own, run="toy", list="dates")
    store(own).lists.remove("dates", 1)
    at.run()
    assert len(at.warning) == 1 and len(features(at)) == 32
    at.switch_page("dead/page.py").run()
    link = next(link for link in at.sidebar.get("page_link") if link.proto.label == "Features")
    assert "list=" not in link.proto.query_string, "a link does not lead back to it"
    at = show("features", folder=own, run="toy", list="dates")
    button(at, "Show all features").click().run()
    assert not at.warning and "list" not in at.query_params


def test_links_to_the_page_keep_the_list(show, own: Path):
    store(own).lists.add("dates", {1: "", 7: ""})
    at = show("features", folder=own, run="toy", list="dates")
    at.switch_page("dead/page.py").run()
    link = next(link for link in at.sidebar.get("page_link") if link.proto.label == "Features")
    assert "list=dates" in link.proto.query_string
