"""Long work of a page: a thread with progress, which the visitor can stop."""

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
"""The work calls it with the share done, 0 to 1, and a note. It raises, and so ends the work, once the visitor pressed Stop."""


class _Stopped(Exception):
    """Ends the work from inside `Report`."""


class Job(Generic[T]):
    """Work that is running, done, stopped or failed. It continues while the visitor looks at another page."""

    def __init__(self, work: Callable[[Report], T]):
        self.share, self.note = 0.0, ""
        self.result: T | None = None
        self.error: WorkbenchError | None = None
        """The error that ended the work; None if there was none."""
        self.stopped = False
        self.running = True
        self.end_shown = False
        """Whether the page has run again since the work ended."""
        self._stop = threading.Event()
        self._started, self._took = time.monotonic(), 0.0
        threading.Thread(target=self._run, args=[work], daemon=True).start()

    @property
    def seconds(self) -> float:
        """Seconds that the work has been running, or ran until it ended."""
        return time.monotonic() - self._started if self.running else self._took

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None before anything is done."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None

    def stop(self) -> None:
        """Ask the work to end, which it does at its next report."""
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
            self.error = error
        except (
            Exception
        ) as error:  # a thread has no caller to raise to: the page names the error, the log has the trace
            log.exception("a job failed")
            self.error = WorkbenchError(
                f"the work failed ({type(error).__name__}: {error}); the terminal shows the details"
            )
        finally:
            self._took, self.running = self.seconds, False


def start(key: str, work: Callable[[Report], T]) -> Job[T]:
    """Start work in the background as this visitor's job under the key, and stop the job that still runs under it."""
    before = find(key)
    if before:
        before.stop()
    st.session_state[_state_key(key)] = job = Job(work)
    return job


def find(key: str) -> Job[Any] | None:
    """Return this visitor's last job under the key, or None."""
    return st.session_state.get(_state_key(key))


def progress(report: Report, stages: Mapping[str, tuple[float, float]] | None = None) -> Progress:
    """Return a Progress that passes on to a job's `report` how far its work is.

    `stages` maps a stage to the shares of the whole work at which it begins and ends; a stage without an entry is all of
    the work."""

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


def _state_key(key: str) -> str:
    return f"job {key}"
