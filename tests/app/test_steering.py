"""The Steering page: its state is its link, its numbers are the library's, and no text or link does harm."""

import time
from pathlib import Path

import numpy as np
import pytest
import streamlit
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

import app
from activations.generation import prompt_ids
from activations.models import LanguageModel, load
from app import steering_charts, steering_rows
from app.session import steering
from app.session.steering_link import MOST_STRENGTH, Settings, read, write
from sae.errors import ConfigError
from sae.features.store import FeatureStore
from sae.runs import Run
from sae.show import changes, render
from sae.steering.compare import compare
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import Measures
from sae.steering.steering import Steering
from sae.steering.sweep import SweepConfig, dose_response
from tests.app.test_views import source, text
from tests.app.worlds import HOSTILE, HOSTILE_RUN

MAIN = Path(app.__file__).with_name("main.py")
MODES = st.sampled_from(["add", "set", "scale", "ablate", "project"])
STRENGTHS = st.integers(-3000, 3000).map(lambda n: n / 1000)


@pytest.fixture
def show(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Open the Steering page: show(run="toy", steer="1:add:2")."""

    def show(folder: Path = runs, **query: str) -> AppTest:
        streamlit.cache_resource.clear()
        monkeypatch.setattr("sys.argv", [str(MAIN), str(folder)])
        at = AppTest.from_file(MAIN, default_timeout=60).run()
        at.switch_page("views/steering.py")
        at.query_params.update(query)
        at.run()
        assert not at.exception, at.exception[0].value
        return at

    return show


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


def press(at: AppTest, label: str) -> AppTest:
    """Press a button; if it begins a job, wait for its end."""
    next(button for button in at.button if button.label == label).click().run()
    deadline = time.monotonic() + 60
    while any(button.label == "Stop" for button in at.button):
        assert time.monotonic() < deadline, "the job does not end"
        time.sleep(0.1)
        at.run()
    assert not at.exception, at.exception[0].value
    return at


def library(runs: Path, run: str, *interventions: Intervention) -> Steering:
    opened, features = Run(runs / run), FeatureStore(runs / run / "features")
    return Steering(opened.sae(), opened.hook, interventions, Calibration.of(features))


@given(
    st.dictionaries(st.integers(0, 31), st.tuples(MODES, STRENGTHS), min_size=1, max_size=8),
    st.builds(
        dict,
        prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        chat=st.booleans(),
        tokens=st.integers(1, 200),
        temperature=st.integers(0, 20).map(lambda n: n / 10),
        seed=st.integers(0, 10**9 - 1),
        texts=st.integers(1, 4),
        positions=st.one_of(
            st.sampled_from(["all", "after prompt"]),
            st.lists(st.integers(0, 999), min_size=1, max_size=4).map(tuple),
        ),
        first_token=st.booleans(),
        keep_error=st.booleans(),
    ),
    st.sampled_from(["max", "norm"]),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_link_reproduces_the_settings_it_was_made_of(pushes, others, unit):
    interventions = tuple(Intervention(n, mode, strength, unit) for n, (mode, strength) in pushes.items())
    chosen = Settings(interventions, **others)
    query = write("toy", chosen)
    assert query.pop("run") == "toy"
    assert read(query, 32, 0) == chosen


def test_a_link_names_only_what_is_not_as_usual():
    assert write("a b", Settings((Intervention(17, "add", 1.5),))) == {"run": "a b", "steer": "17:add:1.5"}
    assert read({}, 32, 9) == Settings((Intervention(9),))
    assert read({"feature": "3"}, 32, 9) == Settings((Intervention(3),))


BAD = {
    "steer": ["", "1", "1:add", "1:push:1", "x:add:1", "-1:add:1", "32:add:1", "1:add:nan", "1:add:1e3", "1:add:2,1:ablate:1",
              "1:clamp:-1", "1:add:²", f"1:add:{MOST_STRENGTH + 1}", ",".join(f"{n}:add:1" for n in range(9))],
    "feature": ["32", "abc", "-1"],
    "unit": ["volts"], "chat": ["yes"], "tokens": ["0", "201", "4.5", "x"], "temperature": ["-1", "3", "inf"],
    "seed": ["-1", "1.5"], "texts": ["0", "5"], "positions": ["some", "1,-2", ""], "first": ["2"], "error": ["no"],
    "prompt": ["x" * 4001],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_part_of_a_link_is_refused_in_one_line(name, value):
    with pytest.raises(ConfigError) as caught:
        read({name: value}, 32, 0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


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
    vocabulary = FeatureStore(runs / "toy" / "features").vocabulary
    assert page.count('class="strip"') == 4
    for pair in pairs:
        rows = steering_rows.measures(pair.baseline.measures, pair.steered.measures)
        assert changes.before_and_after(rows) in page
        for one in (pair.baseline, pair.steered):
            for token, change, kl in zip(one.tokens, one.change, one.kl, strict=True):
                assert render.escaped(vocabulary[token].lstrip(" ") or " ") in page
                assert f"{render.number(change)}), KL {render.number(kl)}" in page
    assert "feature 2: add −2, feature 14: project out 1 (multiples of the maximum)" in text(at)


def test_the_dose_response_is_the_library_s(show, runs, model):
    at = press(show(run="toy", steer="2:add:-2", tokens="4", prompt="the cat"), "Dose-response")
    own = library(runs, "toy", Intervention(2))
    chosen = Settings(own.interventions, "the cat", tokens=4)
    found = dose_response(
        model, own, [prompt_ids(model, "the cat")], chosen.sampling, (0,), SweepConfig(steering.DOSES)
    )
    assert at.session_state["job sweep toy"].result.found == found
    assert len(at.get("plotly_chart")) == 1
    for _, written in steering_rows.examples(found):
        assert render.visible(written) in text(at)
    assert "feature 2: add (multiples of the maximum)" in text(at)


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
    at.switch_page("views/feature.py")
    at.query_params.update(run="toy", feature="7")
    at.run()
    links = {link.value: link.proto.query_string for link in at.main.get("page_link")}
    assert links["Steer"] == "run=toy&feature=7"
    assert show(run="toy", feature="7").slider[0].value == 1.0


def test_a_feature_is_shown_with_what_it_peaks_on_above_and_below_zero(show, runs):
    at = show(run="toy", steer="2:add:1")
    row = FeatureStore(runs / "toy" / "features").row(2)
    assert steering_rows.title("toy", 2, "", row["peak_tokens"], []) in source(at)
    at = show(run=HOSTILE_RUN, steer="5:add:1")
    below = FeatureStore(runs / HOSTILE_RUN / "features").strongest(5, -1)[:5]
    assert render.chips(example.tokens[example.peak] for example in below) in source(at)
    assert "−" in source(at)


def test_suggested_features_are_clean_and_the_strongest_of_those():
    import pyarrow as pa

    word = [" Deity"] * 4 + [" god"]
    rows = [
        (0.001, 40.0, 0.0, word), (0.001, 50.0, 0.0, [" deity"] * 5), (0.2, 45.0, 0.0, [" dense"] * 5),
        (0.001, 90.0, 0.0, [" drowns"] * 5), (0.001, 0.0, -30.0, [" negative"] * 5), (0.0, None, None, []),
        (0.001, 20.0, 0.0, ["a", "b", "c", "d", "e"]), (0.00001, 30.0, 0.0, [" rarely"] * 5),
        (0.004, 20.0, 0.0, [" often"] * 5), (0.001, 55.0, 0.0, ["ending"] * 5),
    ]  # fmt: skip
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("density", "max", "min", "peak_tokens"), map(list, columns), strict=True)))
    assert steering_rows.suggestions(table, 150.0, 3) == [(1, "deity"), (8, "often"), (4, "negative")]
    assert steering_rows.suggestions(table, 150.0, 4)[3] == (2, " dense")
    assert len(steering_rows.suggestions(table.slice(5, 1), 150.0, 3)) == 1


def test_shares_are_shown_as_per_cent_and_signed():
    assert steering_rows.shown("concept", 0.123) == "12.3 %"
    assert steering_rows.shown("concept", -0.123) == "−12.3 %"
    assert steering_rows.shown("kl", 0.5) == "0.5"
    assert steering_rows.shown("peak_gain", None) == "–"
    assert set(steering_rows.MEASURES) == set(Measures._fields)


class Made:
    """A point of a curve."""

    def __init__(self, dose: float, mean: float | None, spread: float | None):
        self.dose, self._mean, self._spread = dose, mean, spread

    def mean(self, name: str) -> float | None:
        return None if name == "peak_gain" else self._mean

    def spread(self, name: str) -> float | None:
        return None if name == "peak_gain" else self._spread


def test_curves_are_means_and_bands_are_a_spread_either_side():
    curve = [Made(-1.0, 2.0, 0.5), Made(0.0, 3.0, 0.0), Made(1.0, 5.0, 4.5)]
    figure = steering_charts.dose_response({"latent": curve, "random": curve[:2]}, "strength")
    shown = [title.text for title in figure.layout.annotations]
    assert shown == [steering_charts.PANELS[name] for name in ("concept", "kl", "perplexity")]
    band, line = figure.data[:2]
    assert (list(line.x), list(line.y)) == ([-1, 0, 1], [2, 3, 5])
    np.testing.assert_allclose(band.y, [2.5, 3, 9.5, 0.5, 3, 1.5])
    assert [trace.name for trace in figure.data if trace.showlegend] == ["the features", "random directions"]
    perplexity = [trace for trace in figure.data if trace.yaxis == "y3"]
    assert figure.layout.yaxis3.type == "log"
    assert min(perplexity[0].y) == 1.0
