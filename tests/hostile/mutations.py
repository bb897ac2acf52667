"""A valid file's bytes -> bytes that are nearly it: flipped, cut, stretched, and with values no writer would put there."""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

DEEP = 100_000  # brackets
NUMBERS = [b"-1", b"0", b"1", b"2147483648", b"9223372036854775807", b"18446744073709551616", b"1e999", b"1" * 5000, b"-0.5", b"NaN", b"Infinity"]  # fmt: skip
TEXTS = ["", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 70_000, "\ud800", "<script>", "{{7*7}}", "__import__('os')", "é\u202e"]  # fmt: skip
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**63,
    2**80,
    1e308,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    *TEXTS,
]
Mutation = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Some bits."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    """A stretch, by noise or by one byte over and over."""
    start, size = _stretch(rng, content)
    filling = rng.randbytes(size) if rng.random() < 0.5 else rng.choice([b"\0", b"\xff", b"["]) * size
    return content[:start] + filling + content[start + size :]


def cut(rng: random.Random, content: bytes) -> bytes:
    """What comes after some place, or a stretch from the middle."""
    start, size = _stretch(rng, content)
    return content[:start] + (b"" if rng.random() < 0.5 else content[start + size :])


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A stretch, many times."""
    start, size = _stretch(rng, content)
    times = rng.choice([1, 2, 100])
    return content[:start] + content[start : start + size] * times + content[start:]


def number(rng: random.Random, content: bytes) -> bytes:
    """One written in digits, by another."""
    found = [*re.finditer(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?", content[:200_000])]
    if not found:
        return flip(rng, content)
    place = rng.choice(found)
    return content[: place.start()] + rng.choice(NUMBERS) + content[place.end() :]


def integer(rng: random.Random, content: bytes) -> bytes:
    """Eight bytes at the start or anywhere, by a length that cannot be."""
    place = rng.choice([0, 0, max(len(content) - 8, 0), rng.randrange(len(content) + 1)])
    length = rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, 100_000_000, len(content)])
    return content[:place] + struct.pack("<Q", length) + content[place + 8 :]


def deep(rng: random.Random, content: bytes) -> bytes:
    """Brackets in brackets, alone or somewhere in the text."""
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"[{", b"}]")])
    nest = opened * DEEP + rng.choice([b"", b"1" + closed * DEEP])
    place = rng.randrange(len(content) + 1)
    return nest if rng.random() < 0.5 else content[:place] + nest + content[place:]


def value(rng: random.Random, content: bytes) -> bytes:
    """Replace one value or name in JSON, or in a safetensors header, by something else."""
    start, stop = _json(content)
    try:
        tree = json.loads(content[start:stop])
    except (ValueError, RecursionError):  # of a mutation before this one
        return number(rng, content)
    text = json.dumps(_changed(rng, tree)).encode("utf-8", "replace")
    if start:
        text = struct.pack("<Q", len(text)) + text
    return text + content[stop:]


def _json(content: bytes) -> tuple[int, int]:
    """Where the JSON in it is: all of it, or the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return (8, 8 + length) if 0 < length < len(content) and content[8:9] == b"{" else (0, len(content))


def _changed(rng: random.Random, tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.2:
        return rng.choice(VALUES)
    if isinstance(tree, list):
        place = rng.randrange(len(tree))
        if rng.random() < 0.15:
            return rng.choice([tree[:place], tree + tree, tree[::-1], tree[place:]])
        return [*tree[:place], _changed(rng, tree[place]), *tree[place + 1 :]]
    name = rng.choice(list(tree))
    if rng.random() < 0.2:
        rest = {key: kept for key, kept in tree.items() if key != name}
        return rng.choice([rest, {**rest, rng.choice(TEXTS): tree[name]}, {**tree, "more": tree[name]}])
    return {**tree, name: _changed(rng, tree[name])}


def _stretch(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, rng.choice([1, 4, 64, 1000, len(content) // 2])


ALL: list[Mutation] = [flip, overwrite, cut, repeat, number, integer, deep, value, value, value, value]


def mutated(seed: int, content: bytes) -> bytes:
    """The content after one mutation or two that the seed chooses."""
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2])):
        content = rng.choice(ALL)(rng, content)
    return content
