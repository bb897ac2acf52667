"""Prefetching and background work: same items and errors in the same order, and no thread left running."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from activations.parallel.threads import BackgroundWriter, prefetch


def counted(made: list[int], fails_at: int | None = None) -> Iterator[int]:
    """Yield 0 to 9 and append each to `made`."""
    for number in range(10):
        if number == fails_at:
            raise ValueError(f"at {number}")
        made.append(number)
        yield number


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_a_stream_made_ahead_is_the_stream(count: int):
    assert list(prefetch(counted([]), count)) == list(range(10))
    assert list(prefetch([], count)) == []


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_an_error_of_the_stream_comes_in_its_place(count: int):
    stream = prefetch(counted([], fails_at=4), count)
    assert [next(stream) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at 4"):
        next(stream)


def test_no_more_is_made_ahead_than_asked_for_and_closing_ends_the_thread():
    made: list[int] = []
    threads = threading.active_count()
    stream = prefetch(counted(made), 2)
    for taken in range(3):
        assert next(stream) == taken
        assert len(made) <= taken + 3
    assert threading.active_count() == threads + 1
    stream.close()
    assert threading.active_count() == threads
    assert len(made) <= 5


def test_a_stream_still_open_when_the_program_ends_is_no_error():
    code = "import itertools; from activations.parallel.threads import prefetch; s = prefetch(itertools.count(), 2); print(next(s))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")


@pytest.mark.parametrize("depth", [1, 3])
def test_work_runs_behind_up_to_a_depth(depth: int):
    gate, done = threading.Event(), []

    def work(number: int) -> None:
        assert gate.wait(10)
        done.append(number)

    with BackgroundWriter(depth) as background:
        for number in range(depth):
            background.submit(work, number)  # none of these waits
        assert done == []
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        background.submit(work, depth)
        assert 0 in done  # the next had to wait for the first
    assert sorted(done) == list(range(depth + 1))


class Failure(Exception):
    """Raised by the background work, or by the block itself."""


def fail(number: int) -> None:
    raise Failure(number)


def block(done: list[int], works: list[Callable[[], object]], fails: bool = False) -> None:
    """Submit works one by one and append to `done` after each; then fail if asked to."""
    with BackgroundWriter() as background:
        for number, work in enumerate(works):
            background.submit(work)
            done.append(number)
        if fails:
            fail(99)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_error_behind_ends_the_block_at_the_next_work_or_at_its_end(before: int, after: int):
    given: list[int] = []
    works = [lambda: None] * before + [lambda: fail(1)] + [lambda: None] * after
    with pytest.raises(Failure, match="1"):
        block(given, works)
    assert given == list(range(before + 1))


def test_an_error_in_front_comes_first_and_waits_for_the_work_behind():
    done: list[str] = []

    def slow() -> None:
        time.sleep(0.05)
        done.append("slow")

    with pytest.raises(Failure, match="99"):
        block([], [slow], fails=True)
    assert done == ["slow"]
    with pytest.raises(Failure, match="99"):
        block([], [lambda: fail(1)], fails=True)
