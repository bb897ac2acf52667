"""Running compiled loops on several threads: numba releases the interpreter's lock, and each call does a range of items."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

BLOCKS_PER_THREAD = 4  # items differ in cost; a thread that is done early takes another block


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
