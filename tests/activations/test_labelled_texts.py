"""Files of labelled texts are read as they were written."""

import csv
from pathlib import Path

import pytest

from activations import labelled_texts
from activations.errors import TextError


def test_a_file_of_labelled_texts_is_read(tmp_path: Path):
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["good", 1], ["bad, very", 0]])
    task = labelled_texts.read_file(path)
    assert (task.name, task.texts, task.labels.tolist()) == ("mine", ["good", "bad, very"], [True, False])
    with pytest.raises(TextError, match="'stars'"):
        labelled_texts.read_file(path, label="stars")


def test_labelled_texts_are_read_as_they_were_written(tmp_path: Path):
    texts = ["plain", "two\nlines", 'quotes " and , commas', "naïve \u2028 \U0001f600"]
    task = labelled_texts.labelled("mine", texts, ["b", "(other)", "b", "(other)"])
    labelled_texts.write_file(tmp_path / "mine.jsonl", task)
    again = labelled_texts.read_file(tmp_path / "mine.jsonl")
    assert (again.name, again.classes) == ("mine", ("(other)", "b"))
    assert again.texts == texts and again.labels.tolist() == task.labels.tolist()
