"""`sae probe`, `sae find` and `sae monitor`: what they cannot use is one line; killed at any moment, they go on."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import Server, contents
from tests.sae.test_probing import sentences


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of 40 short texts."""
    path = tmp_path / "birds.csv"
    texts = [(text, word) for word in ("birds", "rain") for text in sentences(word, 20, len(word))]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts])
    return path


@pytest.fixture
def words(run: Path, task: Path, tmp_path: Path) -> dict[str, Any]:
    return {"environment": ({"SAE_CACHE": str(tmp_path / "cache")},)}


def probe(run: Path, task: Path) -> list[object]:
    return ["probe", run, "--csv", task, "--ks", 1, "--seeds", 1, "--context", 48, "--processes", 1]


def test_a_task_is_probed_shown_and_kept(sae: Server, run: Path, task: Path, words: dict[str, Any]):
    ended = sae(*probe(run, task), **words)
    assert ended.code == 0, ended.err
    assert "logistic regression on the activation" in ended.out
    assert "probe loss" in ended.out
    (kept,) = json.loads((run / "probes.json").read_text())["tasks"]
    assert kept["name"] == "birds"
    assert {row["method"] for row in kept["scores"]} >= {"sae", "random sae", "logistic", "tokens"}


def test_two_processes_come_to_the_bytes_of_one(sae: Server, run: Path, task: Path, words: dict[str, Any]):
    assert sae(*probe(run, task), **words).code == 0
    alone = (run / "probes.json").read_bytes()
    (run / "probes.json").unlink()
    assert sae(*probe(run, task)[:-1], 2, **words).code == 0
    assert (run / "probes.json").read_bytes() == alone


@pytest.mark.parametrize("changes", [(5,), pytest.param(range(1, 40, 2), marks=pytest.mark.slow)])
def test_killed_before_any_change_on_disk_it_ends_as_undisturbed(
    sae: Server, run: Path, task: Path, tmp_path: Path, words: dict[str, Any], changes: Sequence[int]
):
    assert sae(*probe(run, task), **words).code == 0
    wanted = (run / "probes.json").read_bytes()
    kills = 0
    for number in changes:
        (run / "probes.json").unlink()
        fresh = {"SAE_CACHE": str(tmp_path / f"cache-{number}")}
        ended = sae(*probe(run, task), environment=(fresh,), kill_at=(number, str(tmp_path)))
        if ended.code == 0:
            break
        kills += 1
        assert sae(*probe(run, task), environment=(fresh,)).code == 0
        assert (run / "probes.json").read_bytes() == wanted
    assert kills >= min(len(changes), 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--csv", "nowhere.csv"], "nowhere.csv"),
        (["--label-column", "stars"], "'stars'"),
        (["--tasks", "glue_sst2"], "exclude each other"),
        (["--seeds", 0], "at least 1"),
        (["--ks", 0], "at least 1"),
    ],
)
def test_what_cannot_be_probed_is_one_line(sae: Server, run: Path, task: Path, words, change, said: str):
    before = contents(run)
    assert said in sae(*probe(run, task), *change, **words).complaint
    assert contents(run) == before


def test_a_task_with_too_few_examples_or_one_label_is_one_line(sae: Server, run: Path, tmp_path: Path, words):
    path = tmp_path / "few.csv"
    path.write_text("text,label\na,1\nb,0\nc,1\n")
    assert "at least 6 of each" in sae(*probe(run, path), **words).complaint
    path.write_text("text,label\na,1\nb,1\n")
    assert "1 different labels" in sae(*probe(run, path), **words).complaint


def test_a_latent_is_found_saved_and_watches_another_file(sae: Server, run: Path, tmp_path: Path):
    files = {word: tmp_path / f"{word}.txt" for word in ("birds", "rain")}
    for word, path in files.items():
        path.write_text("\n".join(sentences(word, 24, len(word))))
    ended = sae("find", run, *files.values(), "--save", "birds")
    assert ended.code == 0, ended.err
    assert "false-discovery rate of 5%" in ended.out
    watched = tmp_path / "watched.txt"
    watched.write_text(files["birds"].read_text() + "\n=1+1")
    ended = sae("monitor", run, "birds", watched)
    rows = [*csv.DictReader(io.StringIO(ended.out))]
    assert rows[-1]["text"] == "'=1+1"  # no formula in a spreadsheet
    threshold = json.loads((run / "monitors" / "birds.json").read_text())["threshold"]
    assert [int(row["fires"]) for row in rows] == [float(row["score"]) > threshold for row in rows]
    assert "exists already" in sae("find", run, *files.values(), "--save", "birds").complaint
    assert "no monitor 'rain'" in sae("monitor", run, "rain", files["rain"]).complaint
    assert "cannot be called" in sae("find", run, *files.values(), "--save", "../x").complaint
    files["rain"].write_text("rain\n")
    assert "--save NAME" in sae("find", run, *files.values(), "--rate", 0.1).complaint
    assert "at least 4" in sae("find", run, *files.values()).complaint
