"""`sae harvest --model` and `--dataset` by names of the hub: fetched once, then read from the cache when the hub is silent."""

import time

import pytest

from tests import tiny
from tests.hub.conftest import contents
from tests.hub.fake_hub import Repository

SMALL = ("--hooks", tiny.HOOK, "--tokens", 800, "--context", 16, "--shard-tokens", 512, "--batch-tokens", 128)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def model(hub, world):
    """Put the toy model on the hub."""
    hub.models["me/toy"] = Repository(contents(world / "model"))
    return "me/toy"


def test_a_model_of_the_hub_is_fetched_and_then_works_without_it(hub, model, asking, world, tmp_path):
    command = ("harvest", "--model", model, "--dataset", world / "text.jsonl", *SMALL)
    ended = asking(*command, "--out", "first")
    assert ended.code == 0, ended.err
    sent = hub.sent
    assert sent > 0
    began = time.monotonic()
    ended = asking(*command, "--out", "second", url=NOWHERE)
    assert ended.code == 0, ended.err
    assert time.monotonic() - began < 20
    assert hub.sent == sent
    first, second = (contents(tmp_path / name) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert first["shard-00000.safetensors"] == second["shard-00000.safetensors"]


@pytest.mark.parametrize("what", ["model", "data set"])
def test_a_silent_hub_is_told_within_seconds(asking, world, tmp_path, what):
    model, text = ("me/toy", world / "text.jsonl") if what == "model" else (world / "model", "me/text")
    began = time.monotonic()
    line = asking("harvest", "--model", model, "--dataset", text, *SMALL, "--out", "a", url=NOWHERE).complaint
    assert f"cannot {'load the model' if what == 'model' else 'open the data set'}" in line
    assert f"{NOWHERE} does not answer" in line
    assert "retry" not in line.lower()
    assert time.monotonic() - began < 8
    assert not (tmp_path / "a").exists() or not [*(tmp_path / "a").glob("*.safetensors")]


def test_a_hub_that_takes_connections_and_says_nothing_is_told_too(hub, asking, world):
    """A socket that listens and never answers stands for a bad proxy."""
    import socket

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        began = time.monotonic()
        line = asking("import", "hf:a/b", "--out", "a", url=url).complaint
        assert url in line
        assert time.monotonic() - began < 8


def test_a_model_that_is_not_there_and_one_that_is_gated_are_told(hub, model, asking, world):
    hub.models["me/gated"] = Repository(contents(world / "model"), gated=True)
    for name in ("me/nothing", "me/gated"):
        line = asking(
            "harvest", "--model", name, "--dataset", world / "text.jsonl", *SMALL, "--out", "a"
        ).complaint
        assert name in line


def test_a_data_set_of_the_hub_is_streamed(hub, asking, world, tmp_path):
    hub.datasets["me/text"] = Repository(
        {"train.jsonl": (world / "text.jsonl").read_bytes(), "README.md": b""}
    )
    command = ("harvest", "--model", world / "model", *SMALL)
    ended = asking(*command, "--dataset", "me/text", "--out", "a")
    assert ended.code == 0, ended.err
    assert asking(*command, "--dataset", world / "text.jsonl", "--out", "b").code == 0
    assert (
        contents(tmp_path / "a")["shard-00000.safetensors"]
        == contents(tmp_path / "b")["shard-00000.safetensors"]
    )
