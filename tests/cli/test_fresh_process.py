"""Commands in processes of their own from the first import on, as users start them and the other tests' forks are not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import ROOT, TIMEOUT, Server, contents, harvest, train

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes write."""
    return tmp_path_factory.mktemp("fresh")


@pytest.fixture(scope="module")
def started(world: Path, folder: Path) -> Iterator[dict[str, Process]]:
    """All processes of this file, started at once: each imports for seconds."""
    commands = {
        "training": train(world, folder / "run", **{"train.steps": 20_000}),
        "mistake": harvest(world, folder / "none", hooks="blocks.1.hook_resid_psot"),
        "harvest": harvest(world, folder / "store", tokens=640),
    }
    processes = {name: start(*command) for name, command in commands.items()}
    yield processes
    for process in processes.values():
        process.kill()


def start(*args: object) -> Process:
    command = [sys.executable, "-m", "sae.cli.main", *map(str, args)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_signal_to_a_training_ends_it_with_a_checkpoint_and_143(started: dict[str, Process], folder: Path):
    process, log = started["training"], folder / "run" / "log.jsonl"
    deadline = time.monotonic() + TIMEOUT
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert list((folder / "run").glob("checkpoints/step-*/training.json"))


def test_a_mistake_is_exactly_one_line_and_exit_code_2(started: dict[str, Process], folder: Path):
    out, err = started["mistake"].communicate(timeout=TIMEOUT)
    assert started["mistake"].returncode == 2
    assert not out
    assert len(err.splitlines()) == 1
    assert "blocks.1.hook_resid_post" in err
    assert not (folder / "none").exists()


def test_a_fork_writes_what_a_fresh_process_writes(
    started: dict[str, Process], folder: Path, sae: Server, world: Path, tmp_path: Path
):
    out, err = started["harvest"].communicate(timeout=TIMEOUT)
    assert started["harvest"].returncode == 0, err
    assert sae(*harvest(world, tmp_path / "store", tokens=640)).code == 0
    assert contents(folder / "store") == contents(tmp_path / "store")
    assert out.endswith("store: 640 tokens, blocks.1.hook_resid_pre\n")


def test_the_usage_needs_no_heavy_import():
    code = "import sys, sae.cli.main; sae.cli.main.main(['--help']); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: sae COMMAND")
    assert ended.stdout.endswith("False\n")


def test_a_hub_that_does_not_answer_is_one_line_however_often_it_is_tried():
    tries = """
from sae.cli.main import _quiet
_quiet()
from huggingface_hub.utils import _http
for number in range(1, 6):
    _http.logger.warning("thrown while requesting HEAD https://huggingface.co/x/y")
    _http.logger.warning(f"Retrying in 8s [Retry {number}/5].")
"""
    ended = subprocess.run(
        [sys.executable, "-c", tries], env=ENV, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "the hub does not answer: trying again, for half a minute\n"
