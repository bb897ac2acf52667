"""How deep the JSON in a file is nested: Arrow's parser goes down with it, and where the stack ends the process does too."""

import re
from pathlib import Path

import numpy as np

from activations.errors import TextError

DEEPEST = 1000
STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
OTHERS = bytes({*range(256)} - {*b"[]{}"})


def refuse_deep(path: Path) -> None:
    """Raise TextError for a file of JSON or JSON lines that is nested deeper than DEEPEST. One pass over its bytes."""
    depth = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            brackets = np.frombuffer(STRINGS.sub(b"", line).translate(None, OTHERS), np.uint8)
            if not len(brackets):
                continue
            opens = (brackets == ord("[")) | (brackets == ord("{"))
            depths = depth + np.cumsum(np.where(opens, 1, -1))
            if depths.max() > DEEPEST:
                raise TextError(f"{path} is nested deeper than {DEEPEST} at line {number}: no document is")
            depth = max(int(depths[-1]), 0)
