"""How the tokenizers of the Hugging Face libraries spell: the bytes that each id of a vocabulary stands for."""

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from activations.token_text import LeadingSpace, byte_of

SPACE = b" "
CLOSING = ".,;:!?)]}%'’”"  # marks that are written without a space before them


def spellings(tokenizer: Any, count: int) -> list[bytes | None]:
    """The bytes of ids 0 ... count - 1 of a Hugging Face tokenizer; None for an id without a token.

    How a piece of the vocabulary stands for bytes is read from the tokenizer's own decoder: byte-level BPE's
    alphabet (Radford et al. 2019, section 2.2), SentencePiece's ▁ and byte pieces such as <0x0A>, WordPiece's ##,
    the end of word of early BPE. Where there is no such decoder to read, each id is decoded behind another one."""
    spell = _rule(tokenizer)
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


def _rule(tokenizer: Any) -> Callable[[int, str], bytes]:
    """The function (id, piece of the vocabulary) -> bytes of this tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _by_decoding(tokenizer)
    description = json.loads(backend.to_str())
    parts = list(_components(description["decoder"]))
    kinds = {part["type"]: part for part in parts}
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
    replaced = {part["replacement"]: " " for part in parts if part["type"] == "Metaspace"}
    replaced |= {
        part["pattern"]["String"]: part["content"]
        for part in parts
        if part["type"] == "Replace" and "String" in part["pattern"]
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
    """Spell WordPiece: a piece without the prefix begins a word.

    BERT's tokenizer also makes a word of every Chinese character and every mark of punctuation. Where a space
    was is not kept; none is shown before a closing mark or around a character of Chinese or Japanese."""

    def spell(_: int, piece: str) -> bytes:
        if piece.startswith(prefix) and piece != prefix:
            return piece[len(prefix) :].encode()
        alone = len(piece) == 1 and (piece in CLOSING or unicodedata.name(piece, "").startswith("CJK "))
        return piece.encode() if alone else f" {piece}".encode()

    return spell


def _by_decoding(tokenizer: Any) -> Callable[[int, str], bytes]:
    """Spell an id by what it adds to a text that another id begins: alone, many decoders would strip its space."""
    anchor = next(iter(tokenizer("a", add_special_tokens=False).input_ids), 0)
    before = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)

    def spell(token: int, piece: str) -> bytes:
        whole = tokenizer.decode([anchor, token], clean_up_tokenization_spaces=False)
        added = whole[len(before) :] if whole.startswith(before) else ""
        if added and "\ufffd" not in added:
            return added.encode()
        if (
            len(piece) == 1 and ord(piece) < 256
        ):  # ByT5 and its like name a byte by the character of that number
            return bytes([ord(piece)])
        byte = byte_of(piece)
        return piece.encode() if byte is None else bytes([byte])

    return spell


def byte_alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level BPE's alphabet stands for (Radford et al. 2019, section 2.2)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _components(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The decoders within a decoder's description, one by one."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _components(part)
    else:
        yield decoder


def leading_space(encode: Callable[[str], Sequence[int]], spelled: Sequence[bytes | None]) -> LeadingSpace:
    """Find out whether a tokenizer puts a space before a text, from what it makes of "a" and " a"."""

    def begins(text: str, with_: bytes) -> bool:
        return b"".join(spelled[token] or b"" for token in encode(text)).startswith(with_)

    if not begins("a", SPACE):
        return "never"
    return "always" if begins(" a", 2 * SPACE) else "if absent"
