"""Ways to damage a file: where, and how its bytes are changed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damage:
    """One way to damage a file."""

    kind: str
    """`cut`: the file ends before this place; `bit`: one bit of the byte there is flipped."""
    place: int
    bit: int = 0

    def of(self, content: bytes) -> bytes:
        """Return the damaged bytes."""
        if self.kind == "cut":
            return content[: self.place]
        byte = content[self.place] ^ 1 << self.bit
        return content[: self.place] + bytes([byte]) + content[self.place + 1 :]


def everywhere(path: Path, regions: int, seed: int = 0) -> Iterator[Damage]:
    """Return damages for each of the file's regions of equal length.

    A bit is flipped somewhere in each region, and the file is cut in every fourth. With several regions it is also cut to
    nothing."""
    size, place = path.stat().st_size, random.Random(f"{path.name} {seed}")
    if regions > 1:
        yield Damage("cut", 0)
    for number in range(regions):
        first, end = size * number // regions, size * (number + 1) // regions
        yield Damage("bit", place.randrange(first, end), place.randrange(8))
        if number % 4 == 3:
            yield Damage("cut", place.randrange(first, end))
