"""Files of dictionaries that are not SAEs and share no format with one, told apart so that they are refused as what they are."""

import re
from collections.abc import Iterable
from pathlib import Path

WHY = "an SAE here rebuilds what it reads"
NAMES = {
    r"W_(enc|dec)_\d+\.safetensors": "a cross-layer transcoder (CLT), which writes to later layers than it reads",
    r"(params_)?layer_\d+\.safetensors": "a transcoder, which rebuilds an MLP's output from its input, or one layer of a "
    "cross-layer transcoder (CLT)",
}
"""Name of a file, as circuit-tracer and Gemma Scope 2 write it -> what is in it."""


def among(names: Iterable[str]) -> str | None:
    """Return what the first of these files that is known here holds; None where none is."""
    for name in names:
        for pattern, what in NAMES.items():
            if re.fullmatch(pattern, name.rpartition("/")[2]):
                return what
    return None


def at(path: Path) -> str | None:
    """Return what a file, or a folder of files, is that is known here and no SAE; None for anything else."""
    return among([path.name] if path.is_file() else sorted(file.name for file in path.iterdir()))
