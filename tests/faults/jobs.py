"""The three long commands: how each is started and resumed, and what its end state is."""

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
)  # columns of log.jsonl that differ between two runs of the same settings
FEATURES = "--strongest 4 --sampled 10 --neighbours 3 --logits 3 --batch 64".split()


@dataclass(frozen=True)
class Job:
    """A command that fills a folder."""

    words: Callable[[Path, Path], list[object]]
    """(toy world, folder) -> the command."""
    again: tuple[str, ...] = ()
    """Arguments to add when resuming."""
    prepare: Callable[[Path, Path], object] = lambda world, out: None
    """Prepares the folder before the command starts."""


def features(world: Path, out: Path) -> list[object]:
    """Return the command that describes a run's latents with small settings."""
    return ["features", out, *FEATURES]


def bare(world: Path, out: Path) -> None:
    """Copy the toy run without its features."""
    shutil.copytree(world / "runs" / "toy", out, ignore=shutil.ignore_patterns("features"))


JOBS = {
    "harvest": Job(harvest),
    "train": Job(train, ("--resume",)),
    "features": Job(features, prepare=bare),
}


def end_state(folder: Path) -> dict[str, object]:
    """Return a folder's content without what differs between two runs of the same settings: times and the run's id."""
    found: dict[str, object] = dict(contents(folder))
    if (log := folder / "log.jsonl").exists():
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found["log.jsonl"] = [{key: row[key] for key in row if key not in PACE} for row in rows]
    if (about := folder / "run.json").exists():
        found["run.json"] = {**files.read_json(about), "id": None}
    return found


def differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Return the names of files that differ, or exist in only one of the states."""
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
