"""Whole files or none: a temporary name, fsync, rename. A crash leaves the old file or the new one."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.disk import locks

PART = ".part"  # suffix of what is being written; a reader ignores such files, the next writer replaces them
SEAL = "checksum"
SEALED = re.compile(rb'\{\n "(.{8})": "(.{64})",\n')  # the seal may be what is damaged

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place; clean up if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    part.unlink(missing_ok=True)  # it might be a link, and what it leads to would be written
    try:
        write(part)
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinity are refused: JSON has none."""
    _write_bytes(path, _as_json(content))


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with, as its first line, the SHA-256 of the file without that line: no byte of it can change
    unseen. Left out, the line is not missed, so that a file can be edited by hand."""
    text = _as_json(content)
    _write_bytes(path, f'{{\n "{SEAL}": "{hashlib.sha256(text).hexdigest()}",\n'.encode() + text[2:])


def unsealed(content: bytes) -> bytes:
    """A JSON file's bytes without the line that seals them; all of them where there is none.

    Raises ValueError when they are not those that were sealed."""
    found = SEALED.match(content)
    if not found:
        return content
    rest = b"{\n" + content[found.end() :]
    if found.groups() != (SEAL.encode(), hashlib.sha256(rest).hexdigest().encode()):
        raise ValueError(
            f'its bytes have changed since it was written; if that was on purpose, delete its line "{SEAL}"'
        )
    return rest


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda part: part.write_bytes(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], format_name: str) -> None:
    """Write tensors as one safetensors file, atomically; `format_name` is its only metadata entry.

    One entry, because safetensors keeps metadata in a hash map: two would make the bytes vary."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(part: Path) -> None:
        try:
            save_file(whole, part, metadata={"format": format_name})
        except SafetensorError as error:  # carries the system's error as text only
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise
        part.chmod(0o644)  # safetensors makes files only their owner can read

    write_atomically(path, write)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path` when the block ends well and removed when it does not.

    Raises FileExistsError when there is anything at `path` but an empty folder."""
    path = path.absolute()  # "." has no name
    if path.exists() and (not path.is_dir() or is_taken(path)):
        raise FileExistsError(errno.EEXIST, "there is something already", str(path))
    part = path.with_name(path.name + PART)
    shutil.rmtree(part, ignore_errors=True)  # of a writer that was killed
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(path.parent)


def plain(path: Path, within: Path | None = None) -> Path:
    """The path, if there is an ordinary file behind it that lies in its folder, or below `within`.

    Raises OSError for a link that leads out of there, for what is no file, such as a pipe, which would be waited
    for, and for what is not there."""
    folder = within or path.parent
    below = path.relative_to(folder).parts
    names = [folder.joinpath(*below[: n + 1]) for n in range(len(below))]
    leads = ".." in below or any(name.is_symlink() for name in names)
    if leads and not path.resolve(strict=True).is_relative_to(folder.resolve()):
        raise OSError(f"it is a link that leads out of {folder}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no ordinary file")
    return path


def read_json(path: Path, within: Path | None = None) -> Any:
    """What a JSON file holds, its seal taken off; takes up to 40 times its size in memory.

    Raises OSError as `plain` does, ValueError for what is damaged, no JSON, holds NaN or is nested too deep."""
    content = parse_json(unsealed(plain(path, within).read_bytes()).decode("utf-8"))
    if isinstance(content, dict):
        content.pop(SEAL, None)  # of a file that something else wrote again
    return content


def parse_json(text: str) -> Any:
    """The same for a text."""
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if SURROGATE.search(
        text
    ):  # half a character, which nothing could write or print, unless it has its other half
        json.dumps(found, ensure_ascii=False).encode()
    return found


def read_tensors(path: Path, within: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file; takes as much memory as the file has bytes.

    Raises OSError as `plain` does, SafetensorError for what is no safetensors file, or claims more than it holds."""
    return load_file(plain(path, within))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def is_taken(path: Path) -> bool:
    """Whether there is anything at `path` but an empty folder; what an interrupted write left does not count,
    nor who works there."""
    return path.exists() and bool({*path.iterdir()} - {*_left_behind(path), path / locks.NAME})


def sweep(folder: Path) -> None:
    """Remove what interrupted writes left in a folder. Nobody else may be writing there."""
    for file in _left_behind(folder):
        file.unlink(missing_ok=True)


def _left_behind(folder: Path) -> list[Path]:
    return [*folder.glob(f"*{PART}"), *folder.glob(".tmp*")]  # our temporary names, and safetensors'


def sync(path: Path) -> None:
    """Ask the kernel to put a file, or the names in a folder, on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Free space, in bytes, on the disk where `path` is or would be."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
