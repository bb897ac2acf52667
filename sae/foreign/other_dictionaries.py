"""Recognise files of dictionaries that are not SAEs and share no format with one, so that errors can name what they are."""

import re
from collections.abc import Iterable
from pathlib import Path

WHY = "an SAE here reconstructs what it reads"
NAMES = {
    r"W_(enc|dec)_\d+\.safetensors": "a cross-layer transcoder (CLT), which writes to later layers than it reads",
    r"(params_)?layer_\d+\.safetensors": "a transcoder, which reconstructs an MLP's output from its input, or one layer of a "
    "cross-layer transcoder (CLT)",
}
"""Pattern of a file name that circuit-tracer and Gemma Scope 2 write -> what the file holds."""


def among(names: Iterable[str]) -> str | None:
    """Return what the first recognised of these files holds; None when none is recognised."""
    for name in names:
        for pattern, what in NAMES.items():
            if re.fullmatch(pattern, name.rpartition("/")[2]):
                return what
    return None


def at(path: Path) -> str | None:
    """Return what a file or folder of files holds if it is recognised as something other than an SAE, None otherwise."""
    return among([path.name] if path.is_file() else sorted(file.name for file in path.iterdir()))
