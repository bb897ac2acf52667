"""Labels outlive the features, are shared by several writers, belong to one SAE and are plain text whatever they hold."""

import csv
import json
import multiprocessing
import re
import shutil
from pathlib import Path

import pytest

from activations.errors import RunError
from sae.features.feature import FeatureStore
from sae.features.latent_labels import Label, Labels

HOSTILE = '<script>alert(1)</script> "quoted", =1+1\n**x** \u202e\x00'


@pytest.fixture
def labels(tmp_path) -> Labels:
    return Labels(tmp_path / "labels.json", "one", 32)


def test_a_label_is_kept_changed_and_taken_away(labels):
    assert labels.all() == {}
    labels.set(7, " cats ", "about cats")
    labels.set(3, HOSTILE)
    assert labels.get(7) == Label("cats", "about cats")
    assert labels.get(3).label == HOSTILE.strip()
    labels.set(7, "dogs")
    assert labels.all()[7] == Label("dogs", "")
    labels.set(7, "", "")
    assert set(labels.all()) == {3}


def test_another_sae_s_labels_stay_and_are_not_shown(labels):
    labels.set(7, "cats")
    other = Labels(labels.path, "two", 32)
    assert other.all() == {}
    other.set(7, "dogs")
    assert labels.get(7).label == "cats"


def _write(path: Path, first: int) -> None:
    for latent in range(first, first + 20):
        Labels(path, "one", 64).set(latent, f"label {latent}")


def test_two_writers_do_not_lose_each_other_s_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "labels.json", first)) for first in (0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert Labels(tmp_path / "labels.json", "one", 64).all() == {i: Label(f"label {i}") for i in range(40)}


@pytest.mark.parametrize("name", ["labels.csv", "labels.json"])
def test_export_and_import_bring_every_text_through(labels, tmp_path, name):
    text = HOSTILE.replace("\x00", "").strip()
    labels.set(3, text, 'two\nlines, and a "quote"')
    labels.set(7, "ü 語")
    assert labels.export(tmp_path / "out" / name) == 2
    fresh = Labels(tmp_path / "fresh.json", "two", 32)
    fresh.set(9, "kept")
    assert fresh.load(tmp_path / "out" / name) == 2
    assert fresh.all() == labels.all() | {9: Label("kept")}


def test_a_csv_of_labels_holds_no_formula_and_reads_back_as_it_was(labels, tmp_path):
    for latent, text in enumerate(texts := ["=1+1", "+x", "-x", "@x", "'=x", "''=x", "'x", "x=1"]):
        labels.set(latent, text, text)
    labels.export(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="") as file:
        cells = [cell for row in csv.DictReader(file) for cell in (row["label"], row["note"])]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    fresh = Labels(tmp_path / "fresh.json", "two", 32)
    fresh.load(tmp_path / "labels.csv")
    assert [fresh.get(latent) for latent in range(len(texts))] == [Label(text, text) for text in texts]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "feature,label\n1,x\n"),
        ("a.csv", "feature,label,note\nx,y,z\n"),
        ("a.json", "{"),
        ("a.json", "[1]"),
        ("a.txt", ""),
        ("a.csv", "feature,label,note\n99,y,z\n"),
    ],
)
def test_a_file_that_does_not_hold_labels_is_named_and_nothing_changes(labels, tmp_path, name, text):
    labels.set(1, "kept")
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError):
        labels.load(tmp_path / name)
    assert labels.all() == {1: Label("kept")}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", None, "a.csv does not exist; sae labels RUN --save"),
        ("a.csv", "feature,label\n1,x\n", "line 2: 'note' is missing; expected the columns feature"),
        ("a.csv", "feature,label,note\n1,x,\n2.5,y,z\n", "line 3: '2.5' is not a feature's number; expected"),
        ("a.csv", "feature,label,note\n1\n", "line 2: a label and a note are texts"),
        ("a.csv", "feature,label,note\n1,x,\n2,y,\n1,z,\n", "has feature 1 twice, in line 2 and line 4"),
        ("a.json", '[{"feature": true, "label": "", "note": ""}]', "entry 1: True is not a feature's number"),
        ("a.json", '{"feature": 1}', "it is not a list of objects"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_nothing_is_taken(labels, tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=re.escape(says)) as raised:
        labels.load(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert labels.all() == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 1}', '{"format": 99, "saes": {}}', '{"format": 1, "saes": {"one": {"1": 2}}}'],
)
def test_a_damaged_or_newer_file_is_named_and_not_overwritten(labels, text):
    labels.path.write_text(text)
    with pytest.raises(RunError, match=r"labels\.json"):
        labels.all()
    if 'saes": {"one' not in text:
        with pytest.raises(RunError):
            labels.set(1, "x")
        assert labels.path.read_text() == text


def test_a_latent_that_does_not_exist_has_no_label(labels):
    with pytest.raises(RunError, match="feature 32 does not exist"):
        labels.set(32, "x")


def test_a_features_folder_knows_its_labels(world, tmp_path):
    shutil.copytree(world / "runs/toy", tmp_path / "toy")
    features = FeatureStore(tmp_path / "toy" / "features")
    features.labels.set(7, "cats")
    assert features.feature(7).label.label == "cats"
    about = json.loads((tmp_path / "toy" / "labels.json").read_text())
    assert list(about["saes"]) == [features.record.sae_sha256]
