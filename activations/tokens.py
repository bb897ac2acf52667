"""Documents -> windows of token ids: BOS and packing rules; every row traces back to its document."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations.errors import TextError

NOWHERE = -1  # document of a BOS and of padding; position too


@dataclass(frozen=True)
class PackingConfig:
    """How token ids fill the windows a model is run on."""

    context: int = 128
    """Tokens per window, the BOS included."""
    bos: bool = True
    """Begin every window with the tokenizer's BOS token; a tokenizer without one begins with text."""
    separator: Literal["eos", "none"] = "eos"
    """Token that ends each document; it counts as the document's last."""
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
    """Number of the token's document in the source's order; NOWHERE for BOS and padding."""
    positions: NDArray[np.int32]
    """Place of the token in its document, in tokens; NOWHERE for BOS and padding."""


def windows(texts: Iterable[str], tokenizer: Any, config: PackingConfig) -> Iterator[Window]:
    """Cut documents into windows of exactly `config.context` tokens, in order.

    `concat`: a window holds the end of one document and the start of the next; the tail of the whole text
    that does not fill a window is left out. `document`: no window holds two documents, and nothing is left
    out. Special tokens spelled out in the text are data: they are tokenised as the characters they are."""
    bos = first_token(tokenizer, config)
    room = config.context - len(bos)
    waiting: list[NDArray[np.int32]] = []  # triples [3, n] of (token, document, position) not yet in a window
    length = 0
    for document, ids in enumerate(_tokenise(texts, tokenizer, config)):
        if not len(ids):
            continue
        piece = np.stack([ids, np.full(len(ids), document), np.arange(len(ids))]).astype(np.int32)
        waiting.append(piece)
        length += len(ids)
        if length < room and config.packing == "concat":
            continue
        stream = np.concatenate(waiting, axis=1)
        whole = length // room * room
        for start in range(0, whole, room):
            yield _window(stream[:, start : start + room], bos, config.context)
        rest = stream[:, whole:]
        if config.packing == "document" and rest.shape[1]:
            yield _window(rest, bos, config.context)
            rest = rest[:, :0]
        waiting, length = [rest], rest.shape[1]


def first_token(tokenizer: Any, config: PackingConfig) -> list[int]:
    """The ids every window begins with: [BOS], or [] when it is off or the tokenizer has none."""
    if not config.bos or tokenizer.bos_token_id is None:  # id 0 is a token like any other
        return []
    return [tokenizer.bos_token_id]


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary and the special tokens: equal for tokenizers that name tokens alike."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.special_tokens_map.items()))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _tokenise(texts: Iterable[str], tokenizer: Any, config: PackingConfig) -> Iterator[NDArray[np.int32]]:
    end = []
    if config.separator == "eos":
        if tokenizer.eos_token_id is None:
            raise TextError("the tokenizer has no end-of-text token: use --separator none")
        end = [tokenizer.eos_token_id]
    for text in texts:
        if not text:
            yield np.empty(0, np.int32)
            continue
        # verbose=False: a document longer than the model's context is no mistake here, it is cut below
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        yield np.asarray(encoded["input_ids"] + end, np.int32)


def _window(piece: NDArray[np.int32], bos: list[int], context: int) -> Window:
    padding = context - len(bos) - piece.shape[1]
    tokens = np.concatenate([bos, piece[0], np.repeat(piece[0, -1:], padding)]).astype(np.int32)
    documents, positions = (
        np.pad(row, (len(bos), padding), constant_values=NOWHERE).astype(np.int32) for row in piece[1:]
    )
    return Window(tokens, documents, positions)
