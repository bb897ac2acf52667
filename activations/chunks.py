"""Tokenises a text of any length in bounded memory, into exactly the ids that tokenising the whole text would give.

A long text is tokenised in overlapping chunks. Two chunks are joined inside their overlap, where both have the same
tokens with the same offsets over a long stretch: there the tokens depend neither on where the later chunk begins nor
on where the earlier one ends. If there is no such stretch (in a word longer than the overlap, say), the chunks grow."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WHOLE = 2**18  # a text of up to so many characters is tokenised in one call
CHUNK = 2**17  # characters
OVERLAP = 2**12  # characters
AGREEING = 8  # tokens that two chunks must have in common before they are joined
CUTS = 64  # cuts of each kind to try with a tokenizer that gives no offsets


def ids_of(
    text: Iterable[str], tokenizer: Any, whole: int = WHOLE, chunk: int = CHUNK, overlap: int = OVERLAP
) -> Iterator[NDArray[np.int32]]:
    """Yield the token ids of a text, which comes in pieces of any size, as int32 arrays. No special tokens are added.

    Concatenated, the arrays are the ids of the whole text. A text of up to `whole` characters is tokenised in one call;
    beyond that, chunks of `chunk` characters overlap by `overlap`. About four chunks are held in memory, more only for
    a text without a place to cut it at, such as one endless word. Special tokens spelled out in the text are data."""
    ahead = _Ahead(text)
    if ahead.ends_by(whole):
        yield np.asarray(plain_ids(tokenizer, ahead.between(0, ahead.stop)), np.int32)
    elif tokenizer.is_fast:
        yield from _joined(ahead, tokenizer, chunk, overlap)
    else:
        yield from _cut(ahead, tokenizer, chunk, overlap)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenise a text in one call, without adding special tokens; those spelled out in it are data."""
    if not text:  # some tokenizers return a token for an empty text
        return []
    # verbose=False silences the warning about texts longer than the model's context: they are cut into windows later
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


class _Ahead:
    """A text that comes in pieces: characters `first` to `stop` of it are held, and more are read on demand."""

    def __init__(self, pieces: Iterable[str]):
        self._pieces = iter(pieces)
        self._text, self.first, self._ended = "", 0, False

    @property
    def stop(self) -> int:
        return self.first + len(self._text)

    def between(self, start: int, stop: int) -> str:
        self._read(stop)
        return self._text[start - self.first : stop - self.first]

    def ends_by(self, stop: int) -> bool:
        self._read(stop + 1)
        return self.stop <= stop

    def forget(self, before: int) -> None:
        self._text, self.first = self._text[before - self.first :], before

    def _read(self, stop: int) -> None:
        parts, length = [self._text], self.stop
        while length < stop and not self._ended:
            piece = next(self._pieces, None)
            self._ended = piece is None
            parts.append(piece or "")
            length += len(piece or "")
        if len(parts) > 1:
            self._text = "".join(parts)


class _Tokens(NamedTuple):
    """The tokens of one chunk of a text, characters `first` to `stop`: their ids, offsets in the whole text, and words."""

    first: int
    stop: int
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """[n, 2]: the first character of each token, and the one after its last."""
    words: NDArray[np.int64]
    """Number of the word that each token is a part of; -1 for none."""

    def boundaries(self, within_words: bool) -> NDArray[np.bool_]:
        """Return which tokens begin where the one before ends, [n] bool; without `within_words`, only the first of a word."""
        starts, ends = self.offsets.T
        begins = np.zeros(len(self.ids), bool)
        begins[1:] = (starts[1:] >= ends[:-1]) & (starts[1:] > starts[:-1])
        if not within_words:
            begins[1:] &= self.words[1:] != self.words[:-1]
        return begins


def _tokens(ahead: _Ahead, tokenizer: Any, first: int, stop: int) -> _Tokens:
    text = ahead.between(first, stop)
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).encodings[0]
    words = [-1 if word is None else word for word in encoded.word_ids]
    offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2) + first
    ids = np.array(encoded.ids, np.int32)
    return _Tokens(first, first + len(text), ids, offsets, np.array(words, np.int64))


def _joined(ahead: _Ahead, tokenizer: Any, chunk: int, least: int) -> Iterator[NDArray[np.int32]]:
    """Yield ids chunk by chunk, for a tokenizer that gives offsets. `least` is the overlap to begin with."""
    # BPE may be cut inside a word, between two of its tokens: no merge crosses that place, so both parts merge alone as
    # they do together. Unigram may not: it chooses the pieces of a word by weighing them against each other.
    within_words = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    size, overlap, done = (
        chunk,
        least,
        0,
    )  # `done`: how many tokens of `here` have been yielded or belong before it
    here = _tokens(ahead, tokenizer, 0, size)
    while not ahead.ends_by(here.stop):
        start = _begin(here, done, overlap)
        following = None if start is None else _tokens(ahead, tokenizer, start, start + size)
        joint = None if following is None else _joint(here, following, within_words)
        if following is not None and joint is not None:
            yield here.ids[done : joint[0]]
            here, done = following, joint[1]
            size, overlap = chunk, least
            ahead.forget(here.first)
        elif overlap < size // 2:
            overlap = size // 2  # a wider overlap costs less than a larger chunk
        else:
            size *= 2
            grown = _tokens(ahead, tokenizer, here.first, here.first + size)
            assert np.array_equal(grown.ids[:done], here.ids[:done]), (
                "a longer chunk changes the tokens that were yielded"
            )
            here = grown
    yield here.ids[done:]


def _begin(here: _Tokens, done: int, overlap: int) -> int | None:
    """Return where the next chunk begins: at a token of this one, about `overlap` characters before its end, or None."""
    earliest = here.offsets[done, 0] if done < len(here.ids) else here.stop
    for within_words in (False, True):
        starts = here.offsets[here.boundaries(within_words), 0]
        near = starts[(starts <= here.stop - overlap) & (starts > max(earliest, here.first))]
        if len(near) and near.max() >= here.stop - 2 * overlap:
            return int(near.max())
    return None


def _joint(here: _Tokens, following: _Tokens, within_words: bool) -> tuple[int, int] | None:
    """Return the index in both chunks of a token at which to join them, or None.

    The token lies in the middle half of their overlap, on all of which both must agree; their outer quarters may differ,
    since a chunk's first and last tokens depend on where it was cut."""
    quarter = (here.stop - following.first) // 4
    lowest, highest = following.first + quarter, here.stop - quarter
    old, new = (
        np.flatnonzero((c.offsets[:, 0] >= lowest) & (c.offsets[:, 0] < highest)) for c in (here, following)
    )
    if len(old) < AGREEING or len(old) != len(new):
        return None
    if old[-1] - old[0] != len(old) - 1 or new[-1] - new[0] != len(new) - 1:
        return None
    same = np.array_equal(here.ids[old], following.ids[new])
    if not same or not np.array_equal(here.offsets[old], following.offsets[new]):
        return None
    good = here.boundaries(within_words)[old] & following.boundaries(within_words)[new]
    good[[0, -1]] = False
    if not good.any():
        return None
    candidates = np.flatnonzero(good)
    middle = candidates[np.abs(candidates - len(old) // 2).argmin()]
    return int(old[middle]), int(new[middle])


def _cut(ahead: _Ahead, tokenizer: Any, chunk: int, overlap: int) -> Iterator[NDArray[np.int32]]:
    """Yield ids chunk by chunk, for a tokenizer that gives no offsets.

    A chunk is cut where its ids end in the ids that its last part has alone."""
    size = chunk
    while not ahead.ends_by(ahead.first + size):
        text = ahead.between(ahead.first, ahead.first + size)
        whole = plain_ids(tokenizer, text)
        for cut in _cuts(text, len(text) - overlap):
            last = plain_ids(tokenizer, text[cut:])
            if AGREEING <= len(last) < len(whole) and whole[-len(last) :] == last:
                yield np.asarray(whole[: -len(last)], np.int32)
                ahead.forget(ahead.first + cut)
                size = chunk
                break
        else:
            size *= 2
    yield np.asarray(plain_ids(tokenizer, ahead.between(ahead.first, ahead.stop)), np.int32)


def _cuts(text: str, last: int) -> Iterator[int]:
    """Yield places to cut a text at: after white space, before it, anywhere; each time nearest to `last` first."""
    spaces = [cut for cut in range(max(last - 4096, 1), last) if text[cut - 1].isspace()][::-1]
    yield from spaces[:CUTS]
    yield from (cut - 1 for cut in spaces[:CUTS] if cut > 1)
    yield from range(last, max(last - CUTS, 1), -1)
