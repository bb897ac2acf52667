"""Report the progress of long work: one protocol for the command line, the app and notebooks, and a bar for terminals.

Every function that works for long takes `progress: Progress = no_progress` and opens each of its stages with it:

    with progress("evaluate", rows, "tokens") as advance:
        for batch in batches:
            ...
            advance(len(batch))
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

PLAIN_EVERY = 10.0  # seconds between plain lines


class Advance(Protocol):
    """Reports that `n` more units of a stage are done. It may raise to stop the work."""

    def __call__(self, n: int, note: str = "") -> None:
        """Take the news; `note` is a short text to show beside the bar."""
        ...


class Progress(Protocol):
    """Opens a stage of `total` units, `done` of which an earlier, interrupted call has finished."""

    def __call__(self, stage: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """Return a context manager around the stage."""
        ...


def ignore(n: int, note: str = "") -> None:
    """Report to nobody."""


@contextmanager
def no_progress(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show nothing."""
    yield ignore


@contextmanager
def show_progress(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show a stage on stderr with its rate and the time left: a bar on a terminal, a plain line now and then elsewhere.

    Of several processes that `torchrun` started only rank 0 shows anything."""
    if int(
        os.environ.get("RANK", "0")
    ):  # as ranks.rank() reads it; that module lies above this one and cannot be imported here
        yield ignore
    elif sys.stderr.isatty():
        with _bar(stage, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(stage, total, unit, done)


def part_of(advance: Advance, counted: str, outer: str) -> Progress:
    """Return a Progress whose stage `counted` counts towards the enclosing stage of `advance`.

    The enclosing stage shows the note `outer`; other stages show nothing."""

    def forward(n: int, note: str = "") -> None:
        advance(n, note=outer)

    @contextmanager
    def progress(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        if stage != counted:
            yield ignore
            return
        advance(done, note=outer)
        yield forward

    return progress


@contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="", note="")
        meter = _Meter(total, done)

        def advance(n: int, note: str = "") -> None:
            meter.add(n)
            bar.update(task, advance=n, rate=f"{shown(meter.rate)} {unit}/s", note=note)

        yield advance


def _lines(what: str, total: int, unit: str, done: int) -> Advance:
    meter = _Meter(total, done)
    told = time.monotonic()

    def advance(n: int, note: str = "") -> None:
        nonlocal told
        meter.add(n)
        now = time.monotonic()
        if now - told >= PLAIN_EVERY or meter.done >= total > meter.done - n:
            told = now
            most = "up to " if meter.warming else ""
            left = f"{most}{clock(meter.left)} left" if meter.rate else "time unknown"
            left = left if meter.done < total else "done"
            tail = f", {note}" if note else ""
            print(
                f"{what}: {meter.done:,} of {total:,} {unit} ({meter.done / max(total, 1):.0%}), "
                f"{shown(meter.rate)}/s, {left}{tail}",
                file=sys.stderr,
                flush=True,
            )

    return advance


def clock(seconds: float) -> str:
    """Return a time as text, in minutes and seconds, such as 3:05, from an hour on with hours: 2:03:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown(rate: float) -> str:
    """Return a rate as text: 12,345, or two digits such as 0.27 below 10."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class _Meter:
    """Counts finished work, its recent rate and the time that the rest will take."""

    WINDOW = 30.0  # seconds the rate is taken over: work that an earlier run had done soon drops out of it
    WARM = 1.0  # seconds after the first news from which on the time before it no longer counts

    def __init__(self, total: int, done: int):
        self.total, self.done = total, done
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self.warming = True
        """Whether the time of the first units is counted, which take longer: kernels are compiled and memory is touched for them."""

    def add(self, n: int) -> None:
        """Count n more units."""
        now = time.monotonic()
        self.done += n
        self._marks.append((now, self.done))
        if self.warming and len(self._marks) > 2 and now - self._marks[1][0] >= self.WARM:
            self._marks.popleft()
            self.warming = False
        while len(self._marks) > 2 and self._marks[1][0] < now - self.WINDOW:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Units a second."""
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(now - then, 1e-9)

    @property
    def left(self) -> float:
        """Seconds until done, at this rate."""
        return (self.total - self.done) / max(self.rate, 1e-9)
