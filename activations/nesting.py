"""JSON that would take the process down with it: Arrow's parser goes as deep as it is nested, until the stack ends, and
dies of a `null` where its first document should begin."""

import re
from pathlib import Path

import numpy as np

from activations.errors import TextError

DEEPEST = 1000
STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
BEFORE = b"\xef\xbb\xbf \t\r\n"  # a document: the mark of UTF-8, and space
OTHERS = bytes({*range(256)} - {*b"[]{}"})


def refuse_fatal(path: Path) -> None:
    """Raise TextError for a file of JSON or JSON lines that is nested deeper than DEEPEST, or has a line that begins
    with null in the place of a document. One pass over its bytes."""
    depth = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not depth and line.lstrip(BEFORE).startswith(b"null"):
                raise TextError(
                    f"{path} has null at line {number}: needed is a document there, take the line out"
                )
            brackets = np.frombuffer(STRINGS.sub(b"", line).translate(None, OTHERS), np.uint8)
            if not len(brackets):
                continue
            opens = (brackets == ord("[")) | (brackets == ord("{"))
            depths = depth + np.cumsum(np.where(opens, 1, -1))
            if depths.max() > DEEPEST:
                raise TextError(f"{path} is nested deeper than {DEEPEST} at line {number}: no document is")
            depth = max(int(depths[-1]), 0)
