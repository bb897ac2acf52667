"""SIGINT and SIGTERM as an exception, or as a note for a job that stops at a place of its own choosing."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler on the way swallows it."""

    def __init__(self, number: int):
        self.number = number


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def raised() -> Iterator[list[int]]:
    """Within the block, let both signals raise Stopped; yield a list that collects the numbers of those that arrive."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise Stopped(number)

    with _handled(stop):
        yield asked


@contextmanager
def noted() -> Iterator[list[int]]:
    """Within the block, let both signals only append their number to the list, for the block to check."""
    asked: list[int] = []
    with _handled(lambda number, frame: asked.append(number)):
        yield asked


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals so within the block, and afterwards as before it.

    A handler that was not installed from Python cannot be put back: the default takes its place."""
    old = {number: signal.getsignal(number) for number in SIGNALS}
    try:  # from here on, since the handler may raise as soon as the first signal has it
        for number in SIGNALS:
            signal.signal(number, handler)
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
