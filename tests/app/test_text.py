"""The Your text page: nothing is loaded before there is a text, every number is the library's, text stays text."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from activations.language_model import load
from app.session import models
from sae.features.feature import FeatureStore
from sae.reading.reader import read
from sae.reading.reading import Reading
from sae.report.numbers import number
from sae.runs.run import Run
from tests.app.pages import button, metrics, settled, source, text
from tests.app.worlds import HOSTILE, HOSTILE_RUN

TEXT = "the cat sat on a mat"


@pytest.fixture
def ready(show):
    """Return a function that opens the page and waits until the text is read."""

    def ready(**query: str) -> AppTest:
        return settled(show("text", **{"run": "signed", "text": TEXT, **query}))

    return ready


@pytest.fixture(scope="module")
def reading(world: Path, runs: Path) -> Reading:
    run = Run(runs / "signed")
    model, features = load(str(world / "model")), FeatureStore(run.path / "features")
    return read(model, run.sae(), run.hook, TEXT, features, run.store.spec.packing, run.store.mean(run.hook))


def table(at: AppTest, key: str) -> list[tuple[int, str]]:
    """Return features and values in the table with this key."""
    made = next(part for part in parts(at) if "firings" in part and ("peak</th>" in part) == (key == "text"))
    latents = [int(found) for found in re.findall(r'<a href="feature\?[^"]*" target="_self">(\d+)</a>', made)]
    return list(zip(latents, re.findall(r"<i></i><span>([^<]*)</span>", made), strict=True))


def parts(at: AppTest) -> list[str]:
    return [json.loads(element.proto.json)["html"] for element in at.main.get("bidi_component")]


def test_without_a_text_no_model_is_loaded_and_the_page_says_what_to_do(show, monkeypatch):
    monkeypatch.setattr(models, "_models", {})
    at = show("text", run="toy")
    assert "Nothing to read yet" in text(at)
    assert not models._models
    assert "Stop" not in [button.label for button in at.button]


def test_a_text_in_the_url_is_read_and_its_numbers_are_the_library_s(ready, reading):
    at = ready()
    assert at.text_area[0].value == TEXT
    found = metrics(at)
    assert found["FVU"] == number(reading.text_fvu)
    assert found["tokens"] == str(len(TEXT))
    assert re.findall(r'data-do="token" data-to="(\d+)"', parts(at)[0]) == [
        str(i) for i in range(len(reading))
    ]
    for place in (1, 7, 9):
        at.query_params["token"] = str(place)
        at.run()
        assert table(at, "token") == [(one.latent, number(one.value)) for one in reading.at(place)]
    assert table(at, "text") == [(p.latent, number(p.peak)) for p in reading.latents()]


@pytest.mark.parametrize("by", ["rarity", "effect"])
def test_features_are_ranked_as_asked(ready, reading, by):
    at = ready(token="9")
    at.segmented_control(key="rank by").set_value(by).run()
    assert table(at, "token") == [(one.latent, number(one.value)) for one in reading.at(9, by)]
    assert table(at, "text") == [(p.latent, number(p.peak)) for p in reading.latents(by)]


def test_dense_features_are_hidden_and_counted(ready, reading):
    at = ready(token="9")
    at.select_slider(key="densest").set_value(0.1).run()
    kept = [one for one in reading.at(9) if float(reading.density[one.latent]) <= 0.1]
    assert len(kept) < len(reading.at(9))
    shown = table(at, "token") if kept else []
    assert shown == [(one.latent, number(one.value)) for one in kept]
    assert f"{len(reading.at(9)) - len(kept)} hidden: denser than 10 %" in at.caption[0].value.replace(
        "\\", ""
    )


def test_one_steps_through_the_tokens(ready):
    at = ready(token="4")
    assert "followed by" in text(at)
    button(at, "Next").click().run()
    assert at.query_params["token"] == "5"
    button(at, "Previous").click().run()
    assert at.query_params["token"] == "4"
    assert button(ready(token="0"), "Previous").disabled
    assert button(ready(token="21"), "Next").disabled


def test_a_feature_of_the_url_colours_the_text_in_both_signs(ready, reading):
    negative = reading.code.indices[(reading.code.values < 0) & reading.counted[reading.code.rows()]]
    signed = int(negative[0])
    at = ready(colour=str(signed))
    assert 'class="t down' in parts(at)[0]
    assert at.segmented_control(key="colour").options[-1] == f"feature {signed}"
    at.segmented_control(key="colour").set_value("surprise").run()
    assert at.query_params["colour"] == "surprise"
    assert " nats" in parts(at)[0]


def test_typing_reads_and_a_short_text_is_in_the_url_a_long_one_in_the_session(show):
    at = show("text", run="toy")
    for words, in_url in (("a cat", True), ("cats " * 200, False)):
        at.text_area[0].set_value(words)
        button(at, "Read").click().run()
        settled(at)
        assert ("text" in at.query_params) == in_url
        assert metrics(at)["tokens"] == f"{len(words):,}"
    at.switch_page("runs/page.py").run()
    at.switch_page("text/page.py").run()
    assert metrics(at)["tokens"] == "1,000", "still there, and read already"


def test_examples_and_a_held_out_document_can_be_pressed(show):
    at = show("text", run="toy")
    for label in ("Capitals", "A held-out document"):
        button(at, label).click().run()
        settled(at)
        assert at.text_area[0].value
        assert int(metrics(at)["tokens"].replace(",", "")) > 20
    assert set(at.text_area[0].value.split()) & {"the", "cat", "naïve", "wind", "birds", "rain"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"token": "99"}, "token 99 does not exist: this text has 0 to 21"),
        ({"token": "-1"}, "token -1 does not exist"),
        ({"colour": "24"}, "feature 24 does not exist: this run has 0 to 23"),
        ({"colour": "<b>x"}, "feature <b>x does not exist"),
    ],
)
def test_a_choice_that_is_not_there_is_one_line(ready, query, said):
    at = ready(**query)
    assert len(at.error) == 1
    assert at.error[0].value.replace("\\", "").startswith(said)


def test_a_run_without_features_is_read_without_labels(show, reading):
    at = settled(show("text", run="bare", text=TEXT))
    assert "No features yet" in text(at)
    assert table(at, "token")
    assert at.segmented_control(key="rank by").options == ["value", "effect"]
    assert not at.select_slider
    assert "fires most on" not in source(at)


def test_an_unfinished_run_says_what_to_run(show):
    at = show("text", run="sweep/unfinished", text=TEXT)
    assert at.code[0].value.startswith("sae resume ")
    assert "Stop" not in [button.label for button in at.button]


def test_a_model_that_is_gone_is_one_line(show, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_models", {})
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    about = json.loads((folder / "toy" / "run.json").read_text())
    (folder / "toy" / "run.json").write_text(
        json.dumps({**about, "model": "/gone", "weights_sha256": "0" * 64})
    )
    at = settled(show("text", folder=folder, run="toy", text=TEXT))
    assert len(at.error) == 1
    assert "/gone" in at.error[0].value.replace("\\", "")
    button(at, "Read again").click().run()
    settled(at)
    assert len(at.error) == 1


def test_a_text_in_hostile_words_is_shown_and_nothing_else(show):
    words = HOSTILE["e"] + HOSTILE["t"] + HOSTILE["l"]
    at = settled(show("text", run=HOSTILE_RUN, text=words))
    assert at.text_area[0].value == words
    for poison in ("<b>bold", "<img", "<script", "<i>run"):
        assert poison not in source(at)
    shown = "".join(re.findall(r'data-to="\d+">([^<]*)</span>', parts(at)[0])).replace("&lt;bos&gt;", "")
    assert shown == html.escape(words)
    assert HOSTILE["a"] in text(at) or HOSTILE["e"] in text(at), "peak tokens, as they are"
