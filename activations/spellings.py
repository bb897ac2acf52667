"""Reads from a Hugging Face tokenizer which bytes each id of its vocabulary stands for."""

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from activations.token_text import LeadingSpace, byte_of

SPACE = b" "
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


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
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
