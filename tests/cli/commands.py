"""Run `sae` commands as processes: exit code, standard output, standard error, signals, crashes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import tiny

ROOT = Path(__file__).parents[2]
PROGRESS = re.compile(r"[\w ]+: [\d,]+ of [\d,]+ \w+ \(")
TIMEOUT = 60.0  # seconds; far beyond what any command of the toy world takes


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; minus the signal's number when a signal ended it."""
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The error that a command ended with after a mistake of its user: one line on standard error, and the fix if it has one.

        A fix stands on a line of its own; here it follows the error after a semicolon."""
        lines = [line for line in self.err.splitlines() if not PROGRESS.match(line)]
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err, self.err
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  fix: ")), self.err
        return "; ".join(line.removeprefix("  fix: ") for line in lines)


class Command:
    """A command under way."""

    def __init__(self, server: "Server", pid: int, folder: Path):
        self._server, self.pid, self._folder = server, pid, folder
        self._code: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        if self._code is None:
            self._code = self._server.ask({"pid": self.pid})["code"]
        return self._code is None

    @property
    def stopped(self) -> bool:
        """Whether it is held by SIGSTOP."""
        return self.running and Path(f"/proc/{self.pid}/stat").read_text().rsplit(")")[-1].split()[0] == "T"

    @property
    def err(self) -> str:
        """What it has written to standard error so far."""
        return self._read("stderr")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self.running:
            os.kill(self.pid, number)

    def when(self, happened: Callable[[], Any]) -> "Command":
        """Return when something has happened, or when the command has ended."""
        deadline = time.monotonic() + TIMEOUT
        while not happened() and self.running:
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0.002)
        return self

    def wait(self) -> Ended:
        """Wait for the end."""
        deadline = time.monotonic() + TIMEOUT
        while self.running:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"no end after {TIMEOUT} s: {self.err}")
            time.sleep(0.005)
        assert self._code is not None
        return Ended(self._code, self._read("stdout"), self.err)

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8")


class Server:
    """The process that commands are forked from."""

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0
        env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.server"],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "ready" in self._read()

    def start(self, *args: object, cwd: Path | None = None, **faults: tuple[object, ...]) -> Command:
        """Start `sae ARGS` with the faults named: a function of `tests.cli.server.FAULTS` and its arguments."""
        self._count += 1
        own = self._folder / f"command-{self._count}"
        own.mkdir()
        for name in ("stdout", "stderr"):
            (own / name).touch()
        request = {
            "args": list(map(str, args)),
            "cwd": str(cwd or own),
            "faults": faults,
            "stdout": str(own / "stdout"),
            "stderr": str(own / "stderr"),
        }
        return Command(self, self.ask(request)["pid"], own)

    def __call__(self, *args: object, **options: Any) -> Ended:
        """Run `sae ARGS` to its end."""
        return self.start(*args, **options).wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the command server ended"
        return json.loads(line)


def harvest(world: Path, out: Path, **changes: object) -> list[object]:
    """A harvest of four shards from the toy world; an underscore in a name of `changes` is a dash of the flag."""
    settings = {
        "model": world / "model", "dataset": world / "text.jsonl", "hooks": tiny.HOOK, "tokens": 1600, "context": 16,
        "shard-tokens": 512, "batch-tokens": 128, "out": out,
    }  # fmt: skip
    return ["harvest", *_flags(settings, changes)]


def train(world: Path, out: Path, *more: object, **changes: object) -> list[object]:
    """Return a training with a checkpoint every 10 steps (a step takes a second in the server) on the toy world's store;
    `arch__k` is the flag --arch.k."""
    settings = {
        "store": world / "store", "arch.d-sae": 32, "arch.k": 4, "train.steps": 40, "train.batch": 64,
        "train.log-every": 5, "train.checkpoint-minutes": 1 / 6, "out": out,
    }  # fmt: skip
    return ["train", "topk", *_flags(settings, changes), *more]


def _flags(settings: dict[str, object], changes: dict[str, object]) -> list[object]:
    changed = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return [part for name, value in {**settings, **changed}.items() for part in (f"--{name}", value)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and its bytes; empty when there is no folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
