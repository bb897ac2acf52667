"""The Steering page: its link holds its state, its numbers are the library's, and no text or link does harm."""

import shutil
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from activations.disk import files
from activations.generation import prompt_ids
from activations.language_model import LanguageModel, load
from app.session import jobs
from app.steering import state
from app.steering.link import MOST_FEATURES, Settings
from sae.features.feature import FeatureStore
from sae.report import numbers, render
from sae.report import steering as steering_report
from sae.runs.arms import FORMAT, ForecastRecord
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.steering.forecast import PREDICTORS
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import compare
from sae.steering.steering import Steering
from sae.steering.sweep import SweepConfig, dose_response
from tests.app import pages
from tests.app.pages import source, text
from tests.app.worlds import HOSTILE, HOSTILE_RUN


@pytest.fixture
def show(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that opens the Steering page, as in show(run="toy", steer="1:add:2")."""

    def show(folder: Path = runs, **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened("steering", query)

    return show


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


def press(at: AppTest, label: str) -> AppTest:
    """Press a button, and wait for the end of the job if it starts one."""
    pages.button(at, label).click().run()
    return pages.settled(at)


def library(runs: Path, run: str, *interventions: Intervention) -> Steering:
    opened, features = Run(runs / run), FeatureStore(runs / run / "features")
    return Steering(opened.sae(), opened.hook, interventions, Calibration.of(features))


@pytest.mark.parametrize("query", [{"steer": "99:add:1"}, {"positions": "**x** <b>"}, {"tokens": "$x$"}])
def test_a_bad_link_is_one_line_in_the_page_and_nothing_more(show, query):
    at = show(run="toy", **query)
    assert len(at.error) == 1
    assert next(iter(query.values())).split(":")[0] in at.error[0].value.replace("\\", "")
    assert [button.label for button in at.button] == []


def test_the_texts_and_every_number_are_the_library_s(show, runs, model):
    at = press(
        show(run="toy", steer="2:add:-2,14:project:1", tokens="8", seed="3", texts="2", prompt="the cat"),
        "Steer",
    )
    own = library(runs, "toy", Intervention(2, "add", -2.0), Intervention(14, "project", 1.0))
    chosen = Settings(own.interventions, "the cat", tokens=8, seed=3, texts=2)
    pairs = compare(model, own, prompt_ids(model, "the cat"), chosen.sampling, (3, 4))
    page = source(at)
    token_text = FeatureStore(runs / "toy" / "features").token_text
    assert page.count('class="strip"') == 4
    for pair in pairs:
        rows = steering_report.measures(pair.baseline.measures, pair.steered.measures)
        assert steering_report.before_and_after(rows) in page
        for one in (pair.baseline, pair.steered):
            pieces = token_text.pieces(one.tokens)
            for piece, change, kl in zip(pieces, one.change, one.kl, strict=True):
                assert render.escaped(piece.lstrip(" ") or " ") in page
                assert f"{numbers.number(change)}), KL {numbers.number(kl)}" in page
    assert "feature 2: add −2 (multiples of the maximum), feature 14: project out 1 (factor)" in text(at)


def test_the_dose_response_is_the_library_s(show, runs, model):
    at = press(show(run="toy", steer="2:add:-2", tokens="4", prompt="the cat"), "Dose-response")
    own = library(runs, "toy", Intervention(2))
    chosen = Settings(own.interventions, "the cat", tokens=4)
    found = dose_response(
        model, own, [prompt_ids(model, "the cat")], chosen.sampling, (0,), SweepConfig(state.DOSES)
    )
    assert jobs._jobs[-1].result.response == found
    assert len(at.get("plotly_chart")) == 1
    for _, written in steering_report.examples(found):
        assert render.visible(written) in text(at)
    assert "feature 2: add (multiples of the maximum)" in text(at)


def test_a_dose_response_of_a_push_down_beside_a_limit_comes_to_its_end(show):
    at = press(show(run="toy", steer="2:add:-2,14:clamp:1", tokens="2", prompt="the cat"), "Dose-response")
    assert not at.error
    assert len(at.get("plotly_chart")) == 1


def test_what_is_changed_is_in_the_address_at_once(show):
    at = show(run="toy", steer="2:add:1")
    at.slider(key="strength 0").set_value(-1.5).run()
    assert at.query_params["steer"] == "2:add:-1.5"
    at.selectbox(key="mode 0").set_value("clamp").run()
    assert at.query_params["steer"] == "2:clamp:1.5"
    at.text_input(key="find").set_value("7").run()
    assert at.query_params["steer"] == "2:clamp:1.5,7:add:1"
    press(at, "Remove")
    assert at.query_params["steer"] == "7:add:1"
    at.text_area[0].set_value("a & b").run()
    at.number_input(key="Seed").set_value(5).run()
    at.segmented_control(key="Steered").set_value("chosen").run()
    at.text_input(key="Tokens, counted from 0").set_value("2, 3").run()
    at.toggle(key="Keep error").set_value(False).run()
    assert dict(at.query_params) == {
        "run": "toy", "steer": "7:add:1", "prompt": "a & b", "seed": "5", "positions": "2,3", "error": "0",
    }  # fmt: skip
    link = at.code[0].value
    assert link.endswith("steering?run=toy&steer=7%3Aadd%3A1&prompt=a+%26+b&seed=5&positions=2%2C3&error=0")


def test_a_strength_that_a_button_has_replaced_does_not_come_back_with_the_next_press(show):
    """A browser that has not drawn the new strength yet sends the old one together with what is pressed next."""
    at = show(run="toy", steer="2:add:1")
    next(button for button in at.button if button.label == "strong").click().run()
    assert at.query_params["steer"] == "2:add:1.5"
    at.slider(key="strength 0").set_value(1.0)
    at.text_input(key="find").set_value("5").run()
    assert at.query_params["steer"] == "2:add:1.5,5:add:1"
    at.slider(key="strength 0").set_value(1.0).run()
    assert at.query_params["steer"] == "2:add:1,5:add:1", "a second time it is the visitor's wish"


def test_two_changes_that_come_at_once_are_both_kept(show):
    at = show(run="toy", steer="2:add:1")
    at.text_area[0].set_value("so it")
    at.number_input(key="Seed").set_value(3)
    next(button for button in at.button if button.label == "strong").click().run()
    assert dict(at.query_params) == {"run": "toy", "steer": "2:add:1.5", "prompt": "so it", "seed": "3"}


def test_a_link_opened_fills_the_form_and_waits_to_be_run(show):
    at = show(
        run="toy",
        steer="2:add:0.5,4:ablate:1",
        unit="norm",
        prompt="so",
        tokens="7",
        positions="after prompt",
    )
    assert [slider.value for slider in at.slider] == [0.5, 1.0]
    assert [box.value for box in at.main.get("selectbox")] == ["add", "ablate"]
    assert at.text_area[0].value == "so"
    assert at.segmented_control(key="Steered").value == "after prompt"
    assert "Nothing written yet" in text(at)
    assert not at.get("plotly_chart")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("32", "feature 32 does not exist"),
        ("9" * 30, "does not exist"),
        ("2", "feature 2 is steered already"),
    ],
)
def test_a_feature_that_cannot_be_added_is_complained_of_once(show, typed, says):
    at = show(run="toy", steer="2:add:1")
    at.text_input(key="find").set_value(typed).run()
    assert says in at.error[0].value.replace("\\", "")
    assert at.slider[0].value == 1.0
    at.run()
    assert not at.error


def test_positions_typed_wrongly_are_complained_of_and_left(show):
    at = show(run="toy", positions="1,2")
    at.text_input(key="Tokens, counted from 0").set_value("1;2").run()
    assert "positions = '1;2'" in at.error[0].value.replace("\\", "")
    assert at.query_params["positions"] == "1,2"


def test_a_condition_typed_is_in_the_address_and_a_wrong_one_is_complained_of(show):
    at = show(run="toy", when="3>0.5")
    box = at.text_input(key="Only where")
    assert box.value == "3>0.5"
    box.set_value("4 < -1").run()
    assert at.query_params["when"] == "4 < -1"
    for wrong, said in (
        ("four", "when = 'four'"),
        ("99", "feature 99 does not exist"),
        ("monitor:none", "no monitor 'none'"),
    ):
        at.text_input(key="Only where").set_value(wrong).run()
        assert said in at.error[0].value.replace("\\", "")
        assert at.query_params["when"] == "4 < -1"


@pytest.mark.parametrize(
    ("correlation", "features", "shown"),
    [(0.45, "these", True), (0.2, "these", False), (0.45, "others", False)],
)
def test_side_effects_are_foretold_only_where_the_forecast_holds(
    show, runs, tmp_path, correlation, features, shown
):
    run = Run(shutil.copytree(runs / "toy", tmp_path / "runs" / "toy"))
    weights = dict.fromkeys(PREDICTORS, 1.0)
    digest = FeatureStore(run.path / "features").digest if features == "these" else "0"
    found = Estimate(correlation, correlation - 0.1, correlation + 0.1)
    record = ForecastRecord(FORMAT, run.digest, digest, 0.3, 6, 32, [], [], found, weights)
    (run.path / "arms").mkdir()
    files.write_sealed(run.path / "arms" / "forecast.json", asdict(record))
    at = show(run="toy", steer="2:add:1", folder=tmp_path / "runs")
    assert any("moves unrelated text more than" in each.value for each in at.caption) == shown


def test_a_word_offers_features_and_presets_are_one_press(show, runs):
    at = show(run="toy", steer="2:add:1")
    row = FeatureStore(runs / "toy" / "features").row(14)
    at.text_input(key="find").set_value(row["peak_tokens"][0]).run()
    offered = [button for button in at.button if (button.key or "").startswith("add ")]
    assert 0 < len(offered) <= 6
    offered[0].click().run()
    assert at.query_params["steer"] == f"2:add:1,{offered[0].key.split()[1]}:add:1"
    press(at, "off")
    assert at.query_params["steer"].startswith("2:ablate:1,")
    tried = next(button for button in at.button if (button.key or "").startswith("try "))
    tried.click().run()
    assert at.query_params["steer"] == f"{tried.key.split()[1]}:ablate:1"


def test_no_more_features_are_offered_or_added_than_a_link_may_name(show, runs):
    steered = [latent for latent in range(32) if latent != 14][: MOST_FEATURES - 1]
    at = show(run="toy", steer=",".join(f"{latent}:add:1" for latent in steered))

    def offered() -> list[Button]:
        return [each for each in at.button if (each.key or "").startswith("add ")]

    at.text_input(key="find").set_value(
        FeatureStore(runs / "toy" / "features").row(14)["peak_tokens"][0]
    ).run()
    new = [each for each in offered() if int((each.key or "")[4:]) not in steered]
    for each in new[:2]:  # two presses before the page is drawn again
        each.click()
    at.run()
    full = at.query_params["steer"]
    assert full.count(":add:1") == MOST_FEATURES
    assert f"at most {MOST_FEATURES} are steered at once" in at.error[0].value
    assert at.text_input(key="find").disabled
    assert not offered()
    assert not show(run="toy", steer=full).error


def test_a_dead_feature_is_one_line_when_it_is_pushed_by_its_maximum(show):
    at = press(show(run=HOSTILE_RUN, steer="3:add:1"), "Steer")
    assert "feature 3 never fired" in at.error[0].value.replace("\\", "")


def test_without_features_or_model_it_is_said_what_to_do(show, runs, tmp_path):
    assert show(run="bare").code[0].value == f"sae features {runs / 'bare'}"
    assert show(folder=tmp_path).code[0].value == "sae demo"
    at = press(show(run="toy", chat="1"), "Steer")
    assert "no chat template" in at.error[0].value.replace("\\", "")


def test_hostile_texts_stay_texts(show):
    at = press(
        show(run=HOSTILE_RUN, steer="2:add:1", prompt="tale <b>x</b>", tokens="60", temperature="1.5"),
        "Steer",
    )
    for poison in ("<b>bold", "<img", "<script", "<i>run", "<b>x"):
        assert poison not in source(at)
    assert HOSTILE["a"] in text(at), "the prompt has an a"
    for button in at.button:
        assert not {"<", "*", "$"} & set(
            button.label.replace("\\<", "").replace("\\*", "").replace("\\$", "")
        )


def test_the_feature_page_links_here(show, runs):
    at = show(run="toy")
    at.switch_page("feature/page.py")
    at.query_params.update(run="toy", feature="7")
    at.run()
    assert links(at.main)["Steer"] == "run=toy&feature=7"
    assert show(run="toy", feature="7").slider[0].value == 1.0


def links(block) -> dict[str, str]:
    """Return the targets of the links in a part of the page, by their texts."""
    return {link.value: link.proto.query_string for link in block.get("page_link")}


def test_links_here_keep_what_the_visit_set_and_steer_another_feature_afresh(show):
    at = show(run="toy", steer="7:add:2", prompt="the cat")
    at.number_input(key="Seed").set_value(5).run()
    edited = "run=toy&steer=7%3Aadd%3A2&prompt=the+cat&seed=5"
    assert links(at.sidebar)["Steering"] == edited
    at.switch_page("feature/page.py")
    for feature, steers in (("7", edited), ("8", "run=toy&feature=8")):
        at.query_params.update(run="toy", feature=feature)
        at.run()
        assert links(at.sidebar)["Steering"] == edited
        assert links(at.main)["Steer"] == steers
    at.sidebar.selectbox[0].set_value(HOSTILE_RUN).run()
    assert links(at.sidebar)["Steering"] == f"run={quote_plus(HOSTILE_RUN)}"


def test_another_run_is_steered_as_this_visit_left_it(show):
    at = show(run="toy", steer="7:add:2", prompt="the cat")
    at.sidebar.selectbox[0].set_value("signed").run()
    assert at.text_area[0].value == "I think that"
    at.sidebar.selectbox[0].set_value("toy").run()
    assert dict(at.query_params) == {"run": "toy", "steer": "7:add:2", "prompt": "the cat"}
    assert at.text_area[0].value == "the cat"


def test_a_feature_is_shown_with_what_it_peaks_on_above_and_below_zero(show, runs):
    at = show(run="toy", steer="2:add:1")
    row = FeatureStore(runs / "toy" / "features").row(2)
    assert steering_report.title("toy", 2, "", row["peak_tokens"], []) in source(at)
    at = show(run=HOSTILE_RUN, steer="5:add:1")
    below = FeatureStore(runs / HOSTILE_RUN / "features").strongest(5, -1)[:5]
    assert render.chips(example.tokens[example.peak] for example in below) in source(at)
    assert "−" in source(at)
