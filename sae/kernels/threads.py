"""Compiled loops shared out over threads: numba's let go of the interpreter, and each does a range of its items alone."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

BLOCKS_PER_THREAD = 4  # items differ in cost; who is done early takes another block


def blocks_wanted() -> int:
    """Into how many blocks work is best cut: one, where torch uses one thread."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else BLOCKS_PER_THREAD * threads


def evenly(n: int) -> list[int]:
    """Where blocks of equally many of n items begin and end."""
    blocks = blocks_wanted()
    return [n * i // blocks for i in range(blocks + 1)]


def share(loop: Callable[..., Any], bounds: Sequence[int], *args: Any) -> list[Any]:
    """What loop(lo, hi, *args) gives for each block between two bounds, in order, on as many threads as torch uses."""
    blocks = [(lo, hi) for lo, hi in itertools.pairwise(bounds) if lo < hi]
    results: list[Any] = [None] * len(blocks)
    due = iter(list(enumerate(blocks)))

    def work() -> None:
        for place, (lo, hi) in due:  # each block goes to one thread: `next` on a list's iterator is atomic
            results[place] = loop(lo, hi, *args)

    threads = min(torch.get_num_threads(), len(blocks))
    others = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return results


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of its parent's threads
