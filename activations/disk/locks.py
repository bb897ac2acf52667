"""Locks that let one process at a time work in a folder. The kernel releases them however the process ends."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from activations.errors import BusyError

log = logging.getLogger(__name__)
NAME = ".lock"  # exists while a process works there, and after a crash: only the kernel knows if it is held
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # raised on some network disks


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock within the block. Raises BusyError at once when another process holds it.

    Afterwards the lock file is removed, and the folder too if it was created here and is still empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another process is at work in {folder}: wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s is on a disk without locks: make sure that no other process works there", folder)
    try:
        yield
    finally:
        # Removed while it is held: a process that has opened it meanwhile then sees that the name is gone
        path.unlink(missing_ok=True)
        lock.release()
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def clear(folder: Path, tidy: Callable[[], None] = lambda: None) -> None:
    """Remove the lock file that a crash has left in a finished folder.

    `tidy` is called first, to remove what else the crash left there. Nothing happens while a process holds the lock."""
    if (folder / NAME).exists():
        with suppress(BusyError), alone_in(folder):
            tidy()
