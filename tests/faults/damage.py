"""Bytes changed on the way: where a file is tried, and how it is then damaged."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damage:
    """One way to damage a file."""

    kind: str
    """`cut` short before a place, or a `bit` of the byte there turned round."""
    place: int
    bit: int = 0

    def of(self, content: bytes) -> bytes:
        """The damaged bytes."""
        if self.kind == "cut":
            return content[: self.place]
        byte = content[self.place] ^ 1 << self.bit
        return content[: self.place] + bytes([byte]) + content[self.place + 1 :]


def everywhere(path: Path, regions: int, seed: int = 0) -> Iterator[Damage]:
    """The file in so many regions of equal length: a bit flipped somewhere in each; cut short in every fourth, and,
    unless there is but one, to nothing."""
    size, place = path.stat().st_size, random.Random(f"{path.name} {seed}")
    if regions > 1:
        yield Damage("cut", 0)
    for number in range(regions):
        first, end = size * number // regions, size * (number + 1) // regions
        yield Damage("bit", place.randrange(first, end), place.randrange(8))
        if number % 4 == 3:
            yield Damage("cut", place.randrange(first, end))
