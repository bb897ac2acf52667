"""Texts and sets of numbers short enough for an address: compressed, in the letters that need no escape in a URL."""

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection

from activations.errors import ConfigError

LONGEST = 16_000  # characters of a packed text; servers and browsers accept addresses several times as long
LARGEST = 1_000_000  # bytes that a packed text may unpack to


def pack(text: str) -> str | None:
    """Return the text packed, or None if it would be longer than LONGEST."""
    packed = urlsafe_b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode().rstrip("=")
    return packed if len(packed) <= LONGEST else None


def unpack(packed: str, name: str) -> str:
    """Return the text. Raises ConfigError, which says the parameter's name, for what `pack` does not make."""
    try:
        compressed = urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(compressed, LARGEST)
        if not unpacking.eof:
            raise ValueError("the text is cut off or too long")
        return content.decode("utf-8")
    except (ValueError, zlib.error):
        raise ConfigError(
            f"{name} = {packed[:20]!r}… is no text that this app packed; copy the whole address"
        ) from None


def pack_numbers(numbers: Collection[int]) -> str | None:
    """Return a set of whole numbers packed, or None if it would be longer than LONGEST."""
    return pack(",".join(map(str, sorted(numbers))))


def unpack_numbers(packed: str, name: str) -> list[int]:
    """Return the numbers in order. Raises ConfigError for what `pack_numbers` does not make."""
    texts = unpack(packed, name).split(",")
    if texts == [""]:
        return []
    if not all(text.isascii() and text.isdigit() and len(text) < 12 for text in texts):
        raise ConfigError(
            f"{name} = {packed[:20]!r}… holds something else than numbers; copy the whole address"
        )
    return [int(text) for text in texts]
