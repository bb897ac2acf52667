"""How those who wait are told of long work: stage by stage, each with its size."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""Told how many more units are done."""
Watch = Callable[[str, int, str], AbstractContextManager[Advance]]
"""watch(stage, total, unit), around the stage (`sae.cli.progress.progress` is one)."""


def ignore(done: int) -> None:
    """Nobody listens."""


@contextmanager
def unwatched(stage: str, total: int, unit: str) -> Iterator[Advance]:
    """Nobody looks."""
    yield ignore
