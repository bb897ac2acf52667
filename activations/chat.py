"""Chats laid out by a model's chat template: the token ids that its tokenizer gives, and which of them each role said."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations.documents import Conversation, Message
from activations.errors import ChatError

Messages = Sequence[Message]
# A template is an arbitrary program, so where it puts a message's text can only be found by experiment: private-use
# characters go in around the text, or in place of special tokens, and are looked for in the rendered chat. Templates
# trim, escape and copy these characters like letters.
FIRST_MARK, LAST_MARK = 0x100000, 0x10FDFF
FROM_MESSAGE, FROM_TEMPLATE = "\U0010fe00", "\U0010fe01"  # stand around the number of a special token
SPOKEN_FIELDS = ("content", "reasoning_content", "thinking", "tool_calls")


class MarkedIds(NamedTuple):
    """Token ids [n] int32, of which `selected` [n] bool says which to use, None for all. The first has position `first`."""

    ids: NDArray[np.int32]
    selected: NDArray[np.bool_] | None = None
    first: int = 0


class Span(NamedTuple):
    """A part of a rendered chat: its characters, and the number of the message that says them, None for the template."""

    text: str
    message: int | None


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises ChatError if the tokenizer has none. Every method raises ChatError for messages that the template rejects."""

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise ChatError(
                "the tokenizer has no chat template: give plain text, or use a model that is trained on chats"
            )
        self._tokenizer = tokenizer

    @property
    def sha256(self) -> str:
        """SHA-256 of the template's text."""
        return hashlib.sha256(self._tokenizer.get_chat_template().encode()).hexdigest()

    def ids(self, messages: Messages, answer: bool = False) -> list[int]:
        """Return the token ids of some messages; with `answer` they end where the assistant's answer begins.

        They equal those of the tokenizer's `apply_chat_template`, except that special tokens spelled out in a message
        are data: they are tokenised as ordinary characters."""
        if not self._spells_special(messages):
            return self._apply(messages, answer, tokenize=True, return_dict=False)
        if not self._tokenizer.is_fast:
            return self._apply(
                messages, answer, tokenize=True, return_dict=False, sanitize_control_tokens=True
            )
        return self._encode_as_data([Span(self._render(self._hidden(messages), answer), None)])[0]

    def marked_ids(self, conversation: Conversation) -> MarkedIds:
        """Return the token ids of a conversation, with those selected that its `roles` said.

        A message said a token if it said any of the token's characters; the special token that ends its turn is its
        own too. A template that itself marks what the assistant generates (`{% generation %}`) decides for the
        assistant. Raises ChatError if the messages cannot be told apart in the rendered chat."""
        messages = conversation.messages
        if conversation.roles is None:
            return MarkedIds(np.array(self.ids(messages), np.int32))
        spans = self._spans(messages)
        if self._spells_special(messages) and self._tokenizer.is_fast:
            ids, offsets, spans = self._encode_as_data(spans)
        else:
            ids, offsets = self.ids(messages), self._offsets(spans)
        if len(ids) != len(offsets):
            raise ChatError(
                f"roles cannot be told apart: the chat has {len(ids)} token ids and its rendered text {len(offsets)}; "
                f"use --roles all"
            )
        selected = np.zeros(len(ids), bool)
        start = 0
        for span in spans:
            stop = start + len(span.text)
            if span.message is not None and messages[span.message]["role"] in conversation.roles:
                selected |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
            start = stop
        return MarkedIds(np.array(ids, np.int32), selected)

    def _apply(self, messages: Messages, answer: bool, **settings: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                [*map(dict, messages)], add_generation_prompt=answer, **settings
            )
        except Exception as error:  # a template is foreign code and may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(str(message.get("role")) for message in messages[:8])
            raise ChatError(
                f"the model's chat template rejects these messages ({roles}): {reason}; leave them out, or give plain text"
            ) from error

    def _render(self, messages: Messages, answer: bool = False) -> str:
        return self._apply(messages, answer, tokenize=False)

    @cached_property
    def _special(self) -> list[str]:
        """The texts of the special tokens, longest first, so that a search prefers the longest match."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = {str(token) for token in added if token.special} | {*self._tokenizer.all_special_tokens}
        return sorted(filter(None, names), key=len, reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def _spells_special(self, messages: Messages) -> bool:
        return any(self._pattern.search(text) for message in messages for text in _texts_in(message))

    def _hidden(self, messages: Messages) -> list[Message]:
        """Return the messages with a stand-in for each special token that they spell out."""
        number = {name: index for index, name in enumerate(self._special)}

        def hide(text: str) -> str:
            return self._pattern.sub(lambda match: f"{FROM_MESSAGE}{number[match[0]]}{FROM_MESSAGE}", text)

        return [{key: _map_texts(value, hide) for key, value in message.items()} for message in messages]

    def _encode_as_data(self, spans: list[Span]) -> tuple[list[int], NDArray[np.int64], list[Span]]:
        """Tokenise a rendered chat with stand-ins so that only the template's special tokens become special ids.

        Returns the ids, the characters [n, 2] of each, and the spans as they were tokenised."""
        original: dict[Any, Any]
        backend, original = self._stand_in_tokenizer
        number = {name: index for index, name in enumerate(self._special)}
        tokenised = []
        for span in spans:
            text: str = self._pattern.sub(
                lambda match: f"{FROM_TEMPLATE}{number[match[0]]}{FROM_TEMPLATE}", span.text
            )
            text = re.sub(
                f"{FROM_MESSAGE}(\\d+){FROM_MESSAGE}", lambda match: self._special[int(match[1])], text
            )
            tokenised.append(Span(text, span.message))
        encoded: Any = backend.encode("".join(span.text for span in tokenised), add_special_tokens=False)
        offsets = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        ids = [int(original.get(token, token)) for token in encoded.ids]
        return ids, offsets, tokenised

    @cached_property
    def _stand_in_tokenizer(self) -> tuple[Any, dict[int, int]]:
        """A copy of the tokenizer that knows special tokens only by stand-ins, and its ids -> the original's."""
        from tokenizers import Tokenizer

        description = json.loads(self._tokenizer.backend_tokenizer.to_str())
        stand_ins = {
            name: f"{FROM_TEMPLATE}{number}{FROM_TEMPLATE}" for number, name in enumerate(self._special)
        }
        description |= {"truncation": None, "padding": None}
        for token in description["added_tokens"]:
            token["content"] = stand_ins.get(token["content"], token["content"])
        if description["model"]["type"] == "Unigram":  # it would spell the text with a special token's piece
            description["model"]["vocab"] = [
                [stand_ins.get(piece, piece), score] for piece, score in description["model"]["vocab"]
            ]
        copy: Any = Tokenizer.from_str(json.dumps(description))
        original_id = self._tokenizer.convert_tokens_to_ids
        return copy, {copy.token_to_id(new): original_id(name) for name, new in stand_ins.items()}

    def _offsets(self, spans: list[Span]) -> NDArray[np.int64]:
        """Return the characters of each token of the rendered chat, [n, 2]: the first, and the one after the last."""
        text = "".join(span.text for span in spans)
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        if self._tokenizer.is_fast:
            return np.array(encoded.encodings[0].offsets, np.int64).reshape(-1, 2)
        # A slow tokenizer gives no offsets. A span's last token is where tokenising the text up to the span's end
        # stops giving the ids of the whole chat; every token of a span gets the span's own characters.
        ids, offsets, stop = encoded["input_ids"], [], 0
        for span in spans:
            start, stop = stop, stop + len(span.text)
            last = len(ids) if stop == len(text) else self._shared(ids, text[:stop])
            offsets += [(start, stop)] * (last - len(offsets))
        return np.array(offsets, np.int64).reshape(-1, 2)

    def _shared(self, ids: list[int], text: str) -> int:
        """Return how many ids at the beginning of `ids` the beginning `text` of their text has as well."""
        own = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        return next((n for n, pair in enumerate(zip(ids, own, strict=False)) if pair[0] != pair[1]), len(own))

    def _spans(self, messages: Messages) -> list[Span]:
        """Render the chat and cut it at the ends of what each message says.

        A way of cutting counts only if its spans, joined, are the chat as it is rendered without marks: a template
        that reacts to the marks (one that counts characters, say) is found out here."""
        hidden = self._hidden(messages) if self._tokenizer.is_fast else [*map(dict, messages)]
        rendered = self._render(hidden)
        for cut in (self._by_marks, self._by_content, self._by_growth):
            try:
                spans = cut(hidden)
            except ChatError:  # a template may reject a part of the chat, or the marks
                continue
            if spans and "".join(span.text for span in spans) == rendered:
                return self._with_ends(messages, self._with_generated(hidden, messages, spans))
        raise ChatError(
            "roles cannot be told apart: the model's chat template changes what the messages say; use --roles all"
        )

    def _by_marks(self, messages: Messages, fields: Sequence[str] = SPOKEN_FIELDS) -> list[Span]:
        """Render the messages with a mark on either side of each text in `fields`; a message reaches from its first
        text to its last."""
        owners: list[int] = []  # the message of each mark

        def marked(text: str, number: int) -> str:
            core = (
                text.strip()
            )  # the marks go inside white space, so that a template that trims still finds it
            if not core:
                return text
            mark = chr(FIRST_MARK + len(owners))
            owners.append(number)
            before, _, after = text.partition(core)
            return f"{before}{mark}{core}{mark}{after}"

        marked_messages = [
            {
                key: _map_texts(value, partial(marked, number=number)) if key in fields else value
                for key, value in message.items()
            }
            for number, message in enumerate(messages)
        ]
        if len(owners) > LAST_MARK - FIRST_MARK:
            return []
        first, *parts = re.split(f"([{chr(FIRST_MARK)}-{chr(LAST_MARK)}])", self._render(marked_messages))
        spans, marks = [Span(first, None)], [ord(mark) - FIRST_MARK for mark in parts[::2]]
        is_open = False
        for text, mark, following in zip(parts[1::2], marks, [*marks[1:], -1][: len(marks)], strict=True):
            is_open = not is_open
            more = following >= 0 and following != mark and owners[following] == owners[mark]
            spans.append(Span(text, owners[mark] if is_open or more else None))
        return spans

    def _by_content(self, messages: Messages) -> list[Span]:
        return self._by_marks(messages, ("content",))

    def _by_growth(self, messages: Messages) -> list[Span]:
        """Take for a message what the rendered chat gains by it; an answer begins after the prompt that asks for it."""
        spans, before = [], ""
        for count, message in enumerate(messages, 1):
            if message["role"] == "assistant" and count > 1:
                prompt = self._render(messages[: count - 1], answer=True)
                if prompt.startswith(before):
                    spans.append(Span(prompt[len(before) :], None))
                    before = prompt
            grown = self._render(messages[:count])
            if not grown.startswith(before):
                return []
            spans.append(Span(grown[len(before) :], count - 1))
            before = grown
        return spans

    def _with_generated(self, hidden: Messages, messages: Messages, spans: list[Span]) -> list[Span]:
        """Reassign the spans so that the assistant owns exactly what the template marks as generated. Templates without
        such marks keep their spans."""
        template = self._tokenizer.get_chat_template()
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not re.search(r"\{%-?\s*generation\s*-?%\}", template) or not answers:
            return spans
        from transformers.utils.chat_template_utils import render_jinja_template

        generated: Any
        _, generated = render_jinja_template(
            conversations=[[*map(dict, hidden)]],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        owner: list[int | None] = []  # the message of each character
        for span in spans:
            owner += [None if span.message in answers else span.message] * len(span.text)
        for start, stop in generated[0]:
            owner[start:stop] = [answers[0]] * (stop - start)
        text = "".join(span.text for span in spans)
        starts = [at for at, message in enumerate(owner) if not at or owner[at - 1] != message]
        return [Span(text[start:end], owner[start]) for start, end in pairwise([*starts, len(text)])]

    def _with_ends(self, messages: Messages, spans: list[Span]) -> list[Span]:
        """Give each message the special token that ends its turn.

        Right after an answer, any special token ends the turn. After other messages only those do that end an answer
        of this chat, or the end of text: elsewhere a special token may as well begin the next turn."""
        ends = {self._tokenizer.eos_token}
        for span, following in pairwise(spans):
            if (
                span.message is not None
                and following.message is None
                and messages[span.message]["role"] == "assistant"
            ):
                match = self._pattern.match(following.text)
                ends |= {match[0]} if match else set()
        result = spans[:1]
        for span in spans[1:]:
            owner, text = result[-1].message, span.text
            match = self._pattern.match(text, len(text) - len(text.lstrip()))
            if owner is not None and span.message is None and match and match[0] in ends:
                result += [Span(text[: match.end()], owner), Span(text[match.end() :], None)]
            else:
                result.append(span)
        return result


def _texts_in(value: Any) -> list[str]:
    texts: list[str] = []
    _map_texts(value, lambda text: texts.append(text) or text)
    return texts


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a message with `change` applied to every text in it; keys stay as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(part, change) for key, part in value.items()}
    return [_map_texts(part, change) for part in value] if isinstance(value, list | tuple) else value
