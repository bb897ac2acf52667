"""Token ids of a text of any length in bounded memory: exactly the ids that tokenising the whole text would give.

A long text is tokenised in chunks that overlap. Two chunks are joined inside their overlap, where both give the same
tokens at the same places for a long stretch: there the tokens depend neither on where the later chunk begins nor on
where the earlier one ends. Where no such place is (a word longer than the overlap, say), the chunks grow."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WHOLE = 2**18  # characters: a text up to here is tokenised in one call
CHUNK = 2**17
OVERLAP = 2**12
SURE = 8  # tokens that two chunks must agree on
CUTS = 64  # places tried for a tokenizer that does not say where its tokens lie


def ids_of(
    text: Iterable[str], tokenizer: Any, whole: int = WHOLE, chunk: int = CHUNK, overlap: int = OVERLAP
) -> Iterator[NDArray[np.int32]]:
    """Yield the token ids of a text, which comes in pieces of any size, as int32 arrays; nothing is added to it.

    Joined, they are the ids of the whole text; one of up to `whole` characters is tokenised in one call. Memory is that
    of about four chunks, more only for a text in which nothing can be told apart, such as one endless word. Special tokens spelled out in the text are data."""
    ahead = _Ahead(text)
    if ahead.ends_by(whole):
        yield np.asarray(plain_ids(tokenizer, ahead.between(0, ahead.stop)), np.int32)
    elif tokenizer.is_fast:
        yield from _joined(ahead, tokenizer, chunk, overlap)
    else:
        yield from _cut(ahead, tokenizer, chunk, overlap)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in one call, nothing added; special tokens spelled out in it are data."""
    if not text:  # some tokenizers make a token of nothing
        return []
    # verbose=False: a text longer than the model's context is no mistake here
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


class _Ahead:
    """A text that comes in pieces, held from `first` to `stop`, and read as far as it is asked for."""

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
    """The tokens of one chunk: ids, the characters each stands for, counted from the text's beginning, and its word."""

    first: int
    stop: int
    ids: NDArray[np.int32]
    places: NDArray[np.int64]
    """[n, 2]: first character, and the one behind the last."""
    words: NDArray[np.int64]

    def boundaries(self, within_words: bool) -> NDArray[np.bool_]:
        """Which tokens begin where the one before has ended; `within_words=False` leaves the first of each word."""
        starts, ends = self.places.T
        begins = np.zeros(len(self.ids), bool)
        begins[1:] = (starts[1:] >= ends[:-1]) & (starts[1:] > starts[:-1])
        if not within_words:
            begins[1:] &= self.words[1:] != self.words[:-1]
        return begins


def _tokens(ahead: _Ahead, tokenizer: Any, first: int, stop: int) -> _Tokens:
    text = ahead.between(first, stop)
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).encodings[0]
    words = [-1 if word is None else word for word in found.word_ids]
    places = np.array(found.offsets, np.int64).reshape(-1, 2) + first
    return _Tokens(first, first + len(text), np.array(found.ids, np.int32), places, np.array(words, np.int64))


def _joined(ahead: _Ahead, tokenizer: Any, chunk: int, least: int) -> Iterator[NDArray[np.int32]]:
    # A token of BPE that ends at a place splits its word there: both parts are merged as they were together. In
    # other models a place within a word is none to cut at: unigram weighs a word's pieces against each other.
    within_words = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    size, overlap, done = chunk, least, 0
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
            overlap = size // 2
        else:
            size *= 2
            grown = _tokens(ahead, tokenizer, here.first, here.first + size)
            assert np.array_equal(grown.ids[:done], here.ids[:done]), "a chunk's first tokens do not change"
            here = grown
    yield here.ids[done:]


def _begin(here: _Tokens, done: int, overlap: int) -> int | None:
    """Where the next chunk is to begin: at a token of this one, `overlap` characters before its end, or None."""
    earliest = here.places[done, 0] if done < len(here.ids) else here.stop
    for within_words in (False, True):
        starts = here.places[here.boundaries(within_words), 0]
        near = starts[(starts <= here.stop - overlap) & (starts > max(earliest, here.first))]
        if len(near) and near.max() >= here.stop - 2 * overlap:
            return int(near.max())
    return None


def _joint(here: _Tokens, following: _Tokens, within_words: bool) -> tuple[int, int] | None:
    """A token's number in both chunks, in the middle of a stretch of half their overlap on which they agree."""
    quarter = (here.stop - following.first) // 4
    lowest, highest = following.first + quarter, here.stop - quarter
    old, new = (
        np.flatnonzero((c.places[:, 0] >= lowest) & (c.places[:, 0] < highest)) for c in (here, following)
    )
    if len(old) < SURE or len(old) != len(new):
        return None
    if old[-1] - old[0] != len(old) - 1 or new[-1] - new[0] != len(new) - 1:
        return None
    same = np.array_equal(here.ids[old], following.ids[new])
    if not same or not np.array_equal(here.places[old], following.places[new]):
        return None
    good = here.boundaries(within_words)[old] & following.boundaries(within_words)[new]
    good[[0, -1]] = False
    if not good.any():
        return None
    places = np.flatnonzero(good)
    middle = places[np.abs(places - len(old) // 2).argmin()]
    return int(old[middle]), int(new[middle])


def _cut(ahead: _Ahead, tokenizer: Any, chunk: int, overlap: int) -> Iterator[NDArray[np.int32]]:
    """For a tokenizer that does not say where its tokens lie: cut where a chunk's ids end in those of its last part."""
    size = chunk
    while not ahead.ends_by(ahead.first + size):
        text = ahead.between(ahead.first, ahead.first + size)
        whole = plain_ids(tokenizer, text)
        for place in _cuts(text, len(text) - overlap):
            last = plain_ids(tokenizer, text[place:])
            if SURE <= len(last) < len(whole) and whole[-len(last) :] == last:
                yield np.asarray(whole[: -len(last)], np.int32)
                ahead.forget(ahead.first + place)
                size = chunk
                break
        else:
            size *= 2
    yield np.asarray(plain_ids(tokenizer, ahead.between(ahead.first, ahead.stop)), np.int32)


def _cuts(text: str, last: int) -> Iterator[int]:
    """Places to cut a text at, nearest to `last` first: behind white space, in front of it, anywhere."""
    spaces = [place for place in range(max(last - 4096, 1), last) if text[place - 1].isspace()][::-1]
    yield from spaces[:CUTS]
    yield from (place - 1 for place in spaces[:CUTS] if place > 1)
    yield from range(last, max(last - CUTS, 1), -1)
