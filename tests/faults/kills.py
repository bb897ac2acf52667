"""Kill a command at random moments, or at each change it makes on disk, and restart it until it is done."""

import random
import signal
import time
from pathlib import Path

from tests.cli.commands import Command, Server
from tests.faults.jobs import Job, differences, end_state


def killed_everywhere(
    sae: Server, job: Job, world: Path, folder: Path, kills: int, moments: random.Random
) -> dict[int, list[str]]:
    """Kill a job `kills` times, each time at a random moment of its undisturbed duration, and resume it each time.

    When a job is done before all kills, a new one starts. Returns, by the number of the job, the files in which its end state
    differs from an undisturbed one; empty when all is well."""
    whole = folder / "undisturbed"
    job.prepare(world, whole)
    started = time.monotonic()
    assert sae(*job.words(world, whole)).code == 0
    length, wanted = time.monotonic() - started, end_state(whole)
    wrong: dict[int, list[str]] = {}
    done = 0
    for number in range(4 * kills):
        out = folder / f"killed-{number}"
        job.prepare(world, out)
        done += _to_the_end(sae, [*job.words(world, out), *job.again], kills - done, length, moments)
        if found := differences(end_state(out), wanted):
            wrong[number] = found
        if done >= kills:
            return wrong
    raise AssertionError(f"only {done} of {kills} kills came before the job was done")


def _to_the_end(sae: Server, words: list[object], kills: int, length: float, moments: random.Random) -> int:
    """Run a command, killing it up to `kills` times, until it ends by itself; return how often it was killed."""
    for killed in range(kills + 1):
        running = sae.start(*words)
        if killed < kills:
            _kill_after(running, moments.uniform(0, length))
        ended = running.wait()
        if ended.code == 0:
            return killed
        assert ended.code == -signal.SIGKILL, ended
    raise AssertionError("unreachable: the last time nobody kills it")


def _kill_after(running: Command, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    running.when(lambda: time.monotonic() >= deadline)
    running.kill()


def killed_at_each_change(sae: Server, job: Job, world: Path, folder: Path) -> dict[int, list[str]]:
    """Kill a job before its 1st, 2nd, … change of a name in its folder and resume it, until one ends before its kill.

    Returns, by the number of the change, the files in which the end state differs from an undisturbed one. Two jobs run at a
    time, because there are many."""
    job.prepare(world, folder / "undisturbed")
    assert sae(*job.words(world, folder / "undisturbed")).code == 0
    wanted, found = end_state(folder / "undisturbed"), {}
    for first in range(1, 200, 2):
        outs = {number: folder / f"killed-{number}" for number in (first, first + 1)}
        running = {}
        for number, out in outs.items():
            job.prepare(world, out)
            running[number] = sae.start(*job.words(world, out), kill_at=(number, out))
        codes = {number: command.wait().code for number, command in running.items()}
        assert all(code in (0, -signal.SIGKILL) for code in codes.values()), codes
        again = {
            number: sae.start(*job.words(world, outs[number]), *job.again)
            for number, code in codes.items()
            if code
        }
        for number, command in again.items():
            ended = command.wait()
            found[number] = [ended.err] if ended.code else differences(end_state(outs[number]), wanted)
        if len(again) < 2:
            return found
    raise AssertionError("no end")
