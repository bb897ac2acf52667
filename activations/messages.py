"""What a row of a data set is: a text, a conversation in one of the usual layouts, or token ids."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from activations.documents import Conversation, Document, TokenIds
from activations.errors import TextError

CHATS = ("messages", "conversations", "conversation", "chat")
ASKED = ("prompt", "instruction", "question", "query")
ANSWERED = ("completion", "response", "output", "answer")
MORE = "input"  # what an instruction is about, in Alpaca's layout
IDS = ("input_ids", "token_ids", "tokens")
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
"""Names that data sets give roles, ShareGPT's among them, and what templates call them."""


def chosen_roles(asked: str) -> frozenset[str] | None:
    """The roles of `--roles`, such as `user,assistant`; None for `all`. Raises TextError for an unknown one."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if names == ["all"]:
        return None
    known = sorted({*ROLES.values()})
    for name in names or [asked]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TextError(
                f"roles = {asked!r} and there is no role {name!r}: needed is all, or some of {', '.join(known)}"
                + (f"; try --roles {near[0]}" if near else "")
            )
    return frozenset(names)


def columns_of(column: str, row: Mapping[str, Any]) -> list[str]:
    """The columns a document comes from: those named, or, where there is no `text`, the usual ones of chats and ids.

    Empty when the row has none."""
    named = [column] if column in row else [name.strip() for name in column.split(",")]
    if all(name in row for name in named):
        return named
    if column != "text":
        return []
    if chat := next((name for name in CHATS if name in row), None):
        return [chat]
    asked, answered = (next((name for name in names if name in row), None) for names in (ASKED, ANSWERED))
    if asked and answered:
        return [asked, *([MORE] if MORE in row else []), answered]
    return [name for name in IDS if name in row][:1]


def document_of(columns: Sequence[str], row: Mapping[str, Any], roles: frozenset[str] | None) -> Document:
    """The document that some columns of a row hold. Raises TextError when it is none."""
    values = [row[name] for name in columns]
    if len(columns) > 1:
        return Conversation(_turns(columns, values), roles)
    value, name = values[0], columns[0]
    if isinstance(value, str) and name in CHATS:
        value = _parsed(value)
    if value is None or isinstance(value, str):
        if roles is not None:
            raise TextError(f"--roles is for conversations, and column {name!r} holds text: leave it out")
        return value or ""
    if isinstance(value, list | tuple) and (value or name in (*CHATS, *IDS)):
        if all(isinstance(part, Mapping) for part in value) and (value or name in CHATS):
            return Conversation([_message(part, name) for part in value], roles)
        if all(isinstance(part, int) and not isinstance(part, bool) for part in value):
            if roles is not None:
                raise TextError(
                    f"--roles is for conversations, and column {name!r} holds token ids: leave it out"
                )
            return TokenIds(value)
    kind = type(value).__name__
    inside = f" of {type(value[0]).__name__}" if isinstance(value, list) and value else ""
    raise TextError(f"column {name!r} holds {kind}{inside}, not text, messages or token ids")


def _turns(columns: Sequence[str], values: Sequence[Any]) -> list[dict[str, Any]]:
    """A prompt, with what it is about, and its answer, as two messages; either may be messages already."""
    *asked, answered = values
    if all(value is None or isinstance(value, str) for value in values):
        prompt = "\n\n".join(part for part in asked if part)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answered or ""}]
        return turns if prompt or answered else []
    messages: list[dict[str, Any]] = []
    for name, value in zip(columns, values, strict=True):
        if isinstance(value, str):
            messages.append({"role": "assistant" if value is answered else "user", "content": value})
        elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            messages += [_message(part, name) for part in value]
        elif value is not None:
            raise TextError(f"column {name!r} holds {type(value).__name__}, not text or messages")
    return messages


def _message(given: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A message as templates take it: `role` and `content`, and whatever else it has. Values that are None are
    left out: tables have them where another row's message has more."""
    message = {key: value for key, value in given.items() if value is not None}
    role = message.pop("from", None) if "role" not in message else message.pop("role")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if not isinstance(role, str):
        raise TextError(
            f"column {column!r} holds a message with {', '.join(map(repr, given)) or 'nothing'}: needed are role and "
            f"content, or from and value"
        )
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = _joined(content, column)
    if content is not None and not isinstance(content, str):
        raise TextError(
            f"column {column!r} holds a message whose content is {type(content).__name__}, not text"
        )
    return {"role": ROLES.get(role.lower(), role), **message}


def _joined(parts: Sequence[Any], column: str) -> str:
    """The text of a message that comes in parts."""
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TextError(
                f"column {column!r} holds a message with a part of type {kind!r}: only text can be read"
            )
        texts.append(text)
    return "".join(texts)


def _parsed(value: str) -> Any:
    """Messages that a table holds as JSON; any other text as it is."""
    try:
        parsed = json.loads(value) if value.lstrip().startswith("[") else value
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, list) and all(isinstance(part, Mapping) for part in parsed) else value
