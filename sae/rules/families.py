"""Families of conditions: for each kind, which rows have which key, as sparse matrices that count any number of latents at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from activations.token_text import TokenText
from sae.rules import properties
from sae.rules.corpus import Corpus
from sae.rules.rule import Condition

LEAST_ROWS = 3  # rows of the choosing half that have a key, for it to be in a family
NEARBY = 8  # tokens that a nearby one is looked for in, this one left out
AFFIX = (
    4,
    3,
    2,
)  # letters of an ending or a beginning; of endings that the same words have the longest is named
SPACES = (" ", "\n", "\t", "\r")
Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """The conditions of one kind. Row r has the keys in row r of `matrix` [N, K] (ones); K may be 0."""

    kind: str
    matrix: Any
    spell: Callable[[int], tuple[str, ...]]
    """Returns the texts of a key."""
    disjoint: bool
    """Whether no row has two keys: then any set of keys is a condition too, else only single keys are."""
    of_token: bool
    """Whether it asks which token it is, not what it is like, what comes before it or where it stands."""

    @cached_property
    def by_key(self) -> Any:
        """Return the matrix [N, K] stored by columns, so that the rows of a key lie together."""
        return self.matrix.tocsc()

    def rows(self, keys: Keys) -> NDArray[np.int64]:
        """Return the rows that have any of the keys, ascending."""
        starts = self.by_key.indptr
        parts = [self.by_key.indices[starts[key] : starts[key + 1]] for key in keys]
        rows = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
        if len(parts) > 1:  # only disjoint families have sets of keys: no row comes twice
            rows.sort()
        return rows

    def condition(self, keys: Keys) -> Condition:
        """Return the condition that a row has any of the keys."""
        return Condition(self.kind, tuple(map(self.spell, keys.tolist())))


def families(corpus: Corpus) -> list[Family]:
    """Return every family of conditions that rules are chosen from, the plainest kinds first."""
    tokens = corpus.tokens.astype(np.int64)
    names = corpus.text.names
    pieces = _pieces(corpus.text)
    words, word_of_row = _words(pieces, corpus)
    before, two_before = _earlier(tokens, 1), _earlier(tokens, 2)

    def named(ids: NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(names[token] for token in ids.tolist())

    def n_grams(kind: str, *columns: NDArray[np.int64]) -> Family:
        ids, keys = _joined(columns)
        return _family(
            corpus, kind, keys, lambda key: named(ids[key]), of_token=kind not in ("previous", "two before")
        )

    def texts(kind: str, listed: Sequence[str], keys: NDArray[np.int64]) -> Family:
        return _family(corpus, kind, keys, lambda key: (listed[key],), of_token=True)

    bare = [piece.strip().lower() for piece in pieces]
    lowered, of_token = np.unique(np.array(bare, object), return_inverse=True)
    piece_keys = np.where(np.array([bool(text) for text in lowered])[of_token], of_token, -1)[tokens]
    columns = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    endings, beginnings = (_affixes(words, word_of_row, side) for side in ("ending", "beginning"))
    return [
        n_grams("token", tokens),
        texts("piece", lowered.tolist(), piece_keys),
        texts("word", words, word_of_row),
        _family(corpus, "position", columns, lambda key: (str(key),), of_token=False),
        _properties(corpus, pieces, words, word_of_row),
        *(texts("ending", *pair) for pair in endings),
        *(texts("beginning", *pair) for pair in beginnings),
        n_grams("previous", before),
        n_grams("bigram", before, tokens),
        n_grams("two before", two_before),
        n_grams("skip-gram", two_before, tokens),
        n_grams("trigram", two_before, before, tokens),
        _nearby(corpus, tokens, named),
    ]


def _pieces(text: TokenText) -> list[str]:
    """Return the text of every token id; a special token parts words as a space does."""
    return [
        " " if token in text.special else (spelling or b"").decode("utf-8", "replace")
        for token, spelling in enumerate(text.spellings)
    ]


def _family(
    corpus: Corpus,
    kind: str,
    keys: NDArray[np.int64],
    spell: Callable[[int], tuple[str, ...]],
    of_token: bool,
) -> Family:
    """Return a disjoint family from the key of each row [W, T], -1 for none. Keys that too few rows have are left out."""
    flat = keys.ravel()
    used = (flat >= 0) & (corpus.choosing | corpus.scoring)
    counts = np.bincount(flat[used & corpus.choosing], minlength=int(flat.max(initial=-1)) + 1)
    kept = np.flatnonzero(counts >= LEAST_ROWS)
    place = np.full(len(counts), -1)
    place[kept] = np.arange(len(kept))
    used[used] = place[flat[used]] >= 0
    matrix = _one_hot(place[np.where(used, flat, 0)] if len(place) else flat, used, len(kept))
    return Family(kind, matrix, lambda key: spell(int(kept[key])), True, of_token)


def _one_hot(keys: NDArray[np.int64], used: NDArray[np.bool_], n_keys: int) -> Any:
    indptr = np.concatenate([[0], used.cumsum()])
    entries = np.ones(indptr[-1], np.int32), keys[used].astype(np.int32), indptr.astype(np.int32)
    return sparse.csr_matrix(entries, shape=(len(keys), n_keys))


def _properties(
    corpus: Corpus, pieces: list[str], words: list[str], word_of_row: NDArray[np.int64]
) -> Family:
    """Return the family of properties, which a token can have several of."""
    shape, counted = corpus.tokens.shape, (corpus.choosing | corpus.scoring)
    of_pieces = properties.written(pieces, properties.PIECES) | properties.scripts(pieces)
    holds = {name: of_token[corpus.tokens] for name, of_token in of_pieces.items()}
    in_word = word_of_row >= 0
    for name, of_word in properties.written(words, properties.WORDS).items():
        holds[name] = (of_word[word_of_row] if len(words) else np.zeros(shape, bool)) & in_word
    holds |= properties.places(pieces, corpus.tokens, corpus.positions)
    if words:
        lowered = [word.lower() for word in words]
        of_windows = properties.languages([*lowered, ""], word_of_row)
        holds |= {name: np.broadcast_to(of[:, None], shape) for name, of in of_windows.items()}
    columns = {name: np.flatnonzero(rows.ravel() & counted) for name, rows in holds.items()}
    known = [name for name, rows in columns.items() if corpus.choosing[rows].sum() >= LEAST_ROWS]
    rows = np.concatenate([columns[name] for name in known]) if known else np.zeros(0, np.int64)
    keys = np.repeat(np.arange(len(known)), [len(columns[name]) for name in known])
    matrix: Any = sparse.csr_matrix(
        (np.ones(len(rows), np.int32), (rows, keys)), shape=(corpus.n_rows, len(known))
    )
    return Family("property", matrix, lambda key: (known[key],), False, False)


def _nearby(corpus: Corpus, tokens: NDArray[np.int64], named: Callable[..., tuple[str, ...]]) -> Family:
    """Return the family of the tokens among the last few, of which a row has several."""
    counted = (corpus.choosing | corpus.scoring).reshape(tokens.shape)
    parts = []
    for back in range(1, NEARBY + 1):
        earlier = _earlier(tokens, back)
        rows = np.flatnonzero((earlier >= 0) & counted)
        parts.append((rows, earlier.ravel()[rows]))
    rows, keys = (np.concatenate(column) for column in zip(*parts, strict=True))
    ids, keys = np.unique(keys, return_inverse=True)
    matrix: Any = sparse.csr_matrix(
        (np.ones(len(rows), np.int32), (rows, keys)), shape=(corpus.n_rows, len(ids))
    )
    matrix.data[:] = 1  # a token that stands there twice was counted twice
    return Family("nearby", matrix, lambda key: named(ids[key : key + 1]), False, False)


def _earlier(tokens: NDArray[np.int64], back: int) -> NDArray[np.int64]:
    """Return the token so many places before in the window, -1 where the window begins later."""
    before = np.full_like(tokens, -1)
    before[:, back:] = tokens[:, :-back]
    return before


def _joined(columns: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct tuples [K, n] of n columns [W, T], and each row's number among them, -1 where one is missing."""
    exists = np.logical_and.reduce([column >= 0 for column in columns])
    base = max(int(column.max(initial=0)) for column in columns) + 1
    code = np.zeros(int(exists.sum()), np.int64)
    for column in columns:  # up to three ids of under 2^21 fit into 63 bits
        code = code * base + column[exists]
    distinct, place = np.unique(code, return_inverse=True)
    keys = np.full(exists.shape, -1)
    keys[exists] = place
    parts = [distinct // base**power % base for power in range(len(columns) - 1, -1, -1)]
    return np.stack(parts, 1), keys


def _words(pieces: list[str], corpus: Corpus) -> tuple[list[str], NDArray[np.int64]]:
    """Return the words that the text has, and for each row [W, T] the number of the word up to and including its token.

    A word is a run without white space; a token that is nothing but white space has none (-1)."""
    numbers: dict[str, int] = {}
    found = np.full(corpus.tokens.shape, -1)
    for window, (ids, starts) in enumerate(
        zip(corpus.tokens.tolist(), (corpus.positions == 0).tolist(), strict=True)
    ):
        word = ""
        for column, (token, start) in enumerate(zip(ids, starts, strict=True)):
            piece = pieces[token]
            word = piece.lstrip() if start or piece.startswith(SPACES) else word + piece
            if word.endswith(SPACES):
                word = word.split()[-1] if piece.strip() and word.split() else ""
                if word:
                    found[window, column] = numbers.setdefault(word, len(numbers))
                word = ""
            elif word:
                found[window, column] = numbers.setdefault(word, len(numbers))
    return list(numbers), found


def _affixes(
    words: list[str], word_of_row: NDArray[np.int64], side: str
) -> list[tuple[list[str], NDArray[np.int64]]]:
    """Return, for each length, the endings or beginnings of words in lower case, and the number of each row's, -1 for none.

    A word has one only if it is longer, and of letters alone."""
    results = []
    for length in AFFIX:
        numbers: dict[str, int] = {}
        of_word = np.full(len(words) + 1, -1)  # the last place is that of rows without a word
        for number, word in enumerate(words):
            if len(word) > length and word.isalpha():
                affix = (word[-length:] if side == "ending" else word[:length]).lower()
                of_word[number] = numbers.setdefault(affix, len(numbers))
        results.append((list(numbers), of_word[word_of_row]))
    return results
