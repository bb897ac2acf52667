"""Locks of folders: one process at a time, nothing left behind, and disks without locks."""

import errno
from pathlib import Path

import pytest
from filelock import FileLock

from activations.disk import files
from activations.errors import BusyError


def test_a_folder_takes_one_at_a_time(tmp_path: Path):
    folder = tmp_path / "a"
    with files.alone_in(folder):
        with pytest.raises(BusyError, match=f"at work in {folder}"), files.alone_in(folder):
            pass
        with files.alone_in(tmp_path / "b"):
            pass
    with files.alone_in(folder):
        pass


def test_of_a_lock_nothing_stays_but_what_was_made_under_it(tmp_path: Path):
    (tmp_path / "old").mkdir()
    for name in ("new", "old", "full"):
        with files.alone_in(tmp_path / name):
            if name == "full":
                (tmp_path / name / "file").touch()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "full", "full/file", "old",
    ]  # fmt: skip


def test_it_is_let_go_when_the_work_fails(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), files.alone_in(tmp_path / "a"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()


def test_who_works_in_a_folder_does_not_make_it_taken(tmp_path: Path):
    with files.alone_in(tmp_path / "a"):
        assert not files.is_taken(tmp_path / "a")


def test_a_lock_left_by_a_crash_is_cleared_and_one_that_is_held_is_not(tmp_path: Path):
    (tmp_path / files.LOCK).touch()
    files.clear_lock(tmp_path)
    assert not (tmp_path / files.LOCK).exists()
    files.clear_lock(tmp_path)
    with files.alone_in(tmp_path):
        files.clear_lock(tmp_path)
        assert (tmp_path / files.LOCK).exists()


def test_on_a_disk_without_locks_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def acquire(self: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with files.alone_in(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert "a disk without locks" in caplog.text
