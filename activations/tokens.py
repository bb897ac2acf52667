"""Documents -> windows of token ids: BOS and packing rules; every row traces back to its document."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations import chunks
from activations.chat import ChatTemplate, Marked
from activations.documents import Conversation, Document, LongText, TokenIds
from activations.errors import ChatError, TextError

NOWHERE = -1  # document of a BOS, of padding and of a role that is not asked for; position too
MOST_TOKENS = 2**31 - 1  # of a document: places are kept as int32


@dataclass(frozen=True)
class PackingConfig:
    """How token ids fill the windows a model is run on."""

    context: int = 128
    """Tokens per window, the BOS included."""
    bos: bool = True
    """Begin every window with the tokenizer's BOS token; a tokenizer without one begins with text."""
    separator: Literal["eos", "none"] = "eos"
    """Token that ends each document of text; it counts as the document's last."""
    packing: Literal["concat", "document"] = "concat"
    """`concat` lays documents end to end and wastes nothing; `document` begins each document in a window of its
    own and pads its last one."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise TextError(f"context = {self.context}: a window needs at least 2 tokens")


class Window(NamedTuple):
    """One context: what the model reads, and where each token comes from. Arrays of length T, int32."""

    tokens: NDArray[np.int32]
    """Token ids; padding repeats the last token, and NOWHERE in `documents` marks it."""
    documents: NDArray[np.int32]
    """Number of the token's document in the source's order; NOWHERE for BOS, padding and roles not asked for."""
    positions: NDArray[np.int32]
    """Place of the token in its document, in tokens; NOWHERE where the document is."""


def windows(
    texts: Iterable[Document],
    tokenizer: Any,
    config: PackingConfig,
    rows: int | None = None,
    first: list[int] | None = None,
) -> Iterator[Window]:
    """Cut documents into windows of exactly `config.context` tokens, in order.

    `concat`: a window holds the end of one document and the start of the next; the tail of the whole text
    that does not fill a window is left out. `document`: no window holds two documents, and nothing is left
    out. Special tokens spelled out in the text are data: they are tokenised as the characters they are.

    Conversations and token ids come as they are, without a separator. The BOS they begin with is the window's own:
    it is left off where every window has one, and belongs to no document elsewhere; it has position 0 in either
    case. Tokens of a role that is not asked for belong to no document, and a window of nothing else is left
    out. `rows` is how many ids the model knows; `first` are the ids every window begins with, where a store says them:
    `first_token`'s when left out. Raises TextError for an id beyond, and for a document of more than
    MOST_TOKENS tokens."""
    bos = first_token(tokenizer, config) if first is None else first
    room = config.context - len(bos)
    end = _separator(tokenizer, config)
    waiting: list[NDArray[np.int32]] = []  # triples [3, n] of (token, document, position) not yet in a window
    length = 0
    for document, text in enumerate(texts):
        for piece in _placed(document, _pieces(document, text, tokenizer, end, bos, rows)):
            waiting.append(piece)
            length += piece.shape[1]
            if length < room:
                continue
            stream = np.concatenate(waiting, axis=1)
            whole = length // room * room
            for start in range(0, whole, room):
                yield from _window(stream[:, start : start + room], bos, config.context)
            waiting, length = [stream[:, whole:]], length - whole
        if config.packing == "document" and length:
            yield from _window(np.concatenate(waiting, axis=1), bos, config.context)
            waiting, length = [], 0


def first_token(tokenizer: Any, config: PackingConfig) -> list[int]:
    """The ids every window begins with: [BOS], or [] when it is off or the tokenizer has none."""
    if not config.bos or tokenizer.bos_token_id is None:  # id 0 is a token like any other
        return []
    return [tokenizer.bos_token_id]


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary and the special tokens: equal for tokenizers that name tokens alike."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.special_tokens_map.items()))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _separator(tokenizer: Any, config: PackingConfig) -> list[int]:
    if config.separator == "none":
        return []
    if tokenizer.eos_token_id is None:
        raise TextError("the tokenizer has no end-of-text token: use --separator none")
    return [tokenizer.eos_token_id]


def _pieces(
    number: int, document: Document, tokenizer: Any, end: list[int], bos: list[int], rows: int | None
) -> Iterator[Marked]:
    """A document's tokens, one stretch after the other."""
    if not document:
        return
    if isinstance(document, Conversation):
        try:
            yield _without_bos(ChatTemplate(tokenizer).marked_ids(document), tokenizer, bos)
        except ChatError as error:
            raise TextError(f"document {number}: {error}") from error
    elif isinstance(document, TokenIds):
        yield _without_bos(_given(number, document, rows), tokenizer, bos)
    else:
        yield from (Marked(ids) for ids in _text_ids(document, tokenizer))
        yield Marked(np.array(end, np.int32))


def _text_ids(text: str | LongText, tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    if isinstance(text, str) and len(text) > chunks.WHOLE:
        slices = (text[start : start + chunks.CHUNK] for start in range(0, len(text), chunks.CHUNK))
        return chunks.ids_of(slices, tokenizer)
    return chunks.ids_of([text] if isinstance(text, str) else text, tokenizer)


def _given(number: int, document: TokenIds, rows: int | None) -> Marked:
    ids = np.asarray(document.ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TextError(f"document {number} holds token ids that are no whole numbers")
    highest = MOST_TOKENS if rows is None else rows
    if len(wrong := ids[(ids < 0) | (ids >= highest)]):
        raise TextError(
            f"document {number} has the token id {wrong[0]}, and the model has ids 0 to {highest - 1:,}: these are "
            f"another tokenizer's; harvest with the model they were made for, or from the text"
        )
    return Marked(ids.astype(np.int32))


def _without_bos(tokens: Marked, tokenizer: Any, bos: list[int]) -> Marked:
    """Leave off a BOS that each window has of its own; elsewhere mark it, since models put their attention sink there."""
    if not len(tokens.ids) or tokens.ids[0] != tokenizer.bos_token_id:
        return tokens
    kept = np.ones(len(tokens.ids), bool) if tokens.kept is None else tokens.kept
    if bos:
        return Marked(tokens.ids[1:], kept[1:], first=1)
    return Marked(tokens.ids, kept & (np.arange(len(kept)) > 0))


def _placed(number: int, pieces: Iterable[Marked]) -> Iterator[NDArray[np.int32]]:
    """(token, document, position) of each of a document's tokens, [3, n]."""
    position = 0
    for ids, kept, first in pieces:
        position += first
        if position + len(ids) > MOST_TOKENS:
            raise TextError(
                f"document {number} has more than {MOST_TOKENS:,} tokens: cut it into several, "
                f"with --document paragraph for instance"
            )
        places = np.stack([np.full(len(ids), number), np.arange(position, position + len(ids))])
        if kept is not None:
            places[:, ~kept] = NOWHERE
        yield np.concatenate([ids[None], places]).astype(np.int32)
        position += len(ids)


def _window(piece: NDArray[np.int32], bos: list[int], context: int) -> Iterator[Window]:
    if (piece[1] == NOWHERE).all():  # nothing here is asked for
        return
    padding = context - len(bos) - piece.shape[1]
    tokens = np.concatenate([bos, piece[0], np.repeat(piece[0, -1:], padding)]).astype(np.int32)
    documents, positions = (
        np.pad(row, (len(bos), padding), constant_values=NOWHERE).astype(np.int32) for row in piece[1:]
    )
    yield Window(tokens, documents, positions)
