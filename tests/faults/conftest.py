"""Fixtures of the fault tests: folders to break, and disks that are small or read-only."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import conftest as folders

store, run = folders.store, folders.run
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
SMALL = 'mkdir -p "$0" && mount -t tmpfs -o size=1000000 sae-test "$0" && echo mounted && read -r _'
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && echo mounted && read -r _'


@contextmanager
def mounted(script: str, place: Path) -> Iterator[Path]:
    """Yield the folder as seen in a mount namespace of its own, where a script has mounted something on it."""
    with subprocess.Popen(
        [*UNSHARE, script, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("nothing can be mounted here; the tests with simulated faults run")
        yield Path(f"/proc/{holder.pid}/root{place}")
        holder.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 1 MB with 264 kB free; delete `ballast` to free the rest."""
    with mounted(SMALL, tmp_path / "disk") as disk:
        fill(disk, 264_000)
        yield disk


def fill(disk: Path, but: int) -> None:
    """Fill the disk with a file `ballast` until `but` bytes are free."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - but))


@pytest.fixture
def as_read_only() -> Iterator[Callable[[Path], Path]]:
    """Return a function that yields a folder as it looks on a read-only disk."""
    held = []

    def of(folder: Path) -> Path:
        held.append(mounted(READ_ONLY, folder))
        return held[-1].__enter__()

    yield of
    for each in held:
        each.__exit__(None, None, None)
