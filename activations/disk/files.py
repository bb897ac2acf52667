"""Files that are written whole or not at all, and read with their damage noticed.

A file is written under a temporary name, flushed to the disk and renamed: a crash leaves the old file or the new one. A lock
lets one process at a time work in a folder; the kernel releases it however the process ends."""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.errors import BusyError

log = logging.getLogger(__name__)

# Suffix of a file being written. Readers ignore such files, and `sweep` removes those that are left.
PART = ".part"
SEAL = "checksum"
SEALED = re.compile(
    rb'\{\n "(.{8})": "(.{64})",\n'
)  # any 8 characters, as the damage may lie in the word "checksum"

LOCK = ".lock"  # exists while a process works in a folder, and after a crash: only the kernel knows if it is held
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # raised on some network disks
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`; remove it if anything fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: of two processes that write the same file, neither takes the other's from under it.
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        write(part)
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)  # a rename is on the disk only once its folder is


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    _write_bytes(path, _as_json(content))


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whose first line is the SHA-256 of the file without that line, so that any changed byte is noticed.

    A reader accepts a file without the line, so that a file can be edited by hand."""
    text = _as_json(content)
    _write_bytes(path, f'{{\n "{SEAL}": "{hashlib.sha256(text).hexdigest()}",\n'.encode() + text[2:])


def unsealed(content: bytes) -> bytes:
    """Return a JSON file's bytes without its checksum line, or unchanged when it has none.

    Raises ValueError when the bytes do not have the checksum."""
    line = SEALED.match(content)
    if not line:
        return content
    rest = b"{\n" + content[line.end() :]
    if line.groups() != (SEAL.encode(), hashlib.sha256(rest).hexdigest().encode()):
        raise ValueError(
            f'its bytes have changed since it was written; if that was on purpose, delete its line "{SEAL}"'
        )
    return rest


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda part: part.write_bytes(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], format_name: str) -> None:
    """Write tensors as one safetensors file, atomically, with `format_name` as its only metadata entry.

    Raises OSError when the system refuses, as on a full disk."""
    # One metadata entry: safetensors keeps them in a hash map, so that with two the bytes would vary
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(part: Path) -> None:
        try:
            save_file(contiguous, part, metadata={"format": format_name})
        except SafetensorError as error:  # safetensors reports the system's error as text only
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            raise
        part.chmod(0o644)  # safetensors makes files that only their owner can read

    write_atomically(path, write)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. It is renamed to `path` when the block ends, or removed when the block fails.

    Raises FileExistsError when `path` is anything but an empty folder or nothing at all."""
    path = path.absolute()  # "." has no name that could be given a suffix
    if path.exists() and (not path.is_dir() or is_taken(path)):
        raise FileExistsError(errno.EEXIST, "this path is already taken", str(path))
    part = path.with_name(path.name + PART)
    shutil.rmtree(part, ignore_errors=True)  # left by a writer that was killed
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(path.parent)


def plain(path: Path, within: Path | None = None) -> Path:
    """Return the path if it is an ordinary file in its own folder, or below the folder `within`.

    Raises OSError for a link that leads out of that folder, for anything but a file (reading a pipe would never end), and
    for a path that does not exist."""
    folder = within or path.parent
    below = path.relative_to(folder).parts
    names = [folder.joinpath(*below[: n + 1]) for n in range(len(below))]
    may_lead_out = ".." in below or any(name.is_symlink() for name in names)
    if may_lead_out and not path.resolve(strict=True).is_relative_to(folder.resolve()):
        raise OSError(f"it is a link that leads out of {folder}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not an ordinary file")
    return path


def read_json(path: Path, within: Path | None = None) -> Any:
    """Return the content of a JSON file without its checksum. Takes up to 40 times the file's size in memory.

    Raises OSError as `plain` does, ValueError when the file is damaged or as `parse_json` does."""
    content = parse_json(unsealed(plain(path, within).read_bytes()).decode("utf-8"))
    if isinstance(content, dict):
        content.pop(SEAL, None)  # still there, in another layout, when another program has rewritten the file
    return content


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises ValueError for text that is not JSON, for NaN or infinity, for nesting deeper than Python's limit, and for half
    of a surrogate pair."""
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Half of a pair is not a character: it would fail later, wherever it is written or printed. Encoding fails now.
    if SURROGATE.search(text):
        json.dumps(content, ensure_ascii=False).encode()
    return content


def read_tensors(path: Path, within: Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Takes as much memory as the file has bytes.

    Raises OSError as `plain` does, SafetensorError for a file that is not safetensors or claims more than it holds."""
    return load_file(plain(path, within))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def as_name(text: str) -> str:
    """Return a text as the name of a file or folder, which leads nowhere else and is not hidden; `blocks.3.mlp` stays as it is."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".") or "-"


def is_taken(path: Path, besides: Sequence[str] = ()) -> bool:
    """Return whether `path` is anything but an empty folder, apart from a lock, from what an interrupted write left, and from
    entries with the names `besides`."""
    free = {*_left_behind(path), path / LOCK, *(path / name for name in besides)}
    return path.exists() and bool({*path.iterdir()} - free)


def sweep(folder: Path) -> None:
    """Remove what interrupted writes left in a folder. No other process may be writing there."""
    for file in _left_behind(folder):
        file.unlink(missing_ok=True)


def _left_behind(folder: Path) -> list[Path]:
    return [*folder.glob(f"*{PART}"), *folder.glob(".tmp*")]  # temporary names of ours and of safetensors


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock within the block. Raises BusyError at once when another process holds it.

    Afterwards the lock file is removed, and the folder too if it was created here and is still empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
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


def clear_lock(folder: Path, tidy: Callable[[], None] = lambda: None) -> None:
    """Remove the lock file that a crash has left in a finished folder.

    `tidy` is called first, to remove what else the crash left there. Nothing happens while a process holds the lock."""
    if (folder / LOCK).exists():
        with suppress(BusyError), alone_in(folder):
            tidy()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Return the free space, in bytes, on the disk where `path` is or would be."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def size_text(n: float) -> str:
    """Return a number of bytes as text, such as 38.0 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.0f} {unit}" if unit in ("B", "kB") else f"{n:,.1f} {unit}"
        n /= 1000
    raise AssertionError
