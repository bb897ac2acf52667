"""Do work in separate threads: prefetch the items of a stream, write in the background, share out compiled loops."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import torch

T = TypeVar("T")
BLOCKS_PER_THREAD = 4  # items differ in cost; a thread that is done early takes another block


def prefetch(stream: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield the items of `stream` in order, made by a thread up to `count` items before they are asked for.

    With a `count` of 0 no thread is used. An error of the stream is raised in place of the item it replaces. Closing the
    generator waits for the item being made."""
    if not count:
        yield from stream
        return
    source, end = iter(stream), object()
    pool = ThreadPoolExecutor(1, "prefetch")  # one thread: a generator cannot be advanced by two at once
    waiting: deque[Future[Any]] = deque()
    try:
        waiting.extend(pool.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        # One by one: `shutdown(cancel_futures=True)` fails while the interpreter is ending
        for future in waiting:
            future.cancel()
        pool.shutdown()


class BackgroundWriter:
    """Runs work in background threads, up to `depth` pieces of it at a time.

    Leaving the block waits for all of it. The first error of the work is raised at the next `submit`, or at the end of the
    block, unless the block ends with an error of its own."""

    def __init__(self, depth: int = 1):
        self._depth = depth
        self._pool = ThreadPoolExecutor(depth, "background")
        self._running: deque[Future[Any]] = deque()

    def submit(self, work: Callable[..., object], *arguments: object) -> None:
        """Wait until fewer than `depth` pieces are running, then start `work(*arguments)`."""
        self._wait(self._depth - 1)
        self._running.append(self._pool.submit(work, *arguments))

    def check(self) -> None:
        """Raise the error of work that has failed, if any has."""
        for future in self._running:
            if future.done():
                future.result()

    def finish(self) -> None:
        """Wait for all of the work. Raises the error of the first that has failed."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        """Wait for the oldest pieces of work until only `left` are running."""
        while len(self._running) > left:
            self._running.popleft().result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown()


def blocks_wanted() -> int:
    """Return into how many blocks to cut work: one where torch uses one thread."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else BLOCKS_PER_THREAD * threads


def evenly(n: int) -> list[int]:
    """Return the bounds of blocks that cut n items into equal parts."""
    blocks = blocks_wanted()
    return [n * i // blocks for i in range(blocks + 1)]


def share(loop: Callable[..., Any], bounds: Sequence[int], *args: Any) -> list[Any]:
    """Call loop(lo, hi, *args) for each block between two bounds, on as many threads as torch uses. Return the results in order.

    Which thread does a block makes no difference: blocks write disjoint parts, so results do not depend on the threads."""
    blocks = [(lo, hi) for lo, hi in itertools.pairwise(bounds) if lo < hi]
    results: list[Any] = [None] * len(blocks)
    due = iter(list(enumerate(blocks)))

    def work() -> None:
        for number, (lo, hi) in due:  # each block goes to one thread: `next` on a list's iterator is atomic
            results[number] = loop(lo, hi, *args)

    threads = min(torch.get_num_threads(), len(blocks))
    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()  # the calling thread works too, so that one thread needs no pool
    for helper in helpers:
        helper.result()
    return results


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=_pool.cache_clear
    )  # a forked process has the pool but none of its threads
