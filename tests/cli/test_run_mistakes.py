"""`sae evaluate`, `sae features` and `sae store`: on what they cannot use, one line; on what they can, the answer."""

import json
import shutil
from pathlib import Path

import pytest

from activations.shard import shard_name
from tests.cli.commands import Server, contents

BOTH = ("evaluate", "features")


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("folder", ["/nowhere", "."])
def test_a_folder_that_is_no_run_is_one_line(sae: Server, tmp_path: Path, command: str, folder: str):
    line = sae(command, folder, cwd=tmp_path).complaint
    assert f"no run at {folder}" in line
    assert "run.json" in line


def test_the_runs_that_may_be_meant_are_named(sae: Server, tmp_path: Path):
    for name in ("demo", "demo-signed", "third", "fourth"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").touch()

    def complaint(*words: str) -> str:
        return sae(*words, cwd=tmp_path).complaint

    assert "did you mean runs/demo?" in complaint("search", "run/demo", "family")
    assert "did you mean runs/demo-signed?" in complaint("evaluate", "runs/demo-singed")
    assert (
        "did you mean runs/demo or runs/demo-signed or runs/fourth or another of the 4 in it?"
        in complaint("search", "runs", "family")
    )
    elsewhere = ("no*where/**a", "--features", "1", "--out", "page.html")
    for words in (
        ("labels", "nowhere", "--save", "labels.csv"),
        ("export", "html", *elsewhere),
        ("bidirectional", "."),
    ):
        line = complaint(*words)
        assert "no run at" in line and "did you mean" not in line


@pytest.mark.parametrize("command", BOTH)
def test_a_store_is_no_run(sae: Server, store: Path, command: str):
    before = contents(store)
    assert "no run at" in sae(command, store).complaint
    assert contents(store) == before


def test_features_of_an_unfinished_run_are_refused_with_what_to_do(sae: Server, run: Path):
    (run / "sae.json").unlink()
    (run / "sae.safetensors").unlink()
    shutil.rmtree(run / "features")
    before = contents(run)
    line = sae("features", run).complaint
    assert "not finished" in line
    assert f"sae resume {run}" in line
    assert contents(run) == before


def test_a_run_without_any_weights_cannot_be_evaluated(sae: Server, run: Path):
    (run / "sae.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert "neither a finished SAE nor a checkpoint" in sae("evaluate", run, "--windows", 0).complaint


@pytest.mark.parametrize("file", ["sae.json", "sae.safetensors"])
@pytest.mark.parametrize("command", BOTH)
def test_damaged_weights_are_one_line_that_names_them(sae: Server, run: Path, command: str, file: str):
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    before = contents(run)
    line = sae(command, run, *(["--windows", 0] if command == "evaluate" else ["--neighbours", 2])).complaint
    assert str(run / file) in line
    assert contents(run) == before


@pytest.mark.parametrize("command", BOTH)
def test_a_store_that_has_changed_is_refused(sae: Server, run: Path, store: Path, command: str):
    about = json.loads((run / "run.json").read_text())
    about["config"]["store"] = str(store)
    (run / "run.json").write_text(json.dumps(about))
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps({**index, "text_ended": True}))
    before = contents(run)
    line = sae(command, run).complaint
    assert str(store) in line
    assert "another store" in line
    assert contents(run) == before


@pytest.mark.parametrize("command", BOTH)
def test_a_store_that_is_gone_is_one_line(sae: Server, run: Path, command: str):
    about = json.loads((run / "run.json").read_text())
    about["config"]["store"] = "/nowhere"
    (run / "run.json").write_text(json.dumps(about))
    assert "/nowhere is not a store" in sae(command, run).complaint


@pytest.mark.parametrize("command", BOTH)
def test_a_model_that_is_gone_is_one_line(sae: Server, run: Path, command: str):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "model": "/nowhere"}))
    assert "no model folder at /nowhere" in sae(command, run).complaint


@pytest.mark.parametrize("command", BOTH)
def test_a_model_whose_weights_have_changed_is_refused(
    sae: Server, world: Path, run: Path, tmp_path: Path, command: str
):
    import torch
    from transformers import LlamaForCausalLM

    model = Path(shutil.copytree(world / "model", tmp_path / "model"))
    other = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    other.save_pretrained(model)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "model": str(model)}))
    shutil.rmtree(run / "features")
    line = sae(command, run).complaint
    assert str(model) in line
    assert not (run / "features").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("evaluate", "--batch", 0),
        ("evaluate", "--windows", -1),
        ("features", "--batch", 0),
        ("features", "--tokens", 0),
        ("features", "--tokens", -5),
        ("features", "--strongest", 0),
    ],
    ids=lambda args: " ".join(map(str, args)),
)
def test_a_number_out_of_range_is_one_line_that_names_it(sae: Server, run: Path, args: tuple):
    command, flag, value = args
    before = contents(run)
    line = sae(command, run, flag, value).complaint
    assert flag.strip("-") in line
    assert str(value) in line
    assert contents(run) == before


@pytest.mark.parametrize("flag", ["--neighbours", "--logits", "--strongest", "--sampled"])
def test_asking_for_more_than_there_is_gives_all_there_is(sae: Server, run: Path, flag: str):
    ended = sae("features", run, flag, 1000)
    assert ended.code == 0, ended.err


def test_evaluating_again_gives_the_same_numbers(sae: Server, run: Path):
    before = (run / "eval.json").read_bytes()
    ended = sae("evaluate", run, "--windows", 8, "--batch", 64)
    assert ended.code == 0
    assert (run / "eval.json").read_bytes() == before
    assert "fraction of variance unexplained" in ended.out


def test_features_again_are_left_as_they_are(sae: Server, run: Path):
    args = ["--strongest", 4, "--sampled", 10, "--neighbours", 3, "--logits", 3, "--batch", 64]
    before = {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()}
    assert sae("features", run, *args).code == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()} == before


def test_store_show_tells_what_a_store_holds(sae: Server, world: Path):
    ended = sae("store", "show", world / "store")
    assert ended.code == 0
    assert not ended.err
    index = json.loads((world / "store" / "index.json").read_text())
    rows = sum(entry["rows"] for entry in index["shards"])
    for part in (
        str(world / "model"), str(world / "text.jsonl"), "250 of 16 tokens", f"{rows:,} count", "token 0 begins every window",
        "blocks.1.hook_resid_pre", "width 16", "8 shards, float32", index["weights_sha256"][:16],
    ):  # fmt: skip
        assert part in " ".join(ended.out.split()), part


def test_store_verify_finds_a_good_store_good(sae: Server, world: Path):
    ended = sae("store", "verify", world / "store")
    assert ended.code == 0
    assert "all 8 shards are as they were written" in ended.out


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "says"), [(cut_short, "bytes found"), (flip, "bytes have changed"), (Path.unlink, "missing")]
)
def test_store_verify_names_every_damaged_shard_and_fails(sae: Server, store: Path, damage, says: str):
    for number in (2, 5):
        damage(store / shard_name(number))
    ended = sae("store", "verify", store)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    named = [line for line in ended.err.splitlines() if line.startswith("shard-")]
    assert [line.split(":")[0] for line in named] == [shard_name(2), shard_name(5)]
    assert all(says in line for line in named)
    assert "2 of 8 shards" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_folder_that_is_no_store_is_one_line(sae: Server, tmp_path: Path, command: str):
    assert "is not a store" in sae("store", command, tmp_path).complaint
