"""Spellings of token ids: the bytes that each id stands for, a unique name for it, and the text that a run of ids reads as."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

SPACE = b" "
LeadingSpace = Literal["never", "always", "if absent"]


class TokenText:
    """The spellings of one tokenizer's ids.

    `spellings[i]` holds the bytes that id i adds to a text, or None if the tokenizer has no token of that id
    (an embedding often has more rows than its tokenizer has tokens). A token may hold only a part of a character.
    `special` are the ids that stand for no text, such as <|endoftext|>. `leading_space` says whether the tokenizer
    puts a space of its own before a text: never, always, or only before a text that does not begin with one."""

    def __init__(
        self,
        spellings: Sequence[bytes | None],
        special: Iterable[int] = (),
        leading_space: LeadingSpace = "never",
    ):
        self.spellings = list(spellings)
        self.special = frozenset(special)
        self.leading_space = leading_space
        self._whole = [_whole_text(spelling) for spelling in self.spellings]

    def __len__(self) -> int:
        """Return the number of ids, those without a token included."""
        return len(self.spellings)

    @cached_property
    def known(self) -> Tensor:
        """The ids that the tokenizer has a token for, ascending, int64."""
        return torch.tensor([token for token, spelling in enumerate(self.spellings) if spelling is not None])

    @cached_property
    def names(self) -> list[str]:
        """A unique name for every id: its text, where possible.

        Bytes that are not a whole character read <0xE2>. If several ids have the same text, the first ordinary token
        is named by it, and the others by their bytes or their number. An id without a token reads <id 50280>."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        ordinary_first = sorted(range(len(self)), key=lambda token: (token in self.special, token))
        for token in ordinary_first:
            name = next(name for name in self._candidates(token) if name not in taken)
            names[token] = name
            taken.add(name)
        return [names[token] for token in range(len(self))]

    def name(self, token: int) -> str:
        """Return the name of one id; an id outside the range reads like one without a token."""
        return self.names[token] if 0 <= token < len(self) else f"<id {token}>"

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id that each name belongs to."""
        return {name: token for token, name in enumerate(self.names)}

    def pieces(self, tokens: Sequence[int], starts: Sequence[bool] | None = None) -> list[str]:
        """Return the text of each token in a run of ids; joined, the pieces are the run's text.

        A character whose bytes lie in several tokens belongs to the token with its first byte; a token that holds
        only the rest of it reads "". Bytes that do not form a character read <0xE2>. `starts` marks the tokens that
        begin a document: no character spans such a place, and the space that the tokenizer put before a document's
        first word is dropped."""
        marks = [False] * len(tokens) if starts is None else list(starts)
        pieces: list[str] = []
        first = 0
        for stop in [*(index for index in range(1, len(tokens)) if marks[index]), len(tokens)]:
            pieces += self._run(tokens[first:stop], marks[first : first + 1] == [True])
            first = stop
        return pieces

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a run of ids, such as a continuation, without special tokens; � stands for broken characters."""
        spelled = [self._spelling(token) for token in tokens if token not in self.special]
        return b"".join(spelled).decode("utf-8", "replace")

    def to_tensors(self) -> dict[str, Tensor]:
        """Return everything as four tensors, as a features folder stores it (FORMAT.md)."""
        lengths = [-1 if spelling is None else len(spelling) for spelling in self.spellings]
        joined = b"".join(spelling or b"" for spelling in self.spellings)
        return {
            "bytes": torch.from_numpy(np.frombuffer(joined, np.uint8).copy()),
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "special": torch.tensor(sorted(self.special), dtype=torch.int64),
            "leading_space": torch.tensor(
                [get_args(LeadingSpace).index(self.leading_space)], dtype=torch.uint8
            ),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "TokenText":
        """Rebuild what `to_tensors` stored. Raises ValueError, KeyError or TypeError if the tensors do not fit together."""
        lengths, special = tensors["lengths"].tolist(), tensors["special"].tolist()
        joined = tensors["bytes"].numpy().tobytes()
        if any(type(length) is not int or length < -1 for length in lengths):
            raise ValueError("a token's length is not a whole number of bytes")
        ends = np.cumsum([max(length, 0) for length in lengths], dtype=np.int64)
        if (int(ends[-1]) if len(ends) else 0) != len(joined):
            total = int(ends[-1]) if len(ends) else 0
            raise ValueError(f"there are {len(joined)} bytes, and the tokens' lengths add up to {total}")
        spellings = [
            None if length < 0 else joined[end - length : end]
            for length, end in zip(lengths, ends.tolist(), strict=True)
        ]
        return cls(spellings, special, get_args(LeadingSpace)[int(tensors["leading_space"])])

    def _candidates(self, token: int) -> Iterator[str]:
        spelling = self.spellings[token]
        if spelling:
            yield _readable(spelling)
            if token not in self.special:
                yield "".join(map(_hexadecimal, spelling))
        label = _readable(spelling or b"")
        yield f"{label}<id {token}>"
        yield from (f"{label}<id {token}, {number}>" for number in range(len(self) + 1))

    def _run(self, tokens: Sequence[int], begins: bool) -> list[str]:
        if not begins or self.leading_space == "never":
            pieces = [self._whole[token] if 0 <= token < len(self) else None for token in tokens]
            if None not in pieces:  # the quick way: every token holds whole characters
                return cast(list[str], pieces)
        spellings = [self._spelling(token) for token in tokens]
        if begins and self.leading_space != "never":
            self._drop_space(tokens, spellings)
        return _split(spellings)

    def _drop_space(self, tokens: Sequence[int], spellings: list[bytes]) -> None:
        """Remove, in place, the space that the tokenizer put before a document.

        A tokenizer that adds a space only if there is none adds nothing to a document that begins with two. If the
        ids begin with a single space, the document may have had it itself; mostly it had not."""
        if tokens[0] in self.special or not b"".join(spellings[:2]).startswith(SPACE):
            return
        if self.leading_space == "if absent" and b"".join(spellings[:3])[:2] == 2 * SPACE:
            return
        first = next(index for index, spelling in enumerate(spellings) if spelling)
        spellings[first] = spellings[first][1:]

    def _spelling(self, token: int) -> bytes:
        spelling = self.spellings[token] if 0 <= token < len(self) else None
        return self.name(token).encode() if spelling is None else spelling


def pieces_at(text: str, ends: Sequence[int]) -> list[str]:
    """Cut a text into one piece for each token, given where in the text each token ends. Joined, the pieces are the text.

    What the tokenizer drops between two tokens (white space, mostly) goes with the later one, what it drops at the
    end with the last. A token that holds only the rest of a character gets ""."""
    pieces, cursor = [], 0
    for end in ends:
        stop = max(cursor, end)
        pieces.append(text[cursor:stop])
        cursor = stop
    if pieces:
        pieces[-1] += text[cursor:]
    return pieces


def named_bytes(name: str) -> bytes:
    """Return the bytes that a name such as <0xE2><0x82> stands for; for any other name, its own in UTF-8."""
    pieces = [name[start : start + 6] for start in range(0, len(name), 6)]
    numbers = [byte for piece in pieces if (byte := byte_of(piece)) is not None]
    return bytes(numbers) if len(numbers) == len(pieces) else name.encode("utf-8", "replace")


def byte_of(piece: str) -> int | None:
    """Return the byte that a piece such as <0x0A> names, or None for any other piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None


def _split(spellings: Sequence[bytes]) -> list[str]:
    """Decode the joined bytes and return each token's text; a character goes to the token with its first byte."""
    owners = np.repeat(np.arange(len(spellings)), [len(spelling) for spelling in spellings])
    pieces = [""] * len(spellings)
    at = 0
    for character, size in _decoded(b"".join(spellings)):
        pieces[owners[at]] += character
        at += size
    return pieces


def _whole_text(spelling: bytes | None) -> str | None:
    """Return the text of a token that holds only whole characters, else None."""
    try:
        return None if spelling is None else spelling.decode()
    except UnicodeDecodeError:
        return None


def _readable(spelling: bytes) -> str:
    return "".join(character for character, _ in _decoded(spelling))


def _decoded(content: bytes) -> Iterator[tuple[str, int]]:
    """Yield (character, its size in bytes) in order; a byte that belongs to no character reads <0xE2>."""
    start = 0
    while start < len(content):
        try:
            text, stop = content[start:].decode(), len(content)
        except UnicodeDecodeError as error:
            text, stop = content[start : start + error.start].decode(), start + error.start
        yield from ((character, len(character.encode())) for character in text)
        if stop < len(content):
            yield _hexadecimal(content[stop]), 1
            stop += 1
        start = stop


def _hexadecimal(byte: int) -> str:
    return f"<0x{byte:02X}>"
