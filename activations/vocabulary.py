"""A model's tokenizer as the project uses it: text to ids and back, the BOS and EOS tokens, and checks that it fits."""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from activations.chunks import plain_ids
from activations.disk.schema import fits
from activations.documents import Document, beginning
from activations.errors import ModelError, TextError
from activations.token_text import LeadingSpace, TokenText, byte_of, pieces_at


class Vocabulary:
    """The token ids of one model. The tokenizer belongs to the caller and is never changed.

    `rows` is the number of ids that the model can read and predict: the rows of its embedding. Raises ModelError if
    the tokenizer cannot encode a plain text, or has ids that the embedding lacks."""

    def __init__(self, tokenizer: Any, rows: int, model: str = "the model"):
        self.tokenizer = tokenizer
        self._model = model
        self.rows = rows
        self.bos: int | None = self._special_id("BOS", tokenizer.bos_token_id)
        """Id of the token that begins a text, as the tokenizer was loaded; None if it has none."""
        self.eos: int | None = self._special_id("EOS", tokenizer.eos_token_id)
        """Id of the token that ends a text, as the tokenizer was loaded; None if it has none."""
        self._refuse_unable_tokenizer()
        self._refuse_ids_beyond_the_embedding()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Nothing is added; special tokens spelled out in it are tokenised as ordinary characters."""
        return plain_ids(self.tokenizer, text)

    def encode_pieces(self, text: str) -> tuple[list[int], list[str]]:
        """Return the ids of a text, as `encode` does, and the part of the text that each stands for.

        Joined, the parts are the text itself, even if the tokenizer changes case, accents or white space. A slow
        tokenizer gives no offsets: for it, the parts are what the ids spell. `TokenText.pieces` says what becomes of a
        character that lies in several tokens."""
        if not text or not self.tokenizer.is_fast:
            ids = self.encode(text)
            return ids, self.text.pieces(ids, [index == 0 for index in range(len(ids))])
        encoded = self._with_offsets(text)
        return encoded.input_ids, pieces_at(text, [end for _, end in encoded.offset_mapping])

    @cached_property
    def text(self) -> TokenText:
        """The spelling of each id up to the embedding's last row, ids without a token included."""
        added = self.tokenizer.added_tokens_decoder
        special = {int(token) for token, each in added.items() if each.special} | {
            *self.tokenizer.all_special_ids
        }
        count = max(self.rows, _largest_id(self.tokenizer) + 1)
        spelled = spellings(self.tokenizer, count)
        return TokenText(spelled, special, leading_space(self.encode, spelled))

    @cached_property
    def known(self) -> Tensor | None:
        """The ids that have both an embedding row and a token, ascending, int64; None if every row has a token."""
        known = self.text.known
        known = known[known < self.rows]
        return None if len(known) == self.rows else known

    def unspelled(self, text: str) -> int:
        """Return how many characters of a text have no token or only the unknown token; white space does not count.

        A slow tokenizer gives no offsets: for it, this is an estimate from the share of unknown tokens."""
        unknown = self.tokenizer.unk_token_id
        if not self.tokenizer.is_fast:
            ids = self.encode(text)
            missing = sum(token == unknown for token in ids) / max(len(ids), 1) if ids else 1.0
            return round(missing * sum(not character.isspace() for character in text))
        encoded = self._with_offsets(text)
        spelled = bytearray(len(text))
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            if token != unknown:
                spelled[start:end] = b"\1" * (end - start)
        return sum(
            not has_token and not character.isspace()
            for has_token, character in zip(spelled, text, strict=True)
        )

    def _with_offsets(self, text: str) -> Any:
        return self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )

    def _special_id(self, name: str, token: Any) -> int | None:
        if token is None:
            return None
        if not (fits(token, int) and 0 <= token < self.rows):
            raise ModelError(
                f"the tokenizer of {self._model} has {token!r} as its {name} token and the embedding has "
                f"{self.rows:,} rows: the tokenizer belongs to another model"
            )
        return token

    def _refuse_unable_tokenizer(self) -> None:
        """Raise ModelError if the tokenizer has only special tokens, as one loaded from a folder without its files has,
        or if it cannot encode a short text."""
        ordinary = {*self.tokenizer.get_vocab().values()} - {*self.tokenizer.all_special_ids}
        if not ordinary:
            raise ModelError(
                f"the tokenizer of {self._model} has only special tokens: tokenizer.json or tokenizer.model is missing; "
                f"save the model's own tokenizer into its folder"
            )
        try:
            ids = self.encode("a text")
        except Exception as error:  # damaged settings make a tokenizer raise anything
            raise ModelError(
                f"the tokenizer of {self._model} fails on a text ({error}): its tokenizer_config.json or tokenizer.json is "
                f"damaged"
            ) from error
        if not fits(ids, list[int]):
            raise ModelError(
                f"the tokenizer of {self._model} returns {ids} for a text, must return a list of token ids"
            )

    def _refuse_ids_beyond_the_embedding(self) -> None:
        """Raise ModelError if ordinary tokens have no embedding row.

        Special tokens may have none, such as the image token of Gemma 3's text models: no text is encoded with them."""
        added = self.tokenizer.added_tokens_decoder
        beyond = [
            token
            for token in self.tokenizer.get_vocab().values()
            if token >= self.rows and not (token in added and added[token].special)
        ]
        if beyond:
            raise ModelError(
                f"the tokenizer of {self._model} has {len(beyond):,} tokens with ids of {self.rows:,} or more and the "
                f"embedding has {self.rows:,} rows: the tokenizer belongs to another model"
            )


class SpelledText:
    """An iterable that passes documents on and stops with TextError if the tokenizer cannot spell them.

    That is the case if more than MOST_MISSING of the characters have no token or only the unknown one: the model would
    not read the text. The first TRIED characters are examined, and judged from LEAST characters on or at the end."""

    TRIED, LEAST, MOST_MISSING = 100_000, 500, 0.1

    def __init__(self, documents: Iterable[Document], vocabulary: Vocabulary, source: str):
        self._documents, self._vocabulary, self._source = documents, vocabulary, source
        self._characters = self._missing = 0

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            if self._characters < self.TRIED:
                self._examine(beginning(document)[: self.TRIED])
                if self._characters >= self.LEAST:
                    self._refuse_unspelled()
            yield document
        self._refuse_unspelled()

    def _examine(self, text: str) -> None:
        self._characters += sum(not character.isspace() for character in text)
        self._missing += self._vocabulary.unspelled(text) if text else 0

    def _refuse_unspelled(self) -> None:
        if self._missing > self.MOST_MISSING * self._characters:
            raise TextError(
                f"the model's tokenizer cannot spell {self._source}: {self._missing / self._characters:.0%} of the first "
                f"{self._characters:,} characters have no token or only the unknown one; use text in a language that the "
                f"model was trained on, or another model"
            )


def _largest_id(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)


SPACE = b" "
Decoder = dict[
    str, Any
]  # as a tokenizer.json describes it: its `type` decides which fields it has, of which types
CLOSING = ".,;:!?)]}%'’”"  # marks that have no space before them


def spellings(tokenizer: Any, count: int) -> list[bytes | None]:
    """Return the bytes of ids 0 ... count - 1 of a Hugging Face tokenizer; None for an id without a token.

    The tokenizer's own decoder says how a piece of the vocabulary stands for bytes: byte-level BPE's alphabet (Radford
    et al. 2019, section 2.2), SentencePiece's ▁ and byte pieces such as <0x0A>, WordPiece's ##, the end-of-word suffix
    of early BPE. If the decoder is of another kind or missing, each id is decoded after an id that begins a text."""
    spell = _speller(tokenizer)
    added = {int(token): each for token, each in tokenizer.added_tokens_decoder.items()}
    spelled: list[bytes | None] = []
    for token, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(count)))):
        if token in added and (added[token].special or all(map(str.isprintable, added[token].content))):
            spelled.append(str(added[token]).encode())
        elif name is None:
            spelled.append(None)
        else:
            spelled.append(
                spell(token, name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name))
            )
    return spelled


def _speller(tokenizer: Any) -> Callable[[int, str], bytes]:
    """Return this tokenizer's function (id, piece of the vocabulary) -> bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _by_decoding(tokenizer)
    decoders = list(_decoders(json.loads(backend.to_str())["decoder"]))
    kinds = {decoder["type"]: decoder for decoder in decoders}
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return lambda _, piece: (
            bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else piece.encode()
        )
    if "WordPiece" in kinds:
        return _word_piece(kinds["WordPiece"]["prefix"])
    if "BPEDecoder" in kinds:
        suffix = kinds["BPEDecoder"]["suffix"]
        return lambda _, piece: (piece[: -len(suffix)] + " " if piece.endswith(suffix) else piece).encode()
    replaced = {decoder["replacement"]: " " for decoder in decoders if decoder["type"] == "Metaspace"}
    replaced |= {
        decoder["pattern"]["String"]: decoder["content"]
        for decoder in decoders
        if decoder["type"] == "Replace" and "String" in decoder["pattern"]
    }
    if not replaced and not kinds.keys() & {"ByteFallback", "Fuse"}:
        return _by_decoding(tokenizer)
    has_bytes = "ByteFallback" in kinds

    def spell(_: int, piece: str) -> bytes:
        if has_bytes and (byte := byte_of(piece)) is not None:
            return bytes([byte])
        for old, new in replaced.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return spell


def _word_piece(prefix: str) -> Callable[[int, str], bytes]:
    """Return the speller of WordPiece, in which a piece without the prefix begins a word.

    BERT's tokenizer also makes a word of every Chinese character and every punctuation mark, and does not record where
    the text had spaces. So no space is put before a closing mark or a Chinese or Japanese character."""

    def spell(_: int, piece: str) -> bytes:
        if piece.startswith(prefix) and piece != prefix:
            return piece[len(prefix) :].encode()
        joined = len(piece) == 1 and (piece in CLOSING or unicodedata.name(piece, "").startswith("CJK "))
        return piece.encode() if joined else f" {piece}".encode()

    return spell


def _by_decoding(tokenizer: Any) -> Callable[[int, str], bytes]:
    """Return a speller that takes what an id adds to a text that another id begins.

    An id decoded alone would lose its space: many decoders strip the one at the beginning of a text."""
    anchor = next(iter(tokenizer("a", add_special_tokens=False).input_ids), 0)
    before = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)

    def spell(token: int, piece: str) -> bytes:
        text = tokenizer.decode([anchor, token], clean_up_tokenization_spaces=False)
        added = text[len(before) :] if text.startswith(before) else ""
        if added and "\ufffd" not in added:
            return added.encode()
        if len(piece) == 1 and ord(piece) < 256:  # ByT5 names a byte by the character of that number
            return bytes([ord(piece)])
        byte = byte_of(piece)
        return piece.encode() if byte is None else bytes([byte])

    return spell


def byte_alphabet() -> dict[str, int]:
    """Return letter -> byte for the alphabet of byte-level BPE (Radford et al. 2019, section 2.2).

    Printable bytes stand for themselves, the others for the characters from 256 on, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _decoders(decoder: Decoder | None) -> Iterator[Decoder]:
    """Yield the description of a decoder, or of each decoder in a sequence, however nested."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoders(part)
    else:
        yield decoder


def leading_space(encode: Callable[[str], Sequence[int]], spelled: Sequence[bytes | None]) -> LeadingSpace:
    """Find out whether a tokenizer puts a space before a text, from the ids of "a" and " a"."""

    def begins(text: str, with_: bytes) -> bool:
        return b"".join(spelled[token] or b"" for token in encode(text)).startswith(with_)

    if not begins("a", SPACE):
        return "never"
    return "always" if begins(" a", 2 * SPACE) else "if absent"
