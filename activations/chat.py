"""Chats through a model's template: exactly the ids its tokenizer gives, and which of them each role has said."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations.documents import Conversation
from activations.errors import ChatError

Messages = Sequence[Mapping[str, Any]]
# Characters for private use: they stand around what a message says, and in the place of special tokens, while a
# template is laid around it. Templates trim, escape and copy them like letters.
FIRST_MARK, LAST_MARK = 0x100000, 0x10FDFF
SPELLED, WRITTEN = "\U0010fe00", "\U0010fe01"  # a special token of a user's text, and one of the template
SPOKEN = (
    "content",
    "reasoning_content",
    "thinking",
    "tool_calls",
)  # parts of a message that hold what it says


class Marked(NamedTuple):
    """Token ids [n] int32; `kept` [n] bool says which count, None for all; the first one has position `first`."""

    ids: NDArray[np.int32]
    kept: NDArray[np.bool_] | None = None
    first: int = 0


class Span(NamedTuple):
    """Part of a laid-out chat: the characters, and the number of the message that says them, None for the template."""

    text: str
    message: int | None


class ChatTemplate:
    """The chat template of a tokenizer. Raises ChatError when it has none; so does whatever a template refuses."""

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise ChatError(
                "the tokenizer has no chat template: give plain text, or a model that was made for chats"
            )
        self._tokenizer = tokenizer

    @property
    def sha256(self) -> str:
        """SHA-256 of the template's text."""
        return hashlib.sha256(self._tokenizer.get_chat_template().encode()).hexdigest()

    def ids(self, messages: Messages, answer: bool = False) -> list[int]:
        """Token ids of some messages; with `answer` they end where the assistant's answer begins.

        They are those of the tokenizer's `apply_chat_template`, except that special tokens spelled out in a
        message are data: they are tokenised as the characters they are."""
        if not self._spells_special(messages):
            return self._apply(messages, answer, tokenize=True, return_dict=False)
        if not self._tokenizer.is_fast:
            return self._apply(
                messages, answer, tokenize=True, return_dict=False, sanitize_control_tokens=True
            )
        return self._encode_as_data([Span(self._render(self._hidden(messages), answer), None)])[0]

    def marked_ids(self, conversation: Conversation) -> Marked:
        """Token ids of a conversation, and which of them the roles asked for have said.

        A message has said a token that holds any of its characters, and the special token behind them that ends its
        turn. Where the template itself marks what an assistant generates
        (`{% generation %}`), that is what the assistant has said."""
        messages = conversation.messages
        if conversation.roles is None:
            return Marked(np.array(self.ids(messages), np.int32))
        spans = self._spans(messages)
        if self._spells_special(messages) and self._tokenizer.is_fast:
            ids, places, spans = self._encode_as_data(spans)
        else:
            ids, places = self.ids(messages), self._places(spans)
        if len(ids) != len(places):
            raise ChatError(
                "roles cannot be told apart: the tokenizer reads the laid-out chat otherwise; use --roles all"
            )
        kept = np.zeros(len(ids), bool)
        start = 0
        for span in spans:
            stop = start + len(span.text)
            if span.message is not None and messages[span.message]["role"] in conversation.roles:
                kept |= (places[:, 0] < stop) & (places[:, 1] > start)
            start = stop
        return Marked(np.array(ids, np.int32), kept)

    def _apply(self, messages: Messages, answer: bool, **settings: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                [*map(dict, messages)], add_generation_prompt=answer, **settings
            )
        except Exception as error:  # whatever a stranger's template may raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(str(message.get("role")) for message in messages[:8])
            raise ChatError(
                f"the model's chat template does not take these messages ({roles}): {said}; leave them out, or give plain text"
            ) from error

    def _render(self, messages: Messages, answer: bool = False) -> str:
        return self._apply(messages, answer, tokenize=False)

    @cached_property
    def _special(self) -> list[str]:
        """Special tokens by text, the longest first, as they are looked for."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = {str(token) for token in added if token.special} | {*self._tokenizer.all_special_tokens}
        return sorted(filter(None, names), key=len, reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def _spells_special(self, messages: Messages) -> bool:
        return any(self._pattern.search(text) for message in messages for text in _strings(message))

    def _hidden(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages with a stand-in for each special token they spell."""
        number = {name: place for place, name in enumerate(self._special)}

        def hide(text: str) -> str:
            return self._pattern.sub(lambda match: f"{SPELLED}{number[match[0]]}{SPELLED}", text)

        return [{key: _each(value, hide) for key, value in message.items()} for message in messages]

    def _encode_as_data(self, spans: list[Span]) -> tuple[list[int], NDArray[np.int64], list[Span]]:
        """Ids and places of a laid-out chat with stand-ins, in which only the template's special tokens are such."""
        original: dict[Any, Any]
        backend, original = self._renamed
        number = {name: place for place, name in enumerate(self._special)}
        shown = []
        for span in spans:
            text: str = self._pattern.sub(lambda match: f"{WRITTEN}{number[match[0]]}{WRITTEN}", span.text)
            text = re.sub(f"{SPELLED}(\\d+){SPELLED}", lambda match: self._special[int(match[1])], text)
            shown.append(Span(text, span.message))
        encoded: Any = backend.encode("".join(span.text for span in shown), add_special_tokens=False)
        places = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        ids = [int(original.get(token, token)) for token in encoded.ids]
        return ids, places, shown

    @cached_property
    def _renamed(self) -> tuple[Any, dict[int, int]]:
        """A copy of the tokenizer that knows special tokens by stand-ins alone, and what its ids are in the original."""
        from tokenizers import Tokenizer

        about = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {name: f"{WRITTEN}{number}{WRITTEN}" for number, name in enumerate(self._special)}
        about |= {"truncation": None, "padding": None}
        for token in about["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        if about["model"]["type"] == "Unigram":  # it would choose a special token's piece for its text
            about["model"]["vocab"] = [
                [names.get(piece, piece), score] for piece, score in about["model"]["vocab"]
            ]
        copy = Tokenizer.from_str(json.dumps(about))
        wanted = self._tokenizer.convert_tokens_to_ids
        renamed: Any = copy
        return renamed, {renamed.token_to_id(new): wanted(name) for name, new in names.items()}

    def _places(self, spans: list[Span]) -> NDArray[np.int64]:
        """First character of each of the laid-out chat's tokens and the one behind its last, [n, 2]."""
        text = "".join(span.text for span in spans)
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        if self._tokenizer.is_fast:
            return np.array(encoded.encodings[0].offsets, np.int64).reshape(-1, 2)
        # The tokenizer does not say: a span begins behind the tokens that the text before it has alone, too
        ids, places, stop = encoded["input_ids"], [], 0
        for span in spans:
            start, stop = stop, stop + len(span.text)
            last = len(ids) if stop == len(text) else self._shared(ids, text[:stop])
            places += [(start, stop)] * (last - len(places))
        return np.array(places, np.int64).reshape(-1, 2)

    def _shared(self, ids: list[int], text: str) -> int:
        """How many of the ids a beginning of their text has too."""
        own = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        return next((n for n, pair in enumerate(zip(ids, own, strict=False)) if pair[0] != pair[1]), len(own))

    def _spans(self, messages: Messages) -> list[Span]:
        """The laid-out chat, cut at the ends of what each message says."""
        hidden = self._hidden(messages) if self._tokenizer.is_fast else [*map(dict, messages)]
        whole = self._render(hidden)
        for find in (self._by_marks, self._by_content, self._by_growth):
            try:
                spans = find(hidden)
            except ChatError:  # a template may refuse what is not the whole chat
                continue
            if spans and "".join(span.text for span in spans) == whole:
                return self._with_ends(messages, self._with_generated(hidden, messages, spans))
        raise ChatError(
            "roles cannot be told apart: the model's chat template changes what the messages say; use --roles all"
        )

    def _by_marks(self, messages: Messages, keys: Sequence[str] = SPOKEN) -> list[Span]:
        """Lay messages out with a mark on either side of each of their texts; a message goes from its first text to
        its last."""
        owners: list[int] = []  # of each mark, the message

        def marked(text: str, number: int) -> str:
            core = text.strip()  # a template that trims is to find the white space it trims
            if not core:
                return text
            mark = chr(FIRST_MARK + len(owners))
            owners.append(number)
            before, _, after = text.partition(core)
            return f"{before}{mark}{core}{mark}{after}"

        texts = [
            {
                key: _each(v, partial(marked, number=number)) if key in keys else v
                for key, v in message.items()
            }
            for number, message in enumerate(messages)
        ]
        if len(owners) > LAST_MARK - FIRST_MARK:
            return []
        first, *parts = re.split(f"([{chr(FIRST_MARK)}-{chr(LAST_MARK)}])", self._render(texts))
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
        """A message is what the chat gains by it; an answer begins behind what asks for it."""
        spans, before = [], ""
        for count, message in enumerate(messages, 1):
            if message["role"] == "assistant" and count > 1:
                asked = self._render(messages[: count - 1], answer=True)
                if asked.startswith(before):
                    spans.append(Span(asked[len(before) :], None))
                    before = asked
            grown = self._render(messages[:count])
            if not grown.startswith(before):
                return []
            spans.append(Span(grown[len(before) :], count - 1))
            before = grown
        return spans

    def _with_generated(self, hidden: Messages, messages: Messages, spans: list[Span]) -> list[Span]:
        """Where the template marks what is generated, that is the assistant's, in the place of what was found."""
        template = self._tokenizer.get_chat_template()
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not re.search(r"\{%-?\s*generation\s*-?%\}", template) or not answers:
            return spans
        from transformers.utils.chat_template_utils import render_jinja_template

        places: Any
        _, places = render_jinja_template(
            conversations=[[*map(dict, hidden)]],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        owner: list[int | None] = []
        for span in spans:
            owner += [None if span.message in answers else span.message] * len(span.text)
        for start, stop in places[0]:
            owner[start:stop] = [answers[0]] * (stop - start)
        text, cut = "".join(span.text for span in spans), []
        for place, message in enumerate(owner):
            if not place or owner[place - 1] != message:
                cut.append((place, message))
        ends = [place for place, _ in cut[1:]] + [len(text)]
        return [Span(text[place:end], message) for (place, message), end in zip(cut, ends, strict=True)]

    def _with_ends(self, messages: Messages, spans: list[Span]) -> list[Span]:
        """Give a message the special token that ends its turn: right behind an answer, any; elsewhere one that answers
        end in, or the end of text."""
        ends = {self._tokenizer.eos_token}
        for span, behind in pairwise(spans):
            if (
                span.message is not None
                and behind.message is None
                and messages[span.message]["role"] == "assistant"
            ):
                match = self._pattern.match(behind.text)
                ends |= {match[0]} if match else set()
        made = spans[:1]
        for span in spans[1:]:
            owner, text = made[-1].message, span.text
            match = self._pattern.match(text, len(text) - len(text.lstrip()))
            if owner is not None and span.message is None and match and match[0] in ends:
                made += [Span(text[: match.end()], owner), Span(text[match.end() :], None)]
            else:
                made.append(span)
        return made


def _strings(value: Any) -> list[str]:
    found: list[str] = []
    _each(value, lambda text: found.append(text) or text)
    return found


def _each(value: Any, change: Any) -> Any:
    """Return a message with every text in it changed; keys are left as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(part, change) for key, part in value.items()}
    return [_each(part, change) for part in value] if isinstance(value, list | tuple) else value
