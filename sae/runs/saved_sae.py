"""Files of a run folder: the SAE (sae.safetensors beside sae.json), log.jsonl, and JSON and tensors checked as they are read."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from activations.disk import files
from activations.disk.schema import fits, parse
from activations.errors import ConfigError, RunError
from sae import config
from sae.architectures import ARCHITECTURES, SAE, name_of
from sae.runs.records import SAERecord

T = TypeVar("T")
log = logging.getLogger(__name__)
FORMAT = 1
WEIGHTS, INDEX = "sae.safetensors", "sae.json"


def save_sae(folder: Path, sae: SAE, source: Mapping[str, str | int | None]) -> None:
    """Write sae.safetensors, then sae.json, which marks the pair whole. The SAE must read raw activations."""
    files.write_tensors(folder / WEIGHTS, sae.state_dict(), f"sae-weights-{FORMAT}")
    arch = {"architecture": name_of(sae.cfg), "arch": dict(vars(sae.cfg)), "d_model": sae.d_model}
    digest = files.sha256(folder / WEIGHTS)
    files.write_sealed(folder / INDEX, {"format": FORMAT, **arch, **source, "weights_file_sha256": digest})


def load_sae(folder: Path | str, fix: str | None = None) -> SAE:
    """Load the SAE in a folder, on the CPU, ready to encode raw activations.

    Raises RunError when it is missing, damaged (its SHA-256 differs, tensors are missing or hold NaN), of a newer format or
    of an unknown architecture. `fix` is the command that the error carries where the SAE is damaged."""
    folder = Path(folder)
    if not (folder / INDEX).exists():
        raise RunError(f"no SAE at {folder}: expected {WEIGHTS} and {INDEX}")
    record = read_record(folder / INDEX, "SAE", FORMAT, SAERecord, fix)
    path = folder / WEIGHTS
    tensors = read_tensors(as_written(path, record.weights_file_sha256, INDEX, fix))
    try:
        cfg = config.arch_from_json(record.architecture, record.arch)
        with torch.device("meta"):  # takes no memory: the settings may claim any size
            wanted = ARCHITECTURES[record.architecture](record.d_model, cfg, seed=None).state_dict()
        shapes, needed = ({n: tuple(t.shape) for n, t in state.items()} for state in (tensors, wanted))
        if shapes != needed:
            raise RunError(f"{path} holds {shapes}, and {INDEX} asks for {needed}", fix=fix)
        sae = ARCHITECTURES[record.architecture](record.d_model, cfg, seed=None)
        sae.load_state_dict(tensors)
        if broken := [name for name, tensor in tensors.items() if tensor.isnan().any()]:
            raise RunError(f"{path}: {broken[0]} holds NaN: its training diverged", fix=fix)
    except (TypeError, RuntimeError, OverflowError, ConfigError) as error:
        raise RunError(f"{folder} cannot be read: {error}", fix=fix) from error
    return sae.eval().requires_grad_(False)


def read_json(
    path: Path, *, kind: type | None = None, within: Path | None = None, fix: str | None = None
) -> Any:
    """Read a JSON file; return it as a record of type `kind` if one is given.

    Raises RunError, which carries `fix`, when it cannot be read, is damaged, lacks a field, or is a link that leads out
    of its folder, or out of `within`."""
    try:
        content = files.read_json(path, within)
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}", fix=fix) from error
    return _parsed(path, content, kind, fix) if kind else content


def read_record(path: Path, what: str, newest: int, kind: type[T], fix: str | None = None) -> T:
    """Read a JSON file that names its format; return it as a record of type `kind`.

    Raises RunError as `read_json` does, and when its format is newer than `newest`, the latest this release reads."""
    return _parsed(path, _numbered(path, what, newest, fix)[0], kind, fix)


def _numbered(path: Path, what: str, newest: int, fix: str | None) -> tuple[Any, int]:
    """Return the content of a JSON file and its format, which is 1 where it names none, as older releases' files do not."""
    content = read_json(path, fix=fix)
    written: object = content.get("format") if isinstance(content, dict) else None
    number = written if isinstance(written, int) and fits(written, int) else 1
    if number > newest:
        raise RunError(f"{path} is of {what} format {number}, this release reads up to {newest}")
    return content, number


def read_results(
    path: Path,
    what: str,
    current: int,
    kind: type[T],
    command: str,
    fix: str | None = None,
    unchanged: Callable[[T], bool] = lambda record: False,
) -> T | None:
    """Read a JSON file of results that can be made anew; return it as a record of type `kind`, or None without a file.

    A format is raised when this release would compute other numbers. A file of an older one counts as missing, except where
    `unchanged` says that the numbers in it are the same, and the log says once that `command` makes it anew. Raises RunError as
    `read_record` does, with `fix` or else `command`; an older file that lacks a field of today's is not damaged, but missing."""
    if not path.exists():
        return None
    content, number = _numbered(path, what, current, fix or command)
    try:
        record = _parsed(path, content, kind, fix or command)
        if number >= current or unchanged(record):
            return record
    except RunError:
        if number >= current:
            raise
    _say_once(
        f"{path} is of {what} format {number}, which was computed differently and is ignored; make it anew with: {command}"
    )
    return None


@cache
def _say_once(line: str) -> None:
    """Log a line that the pages of the app would otherwise repeat each time they read the file."""
    log.warning("%s", line)


def _parsed(path: Path, content: Any, kind: type[T], fix: str | None) -> T:
    try:
        return parse(kind, content)
    except TypeError as error:
        raise RunError(f"{path} is damaged: {error}", fix=fix) from error


def read_tensors(path: Path, fix: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file. Raises RunError, which carries `fix`, when it cannot be read."""
    try:
        return files.read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}", fix=fix) from error


def as_written(path: Path, sha256: str | None, index: str, fix: str | None = None) -> Path:
    """Return the path of a file after checking its bytes against the SHA-256 that its `index` names.

    An older release's index may name none (None): then the bytes are not checked. Raises RunError, which carries `fix`, when
    they differ or the file cannot be read."""
    try:
        digest = files.sha256(files.plain(path))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}", fix=fix) from error
    if sha256 not in (None, digest):
        raise RunError(f"{path} is damaged: its bytes are not the ones {index} describes", fix=fix)
    return path


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log.jsonl, without a last line that a crash cut short; nothing when there is no file.

    Raises RunError when another line is damaged."""
    if not path.exists():
        return []
    try:
        lines = files.plain(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return [_row(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _row(line: bytes, place: str) -> dict[str, float]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{place} is damaged ({error}): delete that line") from error
    if not (isinstance(row, dict) and "step" in row and _are_numbers(row)):
        raise RunError(f"{place} is damaged: it is not an object of numbers with a step; delete that line")
    return row


def _are_numbers(row: Mapping[str, object]) -> bool:
    """Return whether all values are numbers; all but the step may be infinite or NaN, as a diverging loss is."""
    return fits(row["step"], float) and all(isinstance(v, float) or fits(v, int) for v in row.values())
