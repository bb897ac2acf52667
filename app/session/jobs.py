"""Long work of a page: in a thread of its own, with progress, stopped when the visitor says so."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import streamlit as st

from activations.errors import WorkbenchError
from activations.progress import Advance, Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
Report = Callable[[float, str], None]
"""Called by the work with the share done, 0 to 1, and a note; does not return once the visitor pressed Stop."""


class _Stopped(Exception):
    """Raised inside the work, through `Report`."""


class Job(Generic[T]):
    """Work under way, done, stopped or failed. It keeps going when the visitor looks at another page."""

    def __init__(self, work: Callable[[Report], T]):
        self.share, self.note = 0.0, ""
        self.result: T | None = None
        self.error: str | None = None
        """What went wrong, in one line."""
        self.stopped = False
        self.running = True
        self.heard = False
        """Whether the page has run again since it ended."""
        self._stop = threading.Event()
        self._started, self._took = time.monotonic(), 0.0
        threading.Thread(target=self._run, args=[work], daemon=True).start()

    @property
    def seconds(self) -> float:
        """How long it has been running, or ran."""
        return time.monotonic() - self._started if self.running else self._took

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take at the pace so far; None before there is one."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None

    def stop(self) -> None:
        """Ask it to end; it does at its next report."""
        self._stop.set()

    def _report(self, share: float, note: str = "") -> None:
        if self._stop.is_set():
            raise _Stopped
        self.share, self.note = min(max(share, 0.0), 1.0), note

    def _run(self, work: Callable[[Report], T]) -> None:
        try:
            self.result = work(self._report)
        except _Stopped:
            self.stopped = True
        except WorkbenchError as error:
            self.error = str(error)
        except Exception as error:  # a thread has nobody to raise to: the page says so, the log has the trace
            log.exception("a job failed")
            self.error = f"this did not work ({type(error).__name__}: {error}); the terminal has the details"
        finally:
            self._took, self.running = self.seconds, False


def start(key: str, work: Callable[[Report], T]) -> Job[T]:
    """Begin work in the background, as this visitor's job of that key; one still running is stopped."""
    before = find(key)
    if before:
        before.stop()
    st.session_state[_place(key)] = job = Job(work)
    return job


def find(key: str) -> Job[Any] | None:
    """This visitor's last job of that key, or None."""
    return st.session_state.get(_place(key))


def progress(report: Report, stages: Mapping[str, tuple[float, float]] | None = None) -> Progress:
    """Return a Progress that tells a job's `report` how far its work is.

    `stages` says from which to which share of the whole work each stage goes; a stage without an entry is the whole."""

    @contextmanager
    def open_stage(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        start, end = (stages or {}).get(stage, (0.0, 1.0))
        finished = done

        def advance(n: int, note: str = "") -> None:
            nonlocal finished
            finished += n
            share = finished / max(total, 1)
            report(start + (end - start) * share, note or f"{stage}: {finished:,} of {total:,} {unit}")

        yield advance

    return open_stage


def _place(key: str) -> str:
    return f"job {key}"
