"""log.jsonl of a run: one JSON object of numbers per line (FORMAT.md, Run)."""

import json
from pathlib import Path
from typing import Any

from activations.disk import files
from activations.disk.schema import fits
from activations.errors import RunError


def read(path: Path) -> list[dict[str, float]]:
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


def _are_numbers(row: dict[str, Any]) -> bool:
    """Return whether all values are numbers; all but the step may be infinite or NaN, as a diverging loss is."""
    return fits(row["step"], float) and all(isinstance(v, float) or fits(v, int) for v in row.values())
