"""One process at a time in a folder: the second is refused at once, and the kernel lets go however the first one ends."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from activations.errors import BusyError

log = logging.getLogger(__name__)
NAME = ".lock"  # in the folder while somebody works there, and after a crash; means nothing by itself
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some network disks


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, and let no other process into such a block for it. Raises BusyError when one is in it already.

    Afterwards there is no trace of it: no lock, and no folder if it was made here and has stayed empty."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / NAME
    lock = FileLock(place, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another process is at work in {folder}: wait for its end, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s is on a disk without locks: see to it that no other process works there", folder)
    try:
        yield
    finally:
        place.unlink(
            missing_ok=True
        )  # while it is held: whoever opened it meanwhile sees that its name is gone
        lock.release()
        if made:
            with suppress(OSError):
                folder.rmdir()


def clear(folder: Path, tidy: Callable[[], None] = lambda: None) -> None:
    """Take away the lock that a crash has left in a folder where there is nothing to do any more.

    `tidy` is called first: it removes what else the crash left there. Neither happens while somebody works there."""
    if (folder / NAME).exists():
        with suppress(BusyError), alone_in(folder):
            tidy()
