"""Nothing depends on the time of day: the clock may go back, and files may have any date."""

import os
from pathlib import Path

import pytest

from tests.cli.commands import Server
from tests.faults.jobs import JOBS, Job, differences, end_state

HOUR, YEAR_2100 = 3600, 4_102_444_800


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_clock_that_goes_back_changes_nothing(sae: Server, world: Path, tmp_path: Path, job: Job):
    out, whole = tmp_path / "out", tmp_path / "undisturbed"
    for folder in (out, whole):
        job.prepare(world, folder)
    assert sae(*job.words(world, whole)).code == 0
    stopped = sae.start(*job.words(world, out), clock_goes_back=(HOUR,), kill_at=(25, out)).wait()
    assert stopped.code == -9
    for number, path in enumerate(sorted(out.rglob("*"))):
        when = YEAR_2100 - number * HOUR if number % 2 else number
        os.utime(path, (when, when))
    again = sae(*job.words(world, out), *job.again, clock_goes_back=(HOUR,))
    assert again.code == 0, again.err
    assert not differences(end_state(out), end_state(whole))
