"""Killed at any moment and started again, a harvest and a training end with the bytes of undisturbed ones."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.commands import Command, Ended, Server, contents, harvest, train

WEIGHTS = ("sae.safetensors", "sae.json")
KILLED = -9


@pytest.fixture(scope="module")
def long_text(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model and a text of some 12,000 tokens."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "model").symlink_to(world / "model")
    tiny.text_file(folder / "text.jsonl", documents=100, words=32)
    return folder


def bytes_of_run(run: Path) -> dict[str, object]:
    """All that two runs of the same settings share: not the times of day in log.jsonl, not the run's own id."""
    found: dict[str, object] = dict(contents(run))
    found.pop("log.jsonl", None)
    if "run.json" in found:
        found["run.json"] = {**json.loads((run / "run.json").read_text()), "id": None}
    return found


def killed_at_each_change(
    sae: Server, command: list[object], out: Path, again: list[object]
) -> Iterator[tuple[int, Ended]]:
    """Kill a command before the 1st, 2nd, … change of a name in `out`-N and run it `again`; until it ends by itself.

    Two at a time, for there are many."""

    def start(words: list[object], number: int, **faults: tuple[object, ...]) -> Command:
        return sae.start(*(place(number) if word == out else word for word in words), **faults)

    def place(number: int) -> Path:
        return out.with_name(f"{out.name}-{number}")

    for first in range(1, 200, 2):
        pair = {
            number: start(command, number, kill_at=(number, place(number))) for number in (first, first + 1)
        }
        ended = {number: running.wait() for number, running in pair.items()}
        assert all(one.code in (0, KILLED) for one in ended.values()), ended
        pair = {number: start(again, number) for number, one in ended.items() if one.code == KILLED}
        yield from ((number, running.wait()) for number, running in pair.items())
        if len(pair) < 2:
            return
    raise AssertionError("no end")


def test_a_harvest_killed_before_any_change_on_disk_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path
):
    command = harvest(world, tmp_path / "store", tokens=640)  # two shards
    assert sae(*command).code == 0
    whole, wrong, tried = contents(tmp_path / "store"), {}, 0
    for number, ended in killed_at_each_change(sae, command, tmp_path / "store", command):
        tried += 1
        found = contents(tmp_path / f"store-{number}")
        if ended.code or found != whole:
            wrong[number] = (
                ended.err.strip() or f"files that should not be there: {sorted(found.keys() - whole.keys())}"
            )
    assert tried > 15
    assert not wrong


def test_a_training_killed_before_any_change_on_disk_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path
):
    settings = {"train.steps": 20, "train.keep-checkpoints": 1}
    command = train(world, tmp_path / "run", **settings)
    assert sae(*command).code == 0
    whole, wrong, tried = bytes_of_run(tmp_path / "run"), {}, 0
    for number, ended in killed_at_each_change(sae, command, tmp_path / "run", [*command, "--resume"]):
        tried += 1
        found = bytes_of_run(tmp_path / f"run-{number}")
        if ended.code or found != whole:
            differing = sorted(found.keys() ^ whole.keys()) or [
                name for name in whole if found[name] != whole[name]
            ]
            wrong[number] = ended.err.strip() if ended.code else f"differ: {differing}"
    assert tried > 25
    assert not wrong


def test_a_harvest_killed_in_the_middle_of_a_write_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path
):
    assert sae(*harvest(world, tmp_path / "undisturbed")).code == 0
    out = tmp_path / "store"
    for size in (100, 20_000):  # within harvest.json, within a shard
        assert sae(*harvest(world, out), die_past=(size,)).code < 0
    assert sae(*harvest(world, out)).code == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_training_killed_in_the_middle_of_a_write_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path
):
    assert sae(*train(world, tmp_path / "undisturbed")).code == 0
    out = tmp_path / "run"
    for size in (
        100,
        3000,
        9000,
    ):  # within run.json, within a checkpoint's weights, within its optimizer's state
        assert sae(*train(world, out, "--resume"), die_past=(size,)).code < 0
    assert sae(*train(world, out, "--resume")).code == 0
    assert bytes_of_run(out) == bytes_of_run(tmp_path / "undisturbed")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_harvest_killed_at_random_moments_ends_byte_identical(
    sae: Server, long_text: Path, tmp_path: Path, dtype: str
):
    moments = random.Random(dtype)
    settings = {"tokens": 12_000, "dtype": dtype, "hooks": f"{tiny.HOOK},blocks.0.attn.hook_z"}
    assert sae(*harvest(long_text, tmp_path / "undisturbed", **settings)).code == 0
    out, killed = tmp_path / "store", 0
    for _ in range(4):
        had = len(list(out.glob("shard-*.json")))
        running = sae.start(*harvest(long_text, out, **settings))
        running.when(lambda had=had: len(list(out.glob("shard-*.json"))) >= had + moments.randint(0, 3))
        time.sleep(moments.uniform(0, 0.03))
        running.kill()
        killed += running.wait().code == KILLED
    assert killed >= 2
    assert sae(*harvest(long_text, out, **settings)).code == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_training_killed_at_random_moments_ends_bit_identical(sae: Server, world: Path, tmp_path: Path):
    moments = random.Random(0)
    settings = {"train.steps": 400, "train.checkpoint-every": 25}
    assert sae(*train(world, tmp_path / "undisturbed", **settings)).code == 0
    out, killed = tmp_path / "run", 0
    for _ in range(5):
        had = len(list(out.glob("checkpoints/step-*")))
        running = sae.start(*train(world, out, "--resume", **settings))
        running.when(lambda: (out / "log.jsonl").exists())
        time.sleep(moments.uniform(0.05, 0.3))
        running.kill()
        killed += running.wait().code == KILLED
        assert len(list(out.glob("checkpoints/step-*"))) >= min(had, 2)
    assert killed >= 2
    assert sae(*train(world, out, "--resume", **settings)).code == 0
    for name in WEIGHTS:
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
