"""SIGINT and SIGTERM: the work done is kept, the exit code says which signal, and the command goes on from there."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sae.cli.main import main
from sae.workflows import signals
from tests import tiny
from tests.cli.commands import Command, Server, contents, harvest, train

LONG = {"train.steps": 600, "train.checkpoint-minutes": 1000}  # no checkpoint but the one a signal asks for
both_signals = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)


def test_a_command_that_runs_within_a_process_leaves_its_handlers_as_they_were(
    capsys: pytest.CaptureFixture[str],
):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["store", "show", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_handlers_are_restored_where_a_signal_comes_as_the_first_is_installed(
    monkeypatch: pytest.MonkeyPatch,
):
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    install = signal.signal

    def interrupted(number: int, handler: Any) -> Any:
        old = install(number, handler)
        if number == signal.SIGINT and handler not in before:
            signal.raise_signal(signal.SIGINT)
        return old

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", interrupted)
        with pytest.raises(signals.Stopped), signals.raised():
            pass
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_handler_that_python_does_not_know_gives_way_to_the_default(monkeypatch: pytest.MonkeyPatch):
    before, install = signal.getsignal(signal.SIGTERM), signal.signal

    def unknown(number: int, handler: Any) -> None:
        install(number, handler)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(signals, "SIGNALS", (signal.SIGTERM,))
            # As for a handler that was installed from C
            patch.setattr(signal, "getsignal", lambda number: None)
            patch.setattr(signal, "signal", unknown)
            with signals.noted():
                pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def stopped(running: Command, number: int, code: int) -> str:
    """Send the signal, wait for the end; the line on standard error that says so."""
    running.kill(number)
    ended = running.wait()
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert not ended.out
    (line,) = (line for line in ended.err.splitlines() if "stopped" in line)
    return line


@both_signals
def test_a_stopped_training_writes_a_checkpoint_and_resumes_to_the_same_bits(
    sae: Server, world: Path, tmp_path: Path, number: int, code: int
):
    out = tmp_path / "run"
    running = sae.start(*train(world, out, **LONG)).when(
        lambda: (out / "log.jsonl").exists() and steps_so_far(out) > 20
    )
    line = stopped(running, number, code)
    assert "--resume" in line  # the same command without it would refuse the folder
    (checkpoint,) = (out / "checkpoints").iterdir()
    at = json.loads((checkpoint / "training.json").read_text())["step"]
    assert 20 < at < 600
    assert not (out / "sae.json").exists()
    assert sae(*train(world, out, "--resume", **LONG)).code == 0
    assert sae(*train(world, tmp_path / "undisturbed", **LONG)).code == 0
    assert (out / "sae.safetensors").read_bytes() == (
        tmp_path / "undisturbed" / "sae.safetensors"
    ).read_bytes()
    assert steps(out) == steps(tmp_path / "undisturbed") == list(range(5, 601, 5))


def steps_so_far(run: Path) -> int:
    return (run / "log.jsonl").read_text().count("\n") * 5


def test_a_resumed_training_logs_the_losses_of_an_undisturbed_one(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "run"
    running = sae.start(*train(world, out, **LONG)).when(
        lambda: (out / "log.jsonl").exists() and steps_so_far(out) > 50
    )
    stopped(running, signal.SIGTERM, 143)
    assert sae(*train(world, out, "--resume", **LONG)).code == 0
    assert sae(*train(world, tmp_path / "undisturbed", **LONG)).code == 0
    both = ((out / "log.jsonl").read_text(), (tmp_path / "undisturbed" / "log.jsonl").read_text())
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "tokens_per_second")}
            for line in log.splitlines()
        ]
        for log in both
    ]
    assert timeless[0] == timeless[1]


@both_signals
def test_a_stopped_harvest_keeps_whole_shards_and_goes_on_to_the_same_bytes(
    sae: Server, world: Path, tmp_path: Path, number: int, code: int
):
    text = tiny.text_file(tmp_path / "text.jsonl", documents=150, words=32)
    settings = {"tokens": 16_000, "dataset": text}
    out = tmp_path / "store"
    running = sae.start(*harvest(world, out, **settings)).when(
        lambda: len(list(out.glob("shard-*.json"))) > 2
    )
    line = stopped(running, number, code)
    assert "continue from here" in line
    kept = {path.name: path.read_bytes() for path in out.glob("shard-*.safetensors")}
    assert 3 <= len(kept) < 32
    assert not list(out.glob("*.part"))
    assert not (out / "index.json").exists()
    assert sae(*harvest(world, out, **settings)).code == 0
    assert sae(*harvest(world, tmp_path / "undisturbed", **settings)).code == 0
    whole = contents(tmp_path / "undisturbed")
    assert all(whole[name] == content for name, content in kept.items())
    assert contents(out) == whole


def test_a_harvest_stopped_before_its_first_shard_starts_over(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "store"
    running = sae.start(*harvest(world, out, tokens=5000, shard_tokens=5000)).when(out.exists)
    stopped(running, signal.SIGTERM, 143)
    assert not list(out.glob("shard-*"))
    assert sae(*harvest(world, out, tokens=5000, shard_tokens=5000)).code == 0


@both_signals
def test_a_stopped_evaluation_leaves_the_run_as_it_was(sae: Server, run: Path, number: int, code: int):
    before = contents(run)
    running = sae.start("evaluate", run, "--batch", 1)
    running.when(lambda: "evaluate:" in running.err)
    assert "nothing was kept" in stopped(running, number, code)
    assert contents(run) == before


@both_signals
@pytest.mark.parametrize("error", ["ValueError", "OSError"])
def test_a_stop_that_compiled_code_turns_into_an_error_is_still_a_stop(
    sae: Server, run: Path, number: int, code: int, error: str
):
    ended = sae("evaluate", run, "--windows", 0, stop_within=(number, error))
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert "stopped" in ended.err


@both_signals
def test_stopped_features_go_on_to_the_same_bytes(
    sae: Server, run: Path, tmp_path: Path, number: int, code: int
):
    args = ["--strongest", 4, "--sampled", 10, "--neighbours", 3, "--logits", 3, "--batch", 4]
    assert sae("features", run, *args).code == 0
    whole = contents(run / "features")
    for path in (run / "features").iterdir():
        path.unlink()
    running = sae.start("features", run, *args).when(
        lambda: len(list((run / "features").rglob("shard-*"))) > 1
    )
    assert "continue from here" in stopped(running, number, code)
    assert not (run / "features" / "features.json").exists()
    assert sae("features", run, *args).code == 0
    assert contents(run / "features") == whole
