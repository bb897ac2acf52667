"""The worker as tests call it, and as a command: python -m tests.hostile.fuzz --seconds 600 [READER …]."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Fuzzer:
    """A worker process over a folder of whole files."""

    def __init__(self, folder: Path, show: bool = False):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.worker", str(folder)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if show else subprocess.DEVNULL, text=True,
            env={**os.environ, "SHOW": "1" * show},
        )  # fmt: skip
        assert self._answer() == "ready"

    def __call__(self, reader: str, seeds: list[int]) -> dict[str, Any]:
        """Let a reader read the file mutated by each seed: `wrong`, seed -> what was, and how many were `refused`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"reader": reader, "seeds": seeds}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker ended"
        return json.loads(line)


@contextmanager
def fuzzing(folder: Path, show: bool = False) -> Iterator[Fuzzer]:
    """A fuzzer for as long as the block lasts."""
    made = Fuzzer(folder, show)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    """Fuzz for a while, reader after reader in turns, and say what was found."""
    from tests import tiny
    from tests.hostile import worlds
    from tests.hostile.readers import READERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help="all when left out")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--show", action="store_true", help="what refused files are told")
    parser.add_argument("--turn", type=int, default=40, help="seeds of a reader at a time")
    asked = parser.parse_args()
    names = asked.readers or list(READERS)
    counts = {name: [0, 0, 0, 0.0] for name in names}  # cases, refused, wrong, seconds
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "world").mkdir()
        tiny.run(Path(scratch) / "world")
        folder = worlds.make(Path(scratch) / "made", Path(scratch) / "world")
        with fuzzing(folder, asked.show) as fuzz:
            end, first = time.monotonic() + asked.seconds, asked.first
            while time.monotonic() < end:
                for name in names:
                    began = time.monotonic()
                    found = fuzz(name, list(range(first, first + asked.turn)))
                    new = [asked.turn, found["refused"], len(found["wrong"]), time.monotonic() - began]
                    counts[name] = [a + b for a, b in zip(counts[name], new, strict=True)]
                    for seed, said in found["wrong"].items():
                        print(f"{name}, seed {seed}: {said}", flush=True)
                first += asked.turn
    for name, (cases, refused, wrong, seconds) in counts.items():
        print(f"{name:24} {cases:7,} cases {refused:7,} refused {wrong:5,} wrong {seconds:7.1f} s")
    print(f"{sum(c[0] for c in counts.values()):,} cases in all")


if __name__ == "__main__":
    main()
