"""`sae harvest` and its user's mistakes: one line that says what, found and needed; exit code 2; nothing made."""

import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.commands import Server, contents, harvest

GONE = "/nowhere/at/all"
MISTAKES = {
    "a model folder that is not there": ({"model": GONE}, [GONE, "config.json"]),
    "a model nobody has": ({"model": "nobody/nothing"}, ["nobody/nothing", "network"]),
    "a model name that cannot be": ({"model": "a/b/c"}, ["a/b/c"]),
    "a hook point misspelt": (
        {"hooks": "blocks.1.hook_resid_psot"},
        ["hook_resid_psot", "blocks.1.hook_resid_post"],
    ),
    "a block too deep": ({"hooks": "blocks.2.hook_resid_post"}, ["blocks.2", "2 blocks are numbered from 0"]),
    "a hook point given twice": ({"hooks": "blocks.0.hook_resid_pre, blocks.0.hook_resid_pre"}, ["twice"]),
    "a hook point of an option that is off": (
        {"hooks": "blocks.0.attn.hook_result"},
        ["blocks.0.attn.hook_result"],
    ),
    "a hook point without a row for each token": (
        {"hooks": "blocks.0.attn.hook_pattern"},
        ["blocks.0.attn.hook_pattern"],
    ),
    "a hook point where token ids pass": ({"hooks": "embed.hook_in"}, ["embed.hook_in"]),
    "a file that is not there": ({"dataset": f"{GONE}.jsonl"}, [f"{GONE}.jsonl"]),
    "a model nobody has and a file that is not there": (
        {"model": "nobody/nothing", "dataset": f"{GONE}.jsonl"},
        [f"{GONE}.jsonl"],
    ),
    "a data set nobody has": ({"dataset": "nobody/nothing"}, ["nobody/nothing"]),
    "a data set name that cannot be": ({"dataset": "my notes"}, ["my notes"]),
    "a column that is not there": ({"column": "txt"}, ["'txt'", "--column text"]),
    "fewer tokens than a window": ({"tokens": 15}, ["tokens = 15", "16"]),
    "a window of one token": ({"context": 1}, ["context = 1", "at least 2"]),
    "a window longer than the model reads": ({"context": 129}, ["129", "128"]),
    "a window longer than the text": ({"context": 100, "dataset": "SHORT"}, ["100 tokens", "short.jsonl"]),
}
TEXTS = {
    "empty": (b"", []),
    "of empty lines": (b"\n\n", []),
    "of empty documents": (b'{"text": ""}\n{"text": null}\n', ["16 tokens"]),
    "of a word": (b'{"text": "abc"}\n', ["16 tokens"]),
    "that breaks off": (b'{"text": "abc"}\n{"text": ', ["cannot be read"]),
    "of numbers": (b'{"text": 3}\n', ["int, not text"]),
    "that is no text": (b"\xff\xfe\x00\x01", ["cannot be read"]),
    "that is no table": (b'["abc"]\n', []),
}


@pytest.mark.parametrize(("changes", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_makes_nothing(
    sae: Server, world: Path, tmp_path: Path, changes: dict[str, object], says: list[str]
):
    (tmp_path / "short.jsonl").write_text('{"text": "a few words"}\n')
    if changes.get("dataset") == "SHORT":
        changes = {**changes, "dataset": tmp_path / "short.jsonl"}
    line = sae(*harvest(world, tmp_path / "store", **changes)).complaint
    assert line.startswith("sae harvest: ")
    assert all(part in line for part in says), line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("content", "says"), TEXTS.values(), ids=TEXTS)
def test_a_text_that_gives_nothing_is_one_line_and_makes_nothing(
    sae: Server, world: Path, tmp_path: Path, content: bytes, says: list[str]
):
    text = tmp_path / "notes.jsonl"
    text.write_bytes(content)
    line = sae(*harvest(world, tmp_path / "store", dataset=text)).complaint
    assert all(part in line for part in ["notes.jsonl", *says]), line
    assert not (tmp_path / "store").exists()


def test_a_mistake_once_mended_the_same_out_folder_will_do(sae: Server, world: Path, tmp_path: Path):
    assert "no column" in sae(*harvest(world, tmp_path / "store", column="txt")).complaint
    assert sae(*harvest(world, tmp_path / "store")).code == 0


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_folder_is_one_line(sae: Server, world: Path, tmp_path: Path, file: str):
    model = Path(shutil.copytree(world / "model", tmp_path / "model"))
    (model / file).write_bytes((model / file).read_bytes()[:100])
    assert str(model) in sae(*harvest(world, tmp_path / "store", model=model)).complaint
    assert not (tmp_path / "store").exists()


def test_a_folder_of_something_else_is_left_alone(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "store"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    for taken in (out, world / "runs" / "toy"):
        before = contents(taken)
        assert str(taken) in sae(*harvest(world, taken)).complaint
        assert contents(taken) == before


@pytest.mark.parametrize(
    "changes", [{"tokens": 3200}, {"dtype": "float16"}, {"context": 8}, {"hooks": "blocks.0.hook_mlp_out"}]
)
def test_a_finished_store_refuses_other_settings_and_keeps_its_bytes(
    sae: Server, world: Path, tmp_path: Path, changes: dict[str, object]
):
    assert sae(*harvest(world, tmp_path / "store")).code == 0
    before = contents(tmp_path / "store")
    assert str(tmp_path / "store") in sae(*harvest(world, tmp_path / "store", **changes)).complaint
    assert contents(tmp_path / "store") == before


def test_the_same_harvest_again_changes_nothing_and_succeeds(sae: Server, world: Path, tmp_path: Path):
    first = sae(*harvest(world, tmp_path / "store"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    again = sae(*harvest(world, tmp_path / "store"))
    assert (first.code, again.code) == (0, 0)
    assert "1,600 tokens" in again.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before


def test_a_text_that_ends_early_is_said_and_is_no_error(sae: Server, world: Path, tmp_path: Path):
    ended = sae(*harvest(world, tmp_path / "store", tokens=10**6))
    assert ended.code == 0
    assert "the text ended before --tokens 1,000,000" in ended.err


def test_without_hooks_the_middle_of_the_residual_stream_is_taken(sae: Server, world: Path, tmp_path: Path):
    assert "blocks.0.hook_resid_post" in sae(*harvest(world, tmp_path / "store", hooks="")).out


def test_what_float16_cannot_hold_is_one_line_with_a_type_that_can(sae: Server, tmp_path: Path):
    import torch
    from transformers import LlamaForCausalLM

    world = tmp_path / "world"
    tiny.model_folder(world / "model")
    tiny.text_file(world / "text.jsonl")
    huge = LlamaForCausalLM.from_pretrained(world / "model")
    with torch.no_grad():
        huge.model.embed_tokens.weight.mul_(1e5)
    huge.save_pretrained(world / "model")
    line = sae(*harvest(world, tmp_path / "store", hooks="hook_embed", dtype="float16")).complaint
    assert "float16 holds up to" in line
    assert "--dtype bfloat16, int8 or float32" in line
    assert sae(*harvest(world, tmp_path / "other", hooks="hook_embed", dtype="bfloat16")).code == 0
