"""The three long commands as one thing each: how it is started, started again, and what its end state is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from activations.disk import files
from tests.cli.commands import contents, harvest, train

PACE = (
    "seconds",
    "tokens_per_second",
)  # of a row of log.jsonl: what two runs of the same settings do not share
FEATURES = "--strongest 4 --sampled 10 --neighbours 3 --logits 3 --batch 64".split()


@dataclass(frozen=True)
class Job:
    """A command and the folder it fills."""

    words: Callable[[Path, Path], list[object]]
    """From the toy world and the folder to the command."""
    again: tuple[str, ...] = ()
    """What is added to go on after a stop."""
    prepare: Callable[[Path, Path], object] = lambda world, out: None
    """Brings the folder to where the command begins."""


def features(world: Path, out: Path) -> list[object]:
    """Features of a run with small settings."""
    return ["features", out, *FEATURES]


def bare(world: Path, out: Path) -> None:
    """A copy of the toy run without features."""
    shutil.copytree(world / "runs" / "toy", out, ignore=shutil.ignore_patterns("features"))


JOBS = {
    "harvest": Job(harvest),
    "train": Job(train, ("--resume",)),
    "features": Job(features, prepare=bare),
}


def end_state(folder: Path) -> dict[str, object]:
    """All that a folder holds but what differs between two runs of the same settings: times, and a run's own id."""
    found: dict[str, object] = dict(contents(folder))
    if (log := folder / "log.jsonl").exists():
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found["log.jsonl"] = [{key: row[key] for key in row if key not in PACE} for row in rows]
    if (about := folder / "run.json").exists():
        found["run.json"] = {**files.read_json(about), "id": None}
    return found


def differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Names of the files that are there in one state only, or differ."""
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
