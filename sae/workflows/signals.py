"""SIGINT and SIGTERM as an exception, or as a note for a job that stops at a place of its own choosing."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler on the way swallows it."""

    def __init__(self, number: int):
        self.number = number


def raise_stopped() -> list[int]:
    """Let both signals raise Stopped from now on; return a list that collects the numbers of those that arrive."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return asked


@contextmanager
def noted() -> Iterator[list[int]]:
    """Within the block, let both signals only append their number to the list, for the block to check."""
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
