"""What a source of text gives: a text, a text too long to hold, a conversation, or token ids made elsewhere."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = 2**20  # characters of a text that are held at once


class LongText:
    """A text of more than HEAD characters, read once, piece by piece, while it is tokenised.

    `head` holds its beginning and `rest` gives what follows. Its reader must be done with it before the source
    is asked for the next document."""

    def __init__(self, head: str, rest: Iterable[str]):
        self.head = head
        self._rest = iter(rest)

    def __iter__(self) -> Iterator[str]:
        """The whole text, piece by piece; to be called once."""
        yield self.head
        yield from self._rest


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, each with a `role` and a `content`; a model's chat template makes token ids of them."""

    messages: Sequence[Mapping[str, Any]]
    roles: frozenset[str] | None = None
    """Roles whose tokens count; None for every token, the template's own included."""

    def __bool__(self) -> bool:
        return bool(self.messages)


@dataclass(frozen=True)
class TokenIds:
    """A document that comes as token ids, used as they are."""

    ids: Sequence[int]

    def __bool__(self) -> bool:
        return bool(self.ids)


Document = str | LongText | Conversation | TokenIds


def beginning(document: Document) -> str:
    """The text of a document, or the first HEAD characters of a long one; of a conversation what is said in it,
    a message a paragraph; of token ids nothing."""
    if isinstance(document, str):
        return document[:HEAD]
    if isinstance(document, LongText):
        return document.head[:HEAD]
    if isinstance(document, Conversation):
        said = [message.get("content") for message in document.messages]
        return "\n\n".join(content for content in said if isinstance(content, str))[:HEAD]
    return ""
