"""SIGINT and SIGTERM: what they raise, and how a job that can stop at a good place hears of them instead."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler on the way swallows it."""

    def __init__(self, number: int):
        self.number = number


def raise_stopped() -> list[int]:
    """From now on both signals raise Stopped; the list returned gathers the numbers of those that came."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return asked


@contextmanager
def noted() -> Iterator[list[int]]:
    """Within the block both signals only put their number into the list, for the block to look at."""
    asked: list[int] = []
    old = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
