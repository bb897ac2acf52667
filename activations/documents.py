"""The kinds of document that a source of text yields: a string, a text too long for memory, a conversation, or token ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = 2**20  # characters of one document that are held in memory at once


class LongText:
    """A text of more than HEAD characters, which is read once, piece by piece, while it is tokenised.

    `head` is its beginning and `rest` yields what follows. The reader must finish a LongText before it asks the
    source for the next document."""

    def __init__(self, head: str, rest: Iterable[str]):
        self.head = head
        self._rest = iter(rest)

    def __iter__(self) -> Iterator[str]:
        """Yield the whole text, piece by piece. Can be called only once."""
        yield self.head
        yield from self._rest


@dataclass(frozen=True)
class Conversation:
    """The messages of a chat, each with a `role` and a `content`. The model's chat template turns them into token ids."""

    messages: Sequence[Mapping[str, Any]]
    roles: frozenset[str] | None = None
    """Roles whose tokens are selected; None selects every token, the template's own included."""

    def __bool__(self) -> bool:
        return bool(self.messages)


@dataclass(frozen=True)
class TokenIds:
    """A document that is given as token ids, which are used unchanged."""

    ids: Sequence[int]

    def __bool__(self) -> bool:
        return bool(self.ids)


Document = str | LongText | Conversation | TokenIds


def beginning(document: Document) -> str:
    """Return the text of a document, cut after HEAD characters.

    For a conversation that is what its messages say, one paragraph per message; for token ids it is empty."""
    if isinstance(document, str):
        return document[:HEAD]
    if isinstance(document, LongText):
        return document.head[:HEAD]
    if isinstance(document, Conversation):
        contents = [message.get("content") for message in document.messages]
        return "\n\n".join(content for content in contents if isinstance(content, str))[:HEAD]
    return ""
