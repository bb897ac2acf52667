"""Arms are compared from the Steering page: on texts typed or uploaded, kept as the command line keeps them, told beforehand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from activations import labelled_texts
from activations.disk import files
from activations.errors import ConfigError, LabelError, TextError
from app.steering import comparing
from sae.plan import rates
from sae.report import arms as report
from sae.runs.arms import read_arms
from sae.runs.run import Run
from sae.steering.arms import ArmsConfig
from sae.workflows.arms import compare_arms
from tests.app.pages import button, settled, source

SMALL = ArmsConfig(
    (0.5, 2.0),
    directions=3,
    starts=("the cat",),
    draws=2,
    new_tokens=4,
    unrelated_windows=2,
    window_tokens=6,
    labelled_tokens=24,
)
QUIET = [f"{'the cat sat on' if number % 4 else 'rain fell on'} mat {number}" for number in range(30)]
LOUD = [text.upper() for text in QUIET]  # which even a random model tells apart


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run that may be changed, beside which arms are compared on few texts."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(comparing, "CFG", SMALL)
    return Run(shutil.copytree(runs / "toy", tmp_path / "runs" / "toy"))


@pytest.fixture
def page(show, run: Run):
    """Return a function that opens the Steering page of the run."""
    return lambda: show("steering", folder=run.path.parent, run="toy", steer="9:add:1")


def filled(at: AppTest, name: str, texts: list[str], others: list[str]) -> AppTest:
    """Fill the form, press its button, and wait for the end of the job."""
    at.text_area(key="arms with").set_value("\n".join(texts))
    at.text_area(key="arms without").set_value("\n".join(others))
    at.text_input(key="arms concept").set_value(name)
    return settled(button(at, "Compare").click().run())


def notes(at: AppTest) -> str:
    return " ".join(each.value.replace("\\", "") for each in at.caption)


def test_texts_typed_are_compared_shown_and_kept_so_that_the_command_line_goes_on(page, run):
    at = page()
    assert "up to 34 texts of 4 tokens" in notes(at) and "was not measured on this machine" in notes(at)
    at = filled(at, "loud", LOUD, QUIET)
    assert not at.error
    record = read_arms(run)
    assert record and [each.name for each in record.concepts] == ["loud"]
    assert report.concept(record.concepts[0], "toy") in source(at)
    assert record.concepts[0].concept == "loud"
    assert "up to 20 texts of 4 tokens. At the pace of the last time here that takes" in notes(at)
    written = (run.path / "arms" / "arms.json").read_bytes()
    points = {path: path.stat().st_mtime_ns for path in (run.path / "arms" / "points").iterdir()}
    task = labelled_texts.read_file(run.path / "arms" / "texts" / "loud.jsonl")
    compare_arms(run, [task], SMALL)
    assert (run.path / "arms" / "arms.json").read_bytes() == written
    assert {path: path.stat().st_mtime_ns for path in (run.path / "arms" / "points").iterdir()} == points


def test_another_concept_joins_those_given_before_and_is_shown_first(page, run):
    at = filled(page(), "loud", LOUD, QUIET)
    at = filled(at, "rain", [f"rain {text}" for text in QUIET], QUIET)
    record = read_arms(run)
    assert record and [each.name for each in record.concepts] == ["loud", "rain"]
    assert len(record.overall) == 12
    chooser = next(box for box in at.selectbox if box.label == "Concept")
    assert chooser.value == "rain"


def test_what_was_interrupted_goes_on_by_a_button_or_its_command(page, run):
    path = run.path / "arms" / "texts" / "loud.jsonl"
    labelled_texts.write_file(path, comparing.from_sets("loud", LOUD, QUIET))
    at = page()
    assert "Not compared to the end: loud" in notes(at)
    assert f"sae steer {run.path} --compare {path}" in [each.value for each in at.code]
    at = settled(button(at, "Go on").click().run())
    assert read_arms(run)
    assert "Not compared" not in notes(at)


def test_other_texts_of_a_name_that_was_compared_are_not_compared_yet(run):
    path = run.path / "arms" / "texts" / "loud.jsonl"
    labelled_texts.write_file(path, comparing.from_sets("loud", LOUD, QUIET))
    record = compare_arms(run, [labelled_texts.read_file(path)], SMALL)
    assert comparing.unfinished(run, record) == []
    labelled_texts.write_file(path, comparing.from_sets("loud", LOUD[:-1], QUIET))
    assert comparing.unfinished(run, record) == ["loud"]


def test_texts_of_random_directions_are_written_again_after_a_comparison_with_other_settings(run):
    task = comparing.from_sets("loud", LOUD, QUIET)
    of_each, of_random = 20, 2 * (1 + 2 * 3)  # texts of 2 strengths and 5 arms; unsteered and of 3 directions
    assert comparing.texts_to_write(run, None) == of_each + of_random
    record = compare_arms(run, [task], SMALL)
    assert comparing.texts_to_write(run, record) == of_each
    other = compare_arms(run, [task], replace(SMALL, draws=3))
    assert comparing.texts_to_write(run, other) == of_each + of_random
    for name in (
        "loud",
        "rain",
    ):  # the one is compared, but not with these settings, and the other not at all
        labelled_texts.write_file(run.path / "arms" / "texts" / f"{name}.jsonl", task)
    assert comparing.texts_to_write(run, record) == 2 * of_each
    assert comparing.texts_to_write(run, other) == 3 * of_each + of_random


def test_a_name_that_is_taken_by_other_texts_is_refused_and_these_stay(page, run):
    path = run.path / "arms" / "texts" / "loud.jsonl"
    labelled_texts.write_file(path, comparing.from_sets("loud", LOUD, QUIET))
    before = path.read_bytes()
    at = filled(page(), "loud", LOUD[:-1], QUIET)
    (error,) = at.error
    assert "holds other texts of a concept" in error.value
    assert f"rm {path}" in [each.value for each in at.code]
    assert path.read_bytes() == before
    assert not filled(at, "loud", LOUD, QUIET).error, "the same texts go on"


def test_a_concept_that_no_probe_can_learn_is_named_and_not_kept(page, run):
    mixed = [text for pair in zip(LOUD, QUIET, strict=True) for text in pair]
    at = filled(page(), "noise", mixed[:30], mixed[30:])
    (error,) = at.error
    assert "noise: a probe taught on" in error.value.replace("\\", "")
    assert not comparing.kept(run)


@pytest.mark.parametrize(
    ("name", "texts", "said"),
    [
        ("loud", LOUD[:5], "class of 5 different texts"),
        ("a/b", LOUD, "cannot be called 'a/b'"),
        ("", LOUD, "cannot be called ''"),
        ("loud", [], "labels"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_nothing_is_kept(page, run, name, texts, said):
    at = filled(page(), name, texts, QUIET)
    (error,) = at.error
    assert said in error.value.replace("\\", "")
    assert not (run.path / "arms").exists()
    assert at.text_area(key="arms without").value == "\n".join(QUIET)


def test_texts_that_were_damaged_since_are_named_with_the_command_that_removes_them(page, run):
    path = run.path / "arms" / "texts" / "bad.jsonl"
    labelled_texts.write_file(path, comparing.from_sets("bad", LOUD, QUIET))
    path.write_text('{"text": "a"}\n')
    at = filled(page(), "loud", LOUD, QUIET)
    (error,) = at.error
    assert "bad.jsonl" in error.value.replace("\\", "")
    assert f"rm {path}" in [each.value for each in at.code]


def test_without_its_store_a_run_compares_nothing(page, run):
    about = json.loads((run.path / "run.json").read_text())
    about.pop("checksum")
    files.write_sealed(
        run.path / "run.json", {**about, "config": {**about["config"], "store": str(run.path / "gone")}}
    )
    at = filled(page(), "loud", LOUD, QUIET)
    (error,) = at.error
    assert "gone" in error.value
    assert not (run.path / "arms").exists()


def test_a_file_s_second_label_is_steered_towards_and_its_mistakes_name_it():
    rows = [*((text, "yes") for text in LOUD), *((text, "no") for text in QUIET)]
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    task = comparing.from_file("", "mine.CSV", content.encode())
    assert (task.name, task.classes, int(task.labels.sum())) == ("mine", ("no", "yes"), 30)
    assert comparing.from_file("other", "mine.csv", content.encode()).name == "other"
    with pytest.raises(TextError, match=r"^mine\.csv ") as caught:
        comparing.from_file("", "mine.csv", b"sentence\na\n")
    assert "/tmp" not in str(caught.value)
    with pytest.raises(ConfigError, match="my texts"):
        comparing.from_file("", "my texts.csv", content.encode())
    with pytest.raises(LabelError, match="at least 20"):
        comparing.from_file("", "mine.csv", b"text,label\na,yes\nb,no\n")


def test_the_pace_of_a_comparison_is_remembered_by_model_and_machine(run):
    assert comparing.seconds(run, 40) is None
    rates.remember(comparing._paced(run), comparing.Pace(0.25))
    assert comparing.seconds(run, 40) == 40 * 4 * 0.25
