"""The Compare page matches at a press, shows a saved matching at once, and refuses in one line what cannot be compared."""

import json
import shutil
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.compare import controls
from sae.features.feature import FeatureStore
from sae.runs.run import Run
from sae.workflows.compare import keep, kept, match_runs
from tests.app.pages import button, metrics, settled, source, text
from tests.app.worlds import HOSTILE, HOSTILE_RUN


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, since the page writes into them."""
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def matched(at: AppTest) -> AppTest:
    """Press the button and wait for the matching."""
    button(at, "Match the features").click().run()
    return settled(at)


def test_settings_and_measures_are_there_before_anything_is_matched(show):
    at = show("compare", run="toy", other="signed")
    page = text(at)
    assert "Settings that differ" in page and "abstopk" in page
    assert "FVU" in page
    assert "Match the features" in [button.label for button in at.button]
    assert not at.dataframe


def test_links_here_and_another_run_keep_the_run_compared_with(show):
    at = show("compare", run="toy", other="signed")
    at.switch_page("runs/page.py").run()
    links = {link.value: link.proto.query_string for link in at.sidebar.get("page_link")}
    assert links["Compare"] == "run=toy&other=signed"


def test_matching_shows_the_library_s_numbers_and_is_there_at_once_the_next_time(show, folder):
    at = matched(show("compare", folder=folder, run="toy", other="signed"))
    comparison = kept(Run(folder / "toy"), Run(folder / "signed"))
    assert comparison is not None, "it is on disk"
    assert metrics(at)["one to one"] == f"{comparison.cosine.summary.one_to_one['mean']:.3f}"
    again = show("compare", folder=folder, run="toy", other="signed")
    assert metrics(again) == metrics(at)
    assert "Match the features" not in [button.label for button in again.button]

    again.segmented_control(key="similarity").set_value("activation").run()
    summary = comparison.activation.summary
    assert metrics(again)["mutually nearest"] == str(summary.mutual["count"])
    for kind, side in (("lost", "first"), ("new", "second")):
        again.segmented_control(key="kind").set_value(kind).run()
        kinds = comparison.activation.latents[side].kind
        expected = [latent for latent, of_kind in enumerate(kinds) if of_kind == kind]
        shown = [] if not again.dataframe else [int(label) for label in again.dataframe[0].value["feature"]]
        assert sorted(shown) == expected


def test_two_features_side_by_side_have_their_own_numbers(show, folder):
    at = matched(show("compare", folder=folder, run="toy", other="signed", a="7", b="5"))
    rows = [FeatureStore(folder / name / "features").row(n) for name, n in (("toy", 7), ("signed", 5))]
    firings = [metric.value for metric in at.metric if metric.label == "firings"]
    assert firings == [f"{row['fired']:,}" for row in rows]
    assert "Feature 7" in text(at) and "Feature 5" in text(at)
    assert len(at.get("plotly_chart")) == 3, "similarities, and the histogram of either"


def test_a_comparison_made_by_the_command_line_is_shown(show, folder):
    first, second = Run(folder / "toy"), Run(folder / "signed")
    keep(first, second, match_runs(first, second, tokens=100, near=0.2))
    at = show("compare", folder=folder, run="toy", other="signed")
    assert "near: 0.2 or more" in text(at)
    assert "100 held-out tokens" in text(at)


def test_without_a_choice_the_likeliest_run_is_compared(show):
    at = show("compare", run="toy")
    other = next(box for box in at.selectbox if box.label == "Compared with")
    assert other.value in (HOSTILE_RUN, "signed"), "it is finished, and has features"
    assert "toy" not in other.options
    other.set_value("bare").run()
    assert at.query_params["other"] == "bare"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"other": "bare"}, "hold the same SAE"),
        ({"other": "sweep/unfinished"}, "is not finished: sae resume"),
    ],
)
def test_what_cannot_be_compared_is_one_line(show, query, said):
    at = show("compare", run="toy", **query)
    assert len(at.error) == 1
    assert said in at.error[0].value.replace("\\", "")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("nosuch", "There is no run 'nosuch', or no longer"),
        ("toy", "A run is not compared with itself"),
        ("../toy", "There is no run '../toy', or no longer"),
    ],
)
def test_a_partner_that_is_gone_is_one_line_above_another_comparison(show, folder, other, said):
    at = show("compare", folder, run="toy", other=other, a="3", b="1000")
    (warning,) = at.warning
    assert said in warning.value.replace("\\", "") and not at.error
    assert next(box for box in at.selectbox if box.label == "Compared with").value not in ("toy", other)
    at = matched(at)
    assert "Similarity" in text(at) and "Side by side" not in text(at) and not at.error


def test_for_a_partner_that_is_gone_stands_the_one_seen_last(show):
    at = show("compare", run="toy", other="sweep/unfinished")
    at.query_params["other"] = "nosuch"
    at.run()
    assert "compares toy with sweep/unfinished" in at.warning[0].value.replace("\\", "")


def test_runs_of_other_widths_are_refused_with_both(show, folder):
    about = json.loads((folder / "signed" / "run.json").read_text())
    (folder / "signed" / "run.json").write_text(json.dumps({**about, "d_model": 99}))
    at = show("compare", folder=folder, run="toy", other="signed")
    assert len(at.error) == 1
    assert "width 16" in at.error[0].value and "width 99" in at.error[0].value


def test_a_store_that_is_gone_is_one_line_and_the_rest_stays(show, folder):
    about = json.loads((folder / "toy" / "run.json").read_text())
    about["config"]["store"] = "/nowhere"
    (folder / "toy" / "run.json").write_text(json.dumps(about))
    at = matched(show("compare", folder=folder, run="toy", other="signed"))
    assert len(at.error) == 1
    assert "/nowhere is not a store" in at.error[0].value.replace("\\", "")
    assert "Settings that differ" in text(at)
    assert "Match the features" in [button.label for button in at.button]


def test_a_job_that_ends_while_the_page_is_drawn_is_shown(show, folder, monkeypatch):
    looked = []

    def just_before_it_ended(first: Run, second: Run):
        job = controls.matching(first, second)
        while job and job.running:
            time.sleep(0.01)
        looked.append(job)
        return real(first, second) if looked.count(job) > 1 else None

    real = controls.matched
    monkeypatch.setattr(controls, "matched", just_before_it_ended)
    at = show("compare", folder=folder, run="toy", other="signed")
    button(at, "Match the features").click().run()
    assert metrics(at)["one to one"]


def test_what_a_command_compares_after_the_page_takes_its_place(show, folder):
    at = matched(show("compare", folder=folder, run="toy", other="signed"))
    first, second = Run(folder / "toy"), Run(folder / "signed")
    keep(first, second, match_runs(first, second, near=-1.0))
    before, now = source(at), source(at.run())
    assert before != now
    assert now == source(show("compare", folder=folder, run="toy", other="signed"))


def test_a_folder_one_may_not_write_into_is_compared_all_the_same(show, folder, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("sae.workflows.compare.keep", refuse)
    at = matched(show("compare", folder=folder, run="toy", other="signed"))
    assert metrics(at)["one to one"]
    assert not at.error


@pytest.mark.parametrize("pair", [{"a": "99", "b": "1"}, {"a": "1", "b": "-1"}, {"a": "x", "b": "1"}])
def test_a_pair_that_is_not_there_is_one_line(show, folder, pair):
    at = matched(show("compare", folder=folder, run="toy", other="signed", **pair))
    assert len(at.error) == 1
    assert "does not exist" in at.error[0].value


def test_a_single_run_says_what_to_run(show, folder):
    at = show("compare", folder=folder / "toy")
    assert "Nothing to compare with" in text(at)
    assert at.code[0].value.startswith("sae train")


def test_a_run_without_features_is_matched_and_says_what_is_missing(show, folder):
    shutil.rmtree(folder / "signed" / "features")
    at = matched(show("compare", folder=folder, run="toy", other="signed", a="7", b="5"))
    assert f"sae features {folder / 'signed'}" in [code.value for code in at.code]


def test_hostile_names_and_tokens_stay_text(show, folder):
    at = matched(show("compare", folder=folder, run=HOSTILE_RUN, other="signed", a="1", b="2"))
    for poison in ("<b>bold", "<img", "<script", "<i>run"):
        assert poison not in source(at)
    assert HOSTILE_RUN in text(at)
    shown = text(at)
    assert HOSTILE["a"] in shown or HOSTILE["e"] in shown
