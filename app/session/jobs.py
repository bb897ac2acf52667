"""Long work of a page: threads with progress, which belong to a visitor, outlive a reload, and can be seen and stopped.

A job belongs to the tab that started it. After a reload, or in a new tab when the old one is closed, the same visitor's page
finds it again. Where none of the visitor's tabs is open any more, it ends by itself after UNSEEN seconds, so that nobody
waits for work that nobody wants. What a stopped job had done by then is kept, where its work hands it in."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from activations.errors import WorkbenchError
from activations.progress import Advance, Progress
from app.session import navigation, visitors

log = logging.getLogger(__name__)

T = TypeVar("T")
UNSEEN = 60.0  # seconds that a job goes on after its visitor's last tab was closed
LOOK = 5.0
KEPT = 24  # ended jobs whose results are kept, of all visitors together
PATIENCE = 3.0  # seconds that jobs have to end in when the app ends


class _Stopped(Exception):
    """Ends the work from inside `Report`."""


class Report:
    """What a job's work tells of itself. Each of its methods raises, and so ends the work, once the job is to stop."""

    def __init__(self, job: "Job[Any]"):
        self.job = job

    def __call__(self, share: float, note: str = "") -> None:
        """Tell the share done, 0 to 1, and a note."""
        self.job.progress(share, note)

    def keep(self, done: Any) -> None:
        """Hand in what is done so far: it is shown meanwhile, and it is the result if the job is stopped."""
        self.job.partial = done


class Job(Generic[T]):
    """Work that is running, done, stopped or failed. It continues while the visitor looks at another page."""

    def __init__(
        self,
        work: Callable[[Report], T],
        key: str = "",
        title: str = "",
        what: Hashable = None,
        owner: visitors.Tab | None = None,
        place: navigation.Place | None = None,
    ):
        self.key, self.title, self.what, self.owner, self.place = key, title, what, owner, place
        self.share, self.note = 0.0, ""
        self.partial: T | None = None
        """What is done so far, where the work hands that in."""
        self.result: T | None = None
        """The result; of a stopped job, what was done by then."""
        self.error: WorkbenchError | None = None
        """The error that ended the work; None if there was none."""
        self.stopped = self.stopping = False
        """Whether the work was ended before it was done, and whether it was asked to end."""
        self.running = True
        self.end_shown = False
        """Whether the page has run again since the work ended."""
        self.drawn = time.monotonic()
        """When a page last drew the job's progress, or may be about to."""
        self._looked = self._started = self._paced = time.monotonic()
        self._unseen = self._took = 0.0
        self.thread = threading.Thread(target=self._run, args=[work], daemon=True)
        self.thread.start()

    @property
    def seconds(self) -> float:
        """Seconds that the work has been running, or ran until it ended."""
        return time.monotonic() - self._started if self.running else self._took

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None before anything is done and when only the end is left.

        Time in which nothing was done, as while waiting and loading, does not count towards the pace."""
        worked = time.monotonic() - self._paced
        return worked * (1 - self.share) / self.share if 0 < self.share < 1 else None

    @property
    def address(self) -> str:
        """The address of the page that started the job, relative to any other page; empty where that is unknown."""
        return self.place.address if self.place else ""

    @property
    def unseen(self) -> float:
        """Seconds since a tab of the job's visitor was last open; 0 while one is.

        Work that reports seldom is looked at seldom. Of a long time between two looks, in which a tab may have been open,
        only LOOK seconds count."""
        now, here = time.monotonic(), self.owner is None or visitors.is_here(self.owner.visitor)
        self._unseen = 0.0 if here else self._unseen + min(now - self._looked, LOOK)
        self._looked = now
        return self._unseen

    def stop(self) -> None:
        """Ask the work to end, which it does at its next report."""
        self.stopping = True

    def progress(self, share: float, note: str = "") -> None:
        """Take the news from the work. Raises to end it when the job is to stop, or nobody has seen it for too long."""
        if self.stopping or self.unseen > UNSEEN:
            raise _Stopped
        if share <= 0:
            self._paced = time.monotonic()
        self.share, self.note = min(max(share, 0.0), 1.0), note

    def _run(self, work: Callable[[Report], T]) -> None:
        try:
            self.result = work(Report(self))
        except _Stopped:
            self.stopped, self.result = True, self.partial
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
            self.partial = None
            if not (self.stopped or self.error):
                took(self.key.split(" ")[0], self._took)


_jobs: list[Job[Any]] = []  # of all visitors, the newest last
_lock = threading.RLock()
_durations: dict[str, float] = {}  # of the last job of each kind that was not stopped, in seconds


def start(key: str, work: Callable[[Report], T], title: str, what: Hashable = None) -> Job[T]:
    """Start work in the background as this visitor's job under the key, and stop the job that still runs under it.

    The key's first word is the kind of work. `title` says in a few words what runs, to the visitor and to others who wait
    for it. `what` is the work's input, by which `find` tells the job from earlier ones under the key."""
    me = visitors.me()
    with _lock:
        for job in _jobs:
            if job.key == key and job.running and _is_mine(job, me):
                job.stop()
        job = Job(work, key, title, what, me, navigation.here())
        _jobs.append(job)
        ended = [job for job in _jobs if not job.running]
        for old in ended[: max(len(ended) - KEPT, 0)]:
            _jobs.remove(old)
    return job


def find(key: str, what: Hashable = None) -> Job[Any] | None:
    """Return the last job under the key, for this input, that this tab started or that a closed tab of the visitor left."""
    me = visitors.me()
    with _lock:
        for job in reversed(_jobs):
            if job.key == key and job.what == what and _is_mine(job, me):
                job.owner = me
                return job
    return None


def forget(key: str) -> None:
    """Forget this visitor's jobs under the key, after stopping them."""
    me = visitors.me()
    with _lock:
        for job in [job for job in _jobs if job.key == key and _is_mine(job, me)]:
            job.stop()
            _jobs.remove(job)


def of_visitor() -> list[Job[Any]]:
    """Return the jobs of this visitor, in whatever tab, that run or whose end no page has shown yet."""
    visitor = visitors.me().visitor
    with _lock:
        mine = [job for job in _jobs if job.owner and job.owner.visitor == visitor]
    return [job for job in mine if job.running or not (job.end_shown or job.stopped)]


def took(kind: str, seconds: float) -> None:
    """Note how long a piece of work took."""
    _durations[kind] = seconds


def usual_seconds(kind: str) -> float | None:
    """Return how long the last job of a kind took on this machine; None before one has ended."""
    return _durations.get(kind)


def usual_time(kind: str) -> str:
    """Return a sentence about how long a kind of work takes, to follow another; empty before it was measured here."""
    seconds = usual_seconds(kind)
    return "" if seconds is None else f" The last one took {seconds:.0f} s."


def end_all() -> None:
    """Stop all jobs and wait until they end, at most PATIENCE seconds.

    A thread that still computes when Python ends is torn down inside the C++ of its libraries, which then abort with a
    message of their own. A job that does not end in time takes the process with it before that."""
    with _lock:
        running = [job for job in _jobs if job.running]
    for job in running:
        job.stop()
    deadline = time.monotonic() + PATIENCE
    for job in running:
        job.thread.join(max(deadline - time.monotonic(), 0.0))
    if any(job.thread.is_alive() for job in running):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


atexit.register(end_all)


def progress(report: Report, stages: Mapping[str, tuple[float, float]] | None = None) -> Progress:
    """Return a Progress that passes on to a job's `report` how far its work is.

    `stages` maps a stage to the shares of the whole work at which it begins and ends; a stage without an entry is all of
    the work. What an earlier call had done does not count, so that the time left is that of the rest."""

    @contextmanager
    def open_stage(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        start, end = (stages or {}).get(stage, (0.0, 1.0))
        finished = done

        def advance(n: int, note: str = "") -> None:
            nonlocal finished
            finished += n
            share = (finished - done) / max(total - done, 1)
            report(start + (end - start) * share, note or f"{stage}: {finished:,} of {total:,} {unit}")

        yield advance

    return open_stage


def _is_mine(job: Job[Any], me: visitors.Tab) -> bool:
    """Return whether this tab started the job, or the visitor did in a tab that is closed."""
    if job.owner is None or job.owner.visitor != me.visitor:
        return False
    return job.owner == me or not visitors.is_open(job.owner)
