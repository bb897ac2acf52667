"""Two processes on one folder: the second is refused in one line and changes nothing; the first ends as if alone."""

import signal
from pathlib import Path

import pytest

from activations.disk.files import LOCK
from tests.cli.commands import Server, contents
from tests.faults.jobs import JOBS, Job, differences, end_state

MIDDLE = 10  # number of the change on disk, of about 40


@pytest.mark.parametrize("name", JOBS)
def test_the_second_of_two_processes_on_a_folder_is_refused(
    sae: Server, world: Path, tmp_path: Path, name: str
):
    job, out, whole = JOBS[name], tmp_path / "out", tmp_path / "undisturbed"
    job.prepare(world, out)
    place = out / "features" if name == "features" else out
    first = sae.start(*job.words(world, out), kill_at=(MIDDLE, place, signal.SIGSTOP))
    first.when(lambda: first.stopped)
    before = contents(place)
    assert LOCK in before
    line = sae(*job.words(world, out), *job.again).complaint
    assert f"another process is at work in {place}" in line
    assert contents(place) == before
    first.kill(signal.SIGCONT)
    assert first.wait().code == 0
    job.prepare(world, whole)
    assert sae(*job.words(world, whole)).code == 0
    assert not differences(end_state(out), end_state(whole))


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_folder_of_a_killed_process_is_free_again(sae: Server, world: Path, tmp_path: Path, job: Job):
    out = tmp_path / "out"
    job.prepare(world, out)
    assert sae(*job.words(world, out), kill_at=(MIDDLE, out)).code == -signal.SIGKILL
    assert list(out.rglob(LOCK))
    assert sae(*job.words(world, out), *job.again).code == 0
    assert not list(out.rglob(LOCK))
