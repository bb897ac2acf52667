"""A run on a stream ends with the bits of a run on a store, whatever is killed, slow, full or at its end on the way."""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.runs.run import Run
from tests import tiny
from tests.cli.commands import Command, Server, contents, harvest, train
from tests.faults.conftest import fill
from tests.faults.jobs import Job, end_state
from tests.faults.kills import killed_everywhere
from tests.ranks import environments

TEXT = {
    "tokens": 4000,
    "context": 16,
    "shard-tokens": 512,
    "batch-tokens": 128,
}  # 8 shards, the last one short
RING = 500_000  # bytes: 3 shards
STEPS = {"train.steps": 80, "shuffle-tokens": 512}  # 5,120 rows: more than a pass over the text


def stream(world: Path, out: Path, *more: object, **changes: object) -> list[object]:
    """A training on a stream of the toy world's text, in groups of one shard."""
    words = train(world, out, *more, **{**STEPS, **TEXT, "ring": f"{RING}B", "kept-tokens": 2048, **changes})
    at = words.index("--store")
    words[at : at + 2] = ["--model", world / "model", "--dataset", world / "text.jsonl", "--hook", tiny.HOOK]
    return words


def producers(trainer: Command) -> list[int]:
    """The process ids of a trainer's producers."""
    path = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children")
    children = path.read_text().split() if path.exists() else []
    return [
        int(pid)
        for pid in children
        if "activations.streaming.producer" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


def shards(out: Path) -> list[Path]:
    return sorted((out / "ring" / "shards").glob("shard-*.safetensors"))


@pytest.fixture
def stored(sae: Server, world: Path, tmp_path: Path) -> Path:
    """A run on a store of the same text with the same settings."""
    assert sae(*harvest(world, tmp_path / "whole", **TEXT)).code == 0
    out = tmp_path / "stored"
    assert sae(*train(world, out, **{**STEPS, "store": tmp_path / "whole"})).code == 0
    return out


def same_training(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, history and log."""
    names = ("sae.safetensors", "latents.safetensors", "log.jsonl")
    return all(end_state(one)[name] == end_state(other)[name] for name in names)


@pytest.mark.parametrize("count", [1, 2])
def test_a_streamed_run_has_the_bits_of_a_stored_one_and_keeps_part_of_its_text(
    sae: Server, world: Path, stored: Path, tmp_path: Path, count: int
):
    out = tmp_path / "streamed"
    assert sae(*stream(world, out, producers=count)).code == 0
    assert same_training(out, stored)
    assert not (out / "ring").exists()
    kept, whole = Run(out).store, Run(stored).store
    assert [entry.sha256 for entry in kept.shards] == [whole.shards[number].sha256 for number in (0, 2, 4, 6)]
    for command in (["evaluate", out, "--windows", 4], ["features", out, "--tokens", 1000], ["dead", out]):
        assert sae(*command).code == 0


def test_a_model_run_by_plain_transformers_gives_a_stream_the_same_bits(
    sae: Server, world: Path, stored: Path, tmp_path: Path
):
    out = tmp_path / "streamed"
    assert sae(*stream(world, out, engine="transformers")).code == 0
    assert same_training(out, stored)
    assert Run(out).record.source == "transformers"
    assert sae("evaluate", out, "--windows", 4).code == 0


def test_int8_rows_of_a_ring_are_those_of_a_store(sae: Server, world: Path, tmp_path: Path):
    assert sae(*harvest(world, tmp_path / "whole", **TEXT, dtype="int8")).code == 0
    assert sae(*train(world, tmp_path / "stored", **STEPS, store=tmp_path / "whole")).code == 0
    assert sae(*stream(world, tmp_path / "streamed", dtype="int8")).code == 0
    assert same_training(tmp_path / "streamed", tmp_path / "stored")
    kept, whole = Run(tmp_path / "streamed").store, Run(tmp_path / "stored").store
    assert kept.spec.dtype == "int8"
    assert kept.shards[1].sha256 == whole.shards[2].sha256


def test_two_ranks_on_a_stream_have_the_bits_of_two_on_a_store(sae: Server, world: Path, tmp_path: Path):
    assert sae(*harvest(world, tmp_path / "whole", **TEXT)).code == 0
    for command in (
        train(world, tmp_path / "stored", **STEPS, store=tmp_path / "whole"),
        stream(world, tmp_path / "streamed"),
    ):
        ranks = [sae.start(*command, environment=(variables,)) for variables in environments(2)]
        assert [rank.wait().code for rank in ranks] == [0, 0]
    assert same_training(tmp_path / "streamed", tmp_path / "stored")


def test_a_stream_with_the_labels_of_the_harvest_has_the_bits_of_a_stored_run(
    sae: Server, world: Path, tmp_path: Path
):
    assert sae(*harvest(world, tmp_path / "whole", **TEXT, labels="surprise")).code == 0
    words = [
        train(world, tmp_path / "stored", **STEPS, store=tmp_path / "whole"),
        stream(world, tmp_path / "streamed"),
    ]
    for command in words:
        command[1] = "adaptivek"
        at = command.index("--arch.k")
        command[at : at + 2] = ["--arch.k-min", 2, "--arch.k-max", 8]
        assert sae(*command).code == 0
    assert same_training(tmp_path / "streamed", tmp_path / "stored")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_trainer_killed_at_random_moments_goes_on_to_the_same_bits(
    sae: Server, world: Path, tmp_path: Path, kills: int
):
    job = Job(stream, ("--resume",))
    assert not killed_everywhere(sae, job, world, tmp_path, kills, random.Random(kills))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_producer_killed_at_random_moments_is_one_line_and_the_run_goes_on_to_the_same_bits(
    sae: Server, world: Path, tmp_path: Path, stored: Path, kills: int
):
    moments, out = random.Random(kills), tmp_path / "streamed"
    done = 0
    while done < kills:
        trainer = sae.start(*stream(world, out, "--resume"))
        trainer.when(partial(producers, trainer))
        time.sleep(moments.uniform(0, 5))
        for pid in producers(trainer):
            os.kill(pid, signal.SIGKILL)
        ended = trainer.wait()
        if ended.code == 0:  # it was done before the kill
            out = tmp_path / f"streamed-{done}"
            continue
        assert "a producer of activations died (signal 9)" in ended.complaint
        done += 1
    assert sae(*stream(world, out, "--resume")).code == 0
    assert same_training(out, stored)


def test_a_slow_trainer_and_a_slow_producer_lose_no_row_and_the_ring_stays_within_its_size(
    sae: Server, world: Path, tmp_path: Path, stored: Path
):
    out, most = tmp_path / "streamed", 0
    trainer = sae.start(*stream(world, out, **{"train.steps": 80}))
    stop = random.Random(0)
    held: list[int] = []
    while trainer.running:
        most = max(most, sum(path.stat().st_size for path in shards(out) if path.exists()))
        if not held and (pids := producers(trainer)) and stop.random() < 0.05:
            held = [stop.choice([trainer.pid, *pids])]
            os.kill(held[0], signal.SIGSTOP)
            until = time.monotonic() + 0.3
        if held and time.monotonic() > until:
            os.kill(held.pop(), signal.SIGCONT)
        time.sleep(0.005)
    assert trainer.wait().code == 0
    assert 0 < most <= 1.05 * RING
    assert same_training(out, stored)


def test_a_stopped_run_leaves_its_group_in_the_ring_and_goes_on(
    sae: Server, world: Path, tmp_path: Path, stored: Path
):
    out = tmp_path / "streamed"
    trainer = sae.start(*stream(world, out))
    trainer.when(lambda: (out / "checkpoints" / "step-00000010").exists()).kill(signal.SIGTERM)
    assert trainer.wait().code == 128 + signal.SIGTERM
    assert shards(out)
    assert sae(*stream(world, out, "--resume")).code == 0
    assert same_training(out, stored)


def test_a_text_that_ends_early_is_told_and_begins_again(
    sae: Server, world: Path, tmp_path: Path, stored: Path
):
    ended = sae(*stream(world, tmp_path / "streamed", **{"tokens": 400_000, "kept-tokens": 400_000}))
    assert ended.code == 0
    assert "400,000" in ended.err
    assert len(Run(tmp_path / "streamed").log) == 16


def test_numbers_that_are_not_finite_in_mid_stream_are_one_line_and_a_checkpoint_stays(
    sae: Server, world: Path, tmp_path: Path
):
    weights = world / "model" / "model.safetensors"
    broken = tmp_path / "model"
    broken.mkdir()
    for path in (world / "model").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(weights)
    (token,) = tiny.tokenizer().encode("z", add_special_tokens=False)
    tensors["model.embed_tokens.weight"][token] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    rows = (world / "text.jsonl").read_text().splitlines()
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join([*rows, json.dumps({"text": "z" * 40}), *rows]) + "\n")
    line = sae(
        *stream(world, tmp_path / "run", model=broken, dataset=text, tokens=8000, train__steps=500)
    ).complaint
    assert "NaN or infinite" in line
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) > 0


def test_a_ring_on_a_disk_that_fills_up_is_one_line_and_goes_on_later(
    sae: Server, world: Path, tmp_path: Path, small_disk: Path, stored: Path
):
    folder, out = small_disk, tmp_path / "streamed"
    (small_disk / "ballast").unlink()
    trainer = sae.start(*stream(world, out, **{"ring-folder": folder}))
    trainer.when(lambda: producers(trainer))
    (producer,) = producers(trainer)
    os.kill(producer, signal.SIGSTOP)  # or it could write all shards before the disk is full
    fill(small_disk, 20_000)
    os.kill(producer, signal.SIGCONT)
    line = trainer.wait().complaint
    assert "disk is full" in line
    (small_disk / "ballast").unlink()
    assert sae(*stream(world, out, "--resume", **{"ring-folder": folder})).code == 0
    assert same_training(out, stored)
    assert not [*folder.iterdir()]  # the ring is gone, and nothing else was touched


def test_what_another_command_has_left_without_a_run_is_no_hindrance(
    sae: Server, world: Path, tmp_path: Path
):
    out = tmp_path / "run"
    assert sae(*stream(world, out, hook="blocks.9.hook_resid_post")).complaint
    killed = sae(*stream(world, out, tokens=3000), kill_at=(1, out / "run.json"))
    assert killed.code == -signal.SIGKILL
    assert shards(out)
    assert not (out / "run.json").exists()
    assert sae(*stream(world, out, **{"train.steps": 2})).code == 0


def test_a_folder_named_store_is_not_taken_for_the_runs(sae: Server, world: Path, tmp_path: Path):
    (tmp_path / "run" / "store").mkdir(parents=True)
    (tmp_path / "run" / "store" / "mine.txt").write_text("mine")
    assert "not empty" in sae(*stream(world, tmp_path / "run")).complaint
    assert (tmp_path / "run" / "store" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"ring": "100kB"}, ("100 kB", "--ring", "--shuffle-tokens")),
        ({"shuffle-tokens": 2048}, ("2 shuffle groups of 4 shards", "--shuffle-tokens")),
        ({"ring": "20 tons"}, ("20 tons", "20GB")),
        ({"ring": "1e3GB"}, ("1e3GB", "20GB")),
        ({"ring": "900TB"}, ("900.0 TB", "free", "--ring")),
        ({"producers": 0}, ("--producers 0", "at least 1")),
        ({"train.lr": "auto"}, ("--train.lr auto",)),
        ({"labels": "surprise"}, ("surprise", "adaptivek")),
        ({"dataset": "nowhere.jsonl"}, ("nowhere.jsonl",)),
        ({"hook": "blocks.9.hook_resid_post"}, ("blocks.9.hook_resid_post",)),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_run(
    sae: Server, world: Path, tmp_path: Path, change: dict[str, object], facts: tuple[str, ...]
):
    line = sae(*stream(world, tmp_path / "run", **change)).complaint
    assert all(fact in line for fact in facts), line
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_settings_of_a_stream_need_a_ring_and_some_activations_are_needed(
    sae: Server, world: Path, tmp_path: Path
):
    assert "--ring" in sae(*train(world, tmp_path / "run", model=world / "model")).complaint
    assert "--store" in sae("train", "topk", "--out", tmp_path / "run").complaint
    assert "not on both" in sae(*train(world, tmp_path / "run", ring="1GB")).complaint


def test_another_run_on_the_same_folder_is_refused(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "run"
    trainer = sae.start(*stream(world, out))
    trainer.when(lambda: producers(trainer))
    assert "another process is at work" in sae(*stream(world, out)).complaint
    assert trainer.wait().code == 0
    assert "finished run" in sae(*stream(world, out)).complaint
    before = contents(out)
    assert sae(*stream(world, out, "--resume")).code == 0
    assert contents(out) == before
    assert "stream" in sae(*stream(world, out, "--resume", tokens=3000)).complaint
