"""Work in a thread of its own: a stream made ahead of its reader, and work left behind while the next begins."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(stream: Iterable[T], count: int) -> Generator[T, None, None]:
    """The items of `stream`, in order, up to `count` of them made before they are asked for; 0 makes none ahead.

    An error of the stream is raised in its place. Closing the generator waits for the item being made."""
    if not count:
        yield from stream
        return
    source, end = iter(stream), object()
    pool = ThreadPoolExecutor(1, "ahead")
    waiting: deque[Future[Any]] = deque()
    try:
        waiting.extend(pool.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        for future in waiting:  # by hand: `cancel_futures` fails when the interpreter is ending
            future.cancel()
        pool.shutdown()


class Behind:
    """Does work behind its caller's back, up to `depth` pieces of it at a time.

    Leaving the block waits for all of it. The first error ends the block with that error, at the next `do` or
    at its end, unless the block ends by an error of its own."""

    def __init__(self, depth: int = 1):
        self._depth = depth
        self._pool = ThreadPoolExecutor(depth, "behind")
        self._running: deque[Future[Any]] = deque()

    def do(self, work: Callable[..., object], *arguments: object) -> None:
        """Begin `work(*arguments)`, having waited until fewer than `depth` pieces are under way."""
        self._wait(self._depth - 1)
        self._running.append(self._pool.submit(work, *arguments))

    def _wait(self, left: int) -> None:
        while len(self._running) > left:
            self._running.popleft().result()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._pool.shutdown()
