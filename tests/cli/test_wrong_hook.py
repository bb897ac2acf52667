"""A view of the model that gives at a hook point what passes another is refused wherever activations are made."""

from pathlib import Path

import pytest

from tests import tiny
from tests.cli.commands import Server, contents, harvest

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"
STREAM = {"tokens": 4000, "context": 16, "shard_tokens": 512, "batch_tokens": 128, "kept_tokens": 2048}
SWEEP = """
out = "{out}"
windows = 0
ring = "1500kB"
shuffle_tokens = 512
[stream]
model = "{world}/model"
dataset = "{world}/text.jsonl"
{stream}
[train]
steps = 20
[[grid]]
arch = "topk"
hook = ["{right}", "{hook}"]
d_sae = 32
k = 4
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """A fault by which the hook point after the block gives what is before it."""
    (tmp_path / "planted").mkdir()
    return {"hook_elsewhere": (HOOK, OTHER, tmp_path / "planted")}


def refused(line: str) -> None:
    """Assert that a line names the hook point and what it was compared with."""
    assert f"{HOOK} of " in line
    assert "is not what the model computes: on the first window it differs by" in line
    assert "from hidden_states[1]" in line


def test_a_harvest_refuses_it(sae: Server, world: Path, tmp_path: Path, elsewhere: dict):
    refused(sae(*harvest(world, tmp_path / "store", hooks=HOOK), **elsewhere).complaint)
    assert not (tmp_path / "store").exists()
    assert sae(*harvest(world, tmp_path / "store", hooks=tiny.HOOK), **elsewhere).code == 0


def test_a_training_on_a_stream_refuses_it(sae: Server, world: Path, tmp_path: Path, elsewhere: dict):
    settings = {
        "model": world / "model", "dataset": world / "text.jsonl", "hook": HOOK, "ring": "1500kB", "out": tmp_path / "run",
        "shuffle_tokens": 512, "arch.d-sae": 32, "arch.k": 4, "train.steps": 20, **STREAM,
    }  # fmt: skip
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    refused(sae("train", "topk", *flags, **elsewhere).complaint)
    assert not any(name.endswith((".safetensors", "run.json")) for name in contents(tmp_path / "run"))


def test_a_sweep_on_a_stream_refuses_it(sae: Server, world: Path, tmp_path: Path, elsewhere: dict):
    stream = "\n".join(f"{name} = {value}" for name, value in STREAM.items())
    text = SWEEP.format(out=tmp_path / "out", world=world, hook=HOOK, right=tiny.HOOK, stream=stream)
    (tmp_path / "sweep.toml").write_text(text)
    refused(sae("sweep", tmp_path / "sweep.toml", **elsewhere).complaint)
    assert not any(name.endswith((".safetensors", "run.json")) for name in contents(tmp_path / "out"))
