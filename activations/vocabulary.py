"""A model's tokenizer as the rest of the project uses it: text to ids and back, and the tokens that begin and end a text."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import Tensor

from activations.chunks import plain_ids
from activations.disk.schema import fits
from activations.documents import Document, beginning
from activations.errors import ModelError, TextError
from activations.spellings import leading_space, spellings
from activations.token_text import TokenText, pieces_at


class Vocabulary:
    """Token ids of one model. The tokenizer is the caller's own and is never changed.

    `rows` is how many ids the model can read and predict: the rows of its embedding. Raises ModelError when
    the tokenizer cannot spell a plain text, or gives ids that the embedding does not have."""

    def __init__(self, tokenizer: Any, rows: int, model: str = "the model"):
        self.tokenizer = tokenizer
        self._model = model
        self.rows = rows
        self.bos: int | None = self._special_id("BOS", tokenizer.bos_token_id)
        """Token that begins a text, as the tokenizer was loaded; None where it has none."""
        self.eos: int | None = self._special_id("EOS", tokenizer.eos_token_id)
        """Token that ends a text, as the tokenizer was loaded; None where it has none."""
        self._refuse_what_cannot_spell()
        self._refuse_ids_beyond_the_embedding()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added; special tokens spelled out in it are tokenised as the characters they are."""
        return plain_ids(self.tokenizer, text)

    def encode_pieces(self, text: str) -> tuple[list[int], list[str]]:
        """Ids of a text, as `encode` gives them, and for each the part of the text that it stands for.

        The parts, joined, are the text itself, also where the tokenizer changes case, accents or white space, as
        far as the tokenizer says where its tokens lie; one that does not gives what the ids spell. Where a character
        lies in several tokens, see `TokenText.pieces`."""
        if not text or not self.tokenizer.is_fast:
            ids = self.encode(text)
            return ids, self.text.pieces(ids, [place == 0 for place in range(len(ids))])
        encoded = self._with_offsets(text)
        return encoded.input_ids, pieces_at(text, [end for _, end in encoded.offset_mapping])

    @cached_property
    def text(self) -> TokenText:
        """How each id is spelled; ids without a token included, up to the embedding's last row."""
        added = self.tokenizer.added_tokens_decoder
        special = {int(token) for token, each in added.items() if each.special} | {
            *self.tokenizer.all_special_ids
        }
        count = max(self.rows, _largest_id(self.tokenizer) + 1)
        spelled = spellings(self.tokenizer, count)
        return TokenText(spelled, special, leading_space(self.encode, spelled))

    @cached_property
    def known(self) -> Tensor | None:
        """Ids among the embedding's rows that the tokenizer has a token for, ascending; None when that is all of them."""
        known = self.text.known
        known = known[known < self.rows]
        return None if len(known) == self.rows else known

    def unspelled(self, text: str) -> int:
        """How many of a text's characters no token stands for, or only the unknown token; white space does not count."""
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
            not here and not character.isspace() for here, character in zip(spelled, text, strict=True)
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
                f"the tokenizer of {self._model} has {token!r} as its {name} token, and the embedding has "
                f"{self.rows:,} rows: the tokenizer is another model's"
            )
        return token

    def _refuse_what_cannot_spell(self) -> None:
        """A folder without tokenizer files loads as a tokenizer that has its special tokens and no other."""
        ordinary = {*self.tokenizer.get_vocab().values()} - {*self.tokenizer.all_special_ids}
        if not ordinary:
            raise ModelError(
                f"the tokenizer of {self._model} has special tokens and no other: tokenizer.json, or "
                f"tokenizer.model, is missing; save the model's own tokenizer into its folder"
            )
        try:
            ids = self.encode("a text")
        except Exception as error:  # settings of any kind may stand in a tokenizer's files
            raise ModelError(
                f"the tokenizer of {self._model} fails on a text: {error}; its tokenizer_config.json or tokenizer.json is "
                f"damaged"
            ) from error
        if not fits(ids, list[int]):
            raise ModelError(
                f"the tokenizer of {self._model} gives {ids} for a text: numbers of tokens are needed"
            )

    def _refuse_ids_beyond_the_embedding(self) -> None:
        """Special tokens may lie beyond it, as the image token of Gemma 3's text models: no text is spelled with them."""
        added = self.tokenizer.added_tokens_decoder
        beyond = [
            token
            for token in self.tokenizer.get_vocab().values()
            if token >= self.rows and not (token in added and added[token].special)
        ]
        if beyond:
            raise ModelError(
                f"the tokenizer of {self._model} has {len(beyond):,} tokens with ids of {self.rows:,} or more, and the "
                f"embedding has {self.rows:,} rows: the tokenizer is another model's"
            )


class SpelledText:
    """Documents as they pass by, refused while they begin where the tokenizer cannot spell them.

    Iterating raises TextError when more than a tenth of the characters, in the first 100,000 or in all there are, have
    no token or only the unknown one: the model would read something else than the text."""

    TRIED, LEAST, MOST_MISSING = 100_000, 500, 0.1

    def __init__(self, documents: Iterable[Document], vocabulary: Vocabulary, source: str):
        self._documents, self._vocabulary, self._source = documents, vocabulary, source
        self._characters = self._missing = 0

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            if self._characters < self.TRIED:
                self._try(beginning(document)[: self.TRIED])
                if self._characters >= self.LEAST:
                    self._refuse_unspelled()
            yield document
        self._refuse_unspelled()

    def _try(self, text: str) -> None:
        self._characters += sum(not character.isspace() for character in text)
        self._missing += self._vocabulary.unspelled(text) if text else 0

    def _refuse_unspelled(self) -> None:
        if self._missing > self.MOST_MISSING * self._characters:
            raise TextError(
                f"the model's tokenizer cannot spell {self._source}: {self._missing / self._characters:.0%} of the first "
                f"{self._characters:,} characters have no token, or only the unknown one; take text in a language the "
                f"model was made for, or another model"
            )


def _largest_id(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)
