"""`sae steer --compare`: arms side by side on labelled texts; killed, it goes on; its mistakes are one line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae.workflows.arm_concepts import parts
from tests.cli.commands import Server

FEW = ["--shares", 0.5, 2, "--directions", 3, "--starts", "the cat", "--draws", 2, "--new-tokens", 4,
       "--unrelated-windows", 2, "--window-tokens", 6, "--labelled-tokens", 24]  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of 60 short texts that even a random model tells apart: half of them are in capitals."""
    path = tmp_path / "loud.csv"
    texts = [f"{'the cat sat on' if number % 4 else 'rain fell on'} mat {number}" for number in range(60)]
    rows = [(text.upper() if number % 2 else text, number % 2) for number, text in enumerate(texts)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture
def words(tmp_path: Path) -> dict[str, Any]:
    return {"environment": ({"SAE_CACHE": str(tmp_path / "cache")},)}


def arms(run: Path, task: Path, *more: object) -> list[object]:
    return ["steer", run, "--compare", task, *FEW, *more]


def test_arms_are_compared_shown_and_kept_and_a_kill_costs_little(
    sae: Server, run: Path, task: Path, tmp_path: Path, words: dict[str, Any]
):
    killed = sae(*arms(run, task), environment=words["environment"], kill_at=(24, str(run)))
    assert killed.code != 0, killed.err
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "arms" / "points").glob("*.safetensors")}
    assert kept, killed.err
    html = tmp_path / "arms.html"
    ended = sae(*arms(run, task, "--html", html), **words)
    assert ended.code == 0, ended.err
    for name, time in kept.items():
        assert (run / "arms" / "points" / name).stat().st_mtime_ns == time
    record = json.loads((run / "arms" / "arms.json").read_text())
    (concept,) = record["concepts"]
    assert {*concept["arms"]} == {"latent", "difference", "probe", "wrong sign", "prompt", "random"}
    assert all(len(arm["levels"]) == 2 for arm in concept["arms"].values())
    assert record["nulls"]["judged"] == 3
    assert "difference in means" in ended.out
    assert "<!doctype html>" in html.read_text()
    before = (run / "arms" / "arms.json").read_bytes()
    assert sae(*arms(run, task), **words).code == 0
    assert (run / "arms" / "arms.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--feature", 3], "leave --feature out"),
        (["--shares", 0], "above 0"),
        (["--html", "."], "is a folder"),
        (["--when", "5"], "--when has no effect without --feature"),
        (["--no-keep-error"], "--keep-error has no effect without --feature"),
        (["--temperature", 1], "--temperature has no effect without --feature"),
        (["--top-p", 0.5], "--top-p has no effect without --feature"),
        (["--tokens", 9], "--tokens has no effect without --feature"),
        (["--doses", 1], "--doses has no effect without --sweep"),
        (["--unrelated", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_it_cannot_use_is_one_line(
    sae: Server, run: Path, task: Path, words: dict[str, Any], change: list[object], said: str
):
    assert said in sae(*arms(run, task, *change), **words).complaint


def test_nothing_to_steer_is_one_line(sae: Server, run: Path):
    assert "--feature" in sae("steer", run).complaint
    assert (
        "--html has no effect without --compare"
        in sae("steer", run, "--feature", 1, "--html", "x.html").complaint
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--chat"], "--chat has no effect without --feature"),
        (["--top-k", 3], "--top-k has no effect without --feature"),
        (["--shares", 0.5], "--shares has no effect without --compare"),
        (["--draws", 2], "--draws has no effect without --compare"),
        (["--unrelated", "mine.csv"], "--unrelated has no effect without --compare"),
    ],
)
def test_a_forecast_refuses_what_it_would_not_read(sae: Server, run: Path, change: list[object], said: str):
    assert said in sae("steer", run, "--forecast", 24, *change).complaint


def test_a_concept_that_no_probe_can_learn_is_named(
    sae: Server, run: Path, task: Path, words: dict[str, Any]
):
    with task.open(newline="") as file:
        heads, *rows = csv.reader(file)
    labels = np.array([row[1] == "1" for row in rows])
    for row in parts(labels, 0)[2]:  # what the judge is tested on says the opposite of what it is taught
        rows[row][0] = rows[row][0].swapcase()
    with task.open("w", newline="") as file:
        csv.writer(file).writerows([heads, *rows])
    assert "loud: a probe taught on" in sae(*arms(run, task), **words).complaint
