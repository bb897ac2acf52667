"""A harvest, a training or features that are killed at any moment and restarted end with the bytes of undisturbed ones."""

import random
from functools import partial
from pathlib import Path

import pytest

from tests.cli.commands import Server, harvest, train
from tests.faults.jobs import JOBS, Job, bare, differences, end_state, features
from tests.faults.kills import killed_at_each_change, killed_everywhere

SHORT = {  # (job, least number of changes on disk)
    "harvest": (Job(partial(harvest, tokens=640)), 15),  # two shards
    "train": (
        Job(partial(train, **{"train.steps": 20, "train.keep-checkpoints": 1}), ("--resume",)),
        25,
    ),
    "features": (Job(lambda world, out: [*features(world, out), "--tokens", 1000], prepare=bare), 25),
}


@pytest.mark.parametrize("name", ["harvest", "train", pytest.param("features", marks=pytest.mark.slow)])
def test_killed_before_any_change_on_disk_a_job_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path, name: str
):
    job, least = SHORT[name]
    wrong = killed_at_each_change(sae, job, world, tmp_path)
    assert len(wrong) > least
    assert not {number: found for number, found in wrong.items() if found}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_killed_at_random_moments_a_job_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path, job: Job, kills: int
):
    assert not killed_everywhere(sae, job, world, tmp_path, kills, random.Random(kills))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("harvest", (100, 20_000)),  # within harvest.json, within a shard
        ("train", (100, 3000, 9000)),  # within run.json, a checkpoint's weights, its optimizer's state
        ("features", (100, 8000)),  # within job.json, within the table
    ],
)
def test_killed_in_the_middle_of_a_write_a_job_ends_as_undisturbed(
    sae: Server, world: Path, tmp_path: Path, name: str, sizes: tuple[int, ...]
):
    job, out, whole = JOBS[name], tmp_path / "out", tmp_path / "undisturbed"
    job.prepare(world, whole)
    assert sae(*job.words(world, whole)).code == 0
    job.prepare(world, out)
    for size in sizes:
        assert sae(*job.words(world, out), *job.again, die_past=(size,)).code < 0
    assert sae(*job.words(world, out), *job.again).code == 0
    assert not differences(end_state(out), end_state(whole))
