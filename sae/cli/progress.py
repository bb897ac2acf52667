"""Progress with rate and time left: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from activations.parallel import ranks

PLAIN_EVERY = 10.0  # seconds between plain lines

Advance = Callable[..., None]  # advance(n, note="...")


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show how far a job is, from `done` on; the block gets `advance(n, note="")`, n in `unit`s. Only rank 0 shows it."""
    if ranks.rank():
        yield lambda n, note="": None
    elif sys.stderr.isatty():
        with _bar(what, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(what, total, unit, done)


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
            left = f"{meter.left // 60:.0f}:{meter.left % 60:02.0f} left" if meter.done < total else "done"
            tail = f", {note}" if note else ""
            print(
                f"{what}: {meter.done:,} of {total:,} {unit} ({meter.done / max(total, 1):.0%}), "
                f"{shown(meter.rate)}/s, {left}{tail}",
                file=sys.stderr,
                flush=True,
            )

    return advance


def shown(rate: float) -> str:
    """A rate as a person reads it: 12,345, and 0.27 where whole numbers would say nothing."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class _Meter:
    """How much is done, how fast of late, how long the rest will take."""

    WINDOW = 30.0  # seconds the rate is taken over: work found done from an earlier run soon drops out of it

    def __init__(self, total: int, done: int):
        self.total, self.done = total, done
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def add(self, n: int) -> None:
        """Count n more units."""
        now = time.monotonic()
        self.done += n
        self._marks.append((now, self.done))
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
