"""Packing: cuts documents into windows of token ids, adds BOS and separators, and notes where each token comes from."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations import chunks
from activations.chat import ChatTemplate, MarkedIds
from activations.documents import Conversation, Document, LongText, TokenIds
from activations.errors import ChatError, TextError

NOWHERE = -1  # document and position of a BOS, of padding and of a role that is not selected
MOST_TOKENS = 2**31 - 1  # in one document: positions are stored as int32


@dataclass(frozen=True)
class PackingConfig:
    """Settings by which token ids fill the windows that a model is run on."""

    context: int = 128
    """Tokens per window, the BOS included."""
    bos: bool = True
    """Begin every window with the tokenizer's BOS token; a tokenizer without one begins with text."""
    separator: Literal["eos", "none"] = "eos"
    """Token that ends each document of text; it counts as the document's last."""
    packing: Literal["concat", "document"] = "concat"
    """`concat` lays documents end to end and wastes nothing; `document` begins each document in a new window and pads
    its last window."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise TextError(f"context = {self.context}, must be at least 2 tokens")


class Window(NamedTuple):
    """One context: the tokens that the model reads, and where each comes from. All arrays are int32 of length T."""

    tokens: NDArray[np.int32]
    """Token ids; padding repeats the last token, and NOWHERE in `documents` marks it."""
    documents: NDArray[np.int32]
    """Number of the token's document in the source's order; NOWHERE for BOS, padding and roles not selected."""
    positions: NDArray[np.int32]
    """Index of the token in its document; NOWHERE where the document is NOWHERE."""


def windows(
    texts: Iterable[Document],
    tokenizer: Any,
    config: PackingConfig,
    rows: int | None = None,
    first: list[int] | None = None,
) -> Iterator[Window]:
    """Cut documents into windows of exactly `config.context` tokens, in order.

    `concat`: a window may hold the end of one document and the start of the next; the last tokens of the whole text
    are dropped if they do not fill a window. `document`: no window holds two documents, and nothing is dropped.
    Special tokens spelled out in the text are data: they are tokenised as ordinary characters.

    Conversations and token ids are used unchanged, without a separator. A BOS that they begin with has position 0: it
    is dropped where every window has its own BOS, and belongs to no document otherwise. Tokens of a role that is not
    selected belong to no document, and a window that holds nothing else is dropped.

    `rows` is how many ids the model knows. `first` are the ids that every window begins with, as a store notes them;
    left out, they are those of `first_token`. Raises TextError for an id beyond `rows`, for a document of more than
    MOST_TOKENS tokens, and for a chat that the model's template rejects."""
    bos = first_token(tokenizer, config) if first is None else first
    room = config.context - len(bos)
    end = _separator(tokenizer, config)
    waiting: list[NDArray[np.int32]] = []  # arrays [3, n] of (token, document, position) not yet in a window
    length = 0
    for document, text in enumerate(texts):
        for piece in _located(document, _pieces(document, text, tokenizer, end, bos, rows)):
            waiting.append(piece)
            length += piece.shape[1]
            if length < room:
                continue
            stream = np.concatenate(waiting, axis=1)
            filled = length // room * room
            for start in range(0, filled, room):
                yield from _window(stream[:, start : start + room], bos, config.context)
            waiting, length = [stream[:, filled:]], length - filled
        if config.packing == "document" and length:
            yield from _window(np.concatenate(waiting, axis=1), bos, config.context)
            waiting, length = [], 0


def first_token(tokenizer: Any, config: PackingConfig) -> list[int]:
    """Return the ids that every window begins with: [BOS], or [] if it is off or the tokenizer has none."""
    if not config.bos or tokenizer.bos_token_id is None:  # not `not`: a BOS may have id 0
        return []
    return [tokenizer.bos_token_id]


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the SHA-256 of the vocabulary and the special tokens; tokenizers with the same ids for the same names share it."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.special_tokens_map.items()))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _separator(tokenizer: Any, config: PackingConfig) -> list[int]:
    if config.separator == "none":
        return []
    if tokenizer.eos_token_id is None:
        raise TextError(
            "the tokenizer has no end-of-text token to separate documents with: use --separator none"
        )
    return [tokenizer.eos_token_id]


def _pieces(
    number: int, document: Document, tokenizer: Any, end: list[int], bos: list[int], rows: int | None
) -> Iterator[MarkedIds]:
    """Yield a document's tokens, one stretch after the other."""
    if not document:
        return
    if isinstance(document, Conversation):
        try:
            yield _without_bos(ChatTemplate(tokenizer).marked_ids(document), tokenizer, bos)
        except ChatError as error:
            raise TextError(f"document {number}: {error.message}", fix=error.fix) from error
    elif isinstance(document, TokenIds):
        yield _without_bos(_checked_ids(number, document, rows), tokenizer, bos)
    else:
        yield from (MarkedIds(ids) for ids in _text_ids(document, tokenizer))
        yield MarkedIds(np.array(end, np.int32))


def _text_ids(text: str | LongText, tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    if isinstance(text, str) and len(text) > chunks.WHOLE:
        slices = (text[start : start + chunks.CHUNK] for start in range(0, len(text), chunks.CHUNK))
        return chunks.ids_of(slices, tokenizer)
    return chunks.ids_of([text] if isinstance(text, str) else text, tokenizer)


def _checked_ids(number: int, document: TokenIds, rows: int | None) -> MarkedIds:
    ids = np.asarray(document.ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TextError(f"document {number} holds token ids of type {ids.dtype}, not whole numbers")
    limit = MOST_TOKENS if rows is None else rows
    if len(wrong := ids[(ids < 0) | (ids >= limit)]):
        raise TextError(
            f"document {number} has the token id {wrong[0]}, the model has ids 0 to {limit - 1:,}: another tokenizer "
            f"made these ids; harvest with its model, or from the text"
        )
    return MarkedIds(ids.astype(np.int32))


def _without_bos(tokens: MarkedIds, tokenizer: Any, bos: list[int]) -> MarkedIds:
    """Drop a BOS that the document begins with if each window has its own; otherwise deselect it.

    Models put their attention sink on it, so its activations are not those of a token of text."""
    if not len(tokens.ids) or tokens.ids[0] != tokenizer.bos_token_id:
        return tokens
    selected = np.ones(len(tokens.ids), bool) if tokens.selected is None else tokens.selected
    if bos:
        return MarkedIds(tokens.ids[1:], selected[1:], first=1)
    return MarkedIds(tokens.ids, selected & (np.arange(len(selected)) > 0))


def _located(number: int, pieces: Iterable[MarkedIds]) -> Iterator[NDArray[np.int32]]:
    """Yield arrays [3, n] of (token, document, position) for a document's tokens."""
    position = 0
    for ids, selected, first in pieces:
        position += first
        if position + len(ids) > MOST_TOKENS:
            raise TextError(
                f"document {number} has more than {MOST_TOKENS:,} tokens: cut it into several, for example with "
                f"--document paragraph"
            )
        sources = np.stack([np.full(len(ids), number), np.arange(position, position + len(ids))])
        if selected is not None:
            sources[:, ~selected] = NOWHERE
        yield np.concatenate([ids[None], sources]).astype(np.int32)
        position += len(ids)


def _window(piece: NDArray[np.int32], bos: list[int], context: int) -> Iterator[Window]:
    if (piece[1] == NOWHERE).all():  # no token of it is selected
        return
    padding = context - len(bos) - piece.shape[1]
    tokens = np.concatenate([bos, piece[0], np.repeat(piece[0, -1:], padding)]).astype(np.int32)
    documents, positions = (
        np.pad(row, (len(bos), padding), constant_values=NOWHERE).astype(np.int32) for row in piece[1:]
    )
    yield Window(tokens, documents, positions)
