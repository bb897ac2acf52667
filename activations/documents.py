"""The kinds of document (a string, a text too long for memory, a conversation, token ids), and finding one in a row of data."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from activations.errors import TextError

Row = dict[str, object]
"""A row of a data set, by column. A column may hold anything, so that whatever reads it checks it."""
Message = Mapping[str, object]
"""A message of a chat: `role`, `content`, and whatever else the model's chat template understands."""

HEAD = 2**20  # characters of one document that are held in memory at once
CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat")
PROMPT_COLUMNS = ("prompt", "instruction", "question", "query")
ANSWER_COLUMNS = ("completion", "response", "output", "answer")
INPUT_COLUMN = "input"  # what an instruction refers to, in Alpaca's layout
ID_COLUMNS = ("input_ids", "token_ids", "tokens")
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Names of roles in data sets such as ShareGPT's -> their names in chat templates."""


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

    messages: Sequence[Message]
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


def chosen_roles(roles: str) -> frozenset[str] | None:
    """Parse the value of `--roles`, such as `user,assistant`; return None for `all`. Raises TextError for an unknown role."""
    names = [name.strip() for name in roles.split(",") if name.strip()]
    if names == ["all"]:
        return None
    known = sorted({*ROLES.values()})
    for name in names or [roles]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TextError(
                f"roles = {roles!r} has the unknown role {name!r}, must be all or some of {', '.join(known)}"
                + (f"; try --roles {near[0]}" if near else "")
            )
    return frozenset(names)


def columns_of(column: str, row: Mapping[str, object]) -> list[str]:
    """Return the columns that hold a row's document, [] if the row lacks them.

    `column` names one, or several separated by commas. Where it is `text` and the row has no such column, the usual
    columns of chats and token ids are looked for."""
    named = [column] if column in row else [name.strip() for name in column.split(",")]
    if all(name in row for name in named):
        return named
    if column != "text":
        return []
    if chat := next((name for name in CHAT_COLUMNS if name in row), None):
        return [chat]
    prompt = next((name for name in PROMPT_COLUMNS if name in row), None)
    answer = next((name for name in ANSWER_COLUMNS if name in row), None)
    if prompt and answer:
        return [prompt, *([INPUT_COLUMN] if INPUT_COLUMN in row else []), answer]
    return [name for name in ID_COLUMNS if name in row][:1]


def document_of(columns: Sequence[str], row: Mapping[str, object], roles: frozenset[str] | None) -> Document:
    """Return the document that some columns of a row hold; None stands for an empty text.

    Raises TextError if they hold neither text, messages nor token ids, and if `roles` are chosen but it is not a
    conversation."""
    values = [row[name] for name in columns]
    if len(columns) > 1:
        return Conversation(_turns(columns, values), roles)
    value, name = values[0], columns[0]
    if isinstance(value, str) and name in CHAT_COLUMNS:
        value = _parsed(value)
    if value is None or isinstance(value, str):
        if roles is not None:
            raise TextError(f"column {name!r} holds text, and --roles is for conversations: leave it out")
        return value or ""
    if isinstance(value, list | tuple) and (value or name in (*CHAT_COLUMNS, *ID_COLUMNS)):
        if all(isinstance(part, Mapping) for part in value) and (value or name in CHAT_COLUMNS):
            return Conversation([_message(part, name) for part in value], roles)
        if all(isinstance(part, int) and not isinstance(part, bool) for part in value):
            if roles is not None:
                raise TextError(
                    f"column {name!r} holds token ids, and --roles is for conversations: leave it out"
                )
            return TokenIds(value)
    kind = type(value).__name__
    inside = f" of {type(value[0]).__name__}" if isinstance(value, list) and value else ""
    raise TextError(f"column {name!r} holds {kind}{inside}, not text, messages or token ids")


def _turns(columns: Sequence[str], values: Sequence[object]) -> list[Message]:
    """Return a prompt with its input, and its answer, as two messages. Columns may also hold lists of messages."""
    *prompts, answer = values
    if all(value is None or isinstance(value, str) for value in values):
        prompt = "\n\n".join(part for part in prompts if isinstance(part, str) and part)
        turns: list[Message] = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer or ""},
        ]
        return turns if prompt or answer else []
    messages: list[Message] = []
    for name, value in zip(columns, values, strict=True):
        if isinstance(value, str):
            messages.append({"role": "assistant" if value is answer else "user", "content": value})
        elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            messages += [_message(part, name) for part in value]
        elif value is not None:
            raise TextError(f"column {name!r} holds {type(value).__name__}, not text or messages")
    return messages


def _message(raw: Message, column: str) -> Message:
    """Return a message as templates take it: `role`, `content`, and its other fields.

    Fields that are None are dropped: a table stores one in every message for each field that any message has."""
    message = {key: value for key, value in raw.items() if value is not None}
    role = message.pop("from", None) if "role" not in message else message.pop("role")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if not isinstance(role, str):
        raise TextError(
            f"column {column!r} holds a message with the fields {', '.join(map(repr, raw)) or '(none)'}, must have role "
            f"and content, or from and value"
        )
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = _joined(content, column)
    if content is not None and not isinstance(content, str):
        raise TextError(
            f"column {column!r} holds a message whose content is {type(content).__name__}, not text"
        )
    return {"role": ROLES.get(role.lower(), role), **message}


def _joined(parts: Sequence[object], column: str) -> str:
    """Return the text of a message whose content is a list of parts."""
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TextError(
                f"column {column!r} holds a message with a part of type {kind!r}; only text can be read"
            )
        texts.append(text)
    return "".join(texts)


def _parsed(value: str) -> object:
    """Return the messages that a table holds as JSON text; return any other text unchanged."""
    try:
        parsed = json.loads(value) if value.lstrip().startswith("[") else value
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, list) and all(isinstance(part, Mapping) for part in parsed) else value
