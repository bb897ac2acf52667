"""Packing keeps every token once and in order, and notes where each comes from."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activations.errors import TextError
from activations.tokens import NOWHERE, PackingConfig, Window, first_token, tokenizer_hash, windows
from tests import tiny
from tests.activations.toys import BOS, EOS, LAWS, byte_ids

TOKENIZER = tiny.tokenizer()
PIECES = st.sampled_from(["a", "the cat", " ", "\n", "é", "鳥", "<eos>", "<bos>", "<|endoftext|>"])
TEXTS = st.lists(st.lists(PIECES, max_size=5).map("".join), max_size=7)
CONFIGS = st.builds(
    PackingConfig,
    context=st.integers(2, 13),
    bos=st.booleans(),
    separator=st.sampled_from(["eos", "none"]),
    packing=st.sampled_from(["concat", "document"]),
)


def tokenizer_without(name: str) -> Any:
    """Return the toy tokenizer without one of its special tokens."""
    made = tiny.tokenizer()
    setattr(made, name, None)
    return made


def ids_of(texts: list[str], config: PackingConfig) -> list[list[int]]:
    """Return each document's token ids, its separator included; an empty document has none."""
    end = [EOS] if config.separator == "eos" else []
    return [byte_ids(text) + end if text else [] for text in texts]


def reference(texts: list[str], config: PackingConfig) -> list[tuple[list[int], list[int], list[int]]]:
    """Pack one token at a time, as a slow and plain reference for `windows`."""
    bos = [(BOS, NOWHERE, NOWHERE)] if config.bos else []
    made, open_window = [], list(bos)
    for document, ids in enumerate(ids_of(texts, config)):
        for position, token in enumerate(ids):
            open_window.append((token, document, position))
            if len(open_window) == config.context:
                made.append(open_window)
                open_window = list(bos)
        if config.packing == "document" and len(open_window) > len(bos):
            last = open_window[-1][0]
            made.append(open_window + [(last, NOWHERE, NOWHERE)] * (config.context - len(open_window)))
            open_window = list(bos)
    return [tuple(map(list, zip(*window, strict=True))) for window in made]


def as_lists(window: Window) -> tuple[list[int], list[int], list[int]]:
    return tuple(column.tolist() for column in window)


@LAWS
@given(TEXTS, CONFIGS)
def test_windows_are_those_of_packing_one_token_at_a_time(texts: list[str], config: PackingConfig):
    assert [as_lists(window) for window in windows(texts, TOKENIZER, config)] == reference(texts, config)


@LAWS
@given(TEXTS, CONFIGS)
def test_every_token_of_every_document_appears_once_and_in_order(texts: list[str], config: PackingConfig):
    ids = ids_of(texts, config)
    everything = [(d, p, token) for d, document in enumerate(ids) for p, token in enumerate(document)]
    found = [
        (int(d), int(p), int(token))
        for window in windows(texts, TOKENIZER, config)
        for token, d, p in zip(*window, strict=True)
        if d != NOWHERE
    ]
    room = config.context - config.bos
    lost = len(everything) % room if config.packing == "concat" else 0
    assert found == everything[: len(everything) - lost]


@LAWS
@given(TEXTS, CONFIGS)
def test_all_windows_have_the_asked_for_length_and_are_int32(texts: list[str], config: PackingConfig):
    for window in windows(texts, TOKENIZER, config):
        assert {(column.dtype, len(column)) for column in window} == {(np.dtype(np.int32), config.context)}


@LAWS
@given(TEXTS, CONFIGS)
def test_a_bos_begins_every_window_when_on_and_stands_nowhere_else(texts: list[str], config: PackingConfig):
    for window in windows(texts, TOKENIZER, config):
        marked = (window.tokens == BOS).tolist()
        assert marked == [config.bos] + [False] * (config.context - 1)


@LAWS
@given(TEXTS, st.integers(2, 13), st.booleans())
def test_document_packing_never_mixes_documents_and_pads_only_at_the_end(
    texts: list[str], context: int, bos: bool
):
    config = PackingConfig(context=context, bos=bos, packing="document")
    for window in windows(texts, TOKENIZER, config):
        own = window.documents[int(bos) :]
        real = own != NOWHERE
        assert len(set(own[real].tolist())) == 1
        assert real.tolist() == sorted(real.tolist(), reverse=True)
        assert (window.positions[int(bos) :][~real] == NOWHERE).all()


def test_a_tokenizer_whose_bos_has_id_0_still_gets_its_bos():
    assert TOKENIZER.bos_token_id == 0
    assert first_token(TOKENIZER, PackingConfig()) == [0]
    assert next(windows(["abcdef"], TOKENIZER, PackingConfig(context=4))).tokens[0] == 0


def test_a_tokenizer_without_bos_begins_windows_with_text():
    without = tokenizer_without("bos_token")
    window = next(windows(["abcdef"], without, PackingConfig(context=4)))
    assert first_token(without, PackingConfig()) == []
    assert as_lists(window) == (byte_ids("abcd"), [0] * 4, [0, 1, 2, 3])


def test_a_tokenizer_without_an_end_token_needs_separator_none():
    without = tokenizer_without("eos_token")
    with pytest.raises(TextError, match="--separator none"):
        list(windows(["abc"], without, PackingConfig(context=2)))
    made = list(windows(["abc"], without, PackingConfig(context=2, separator="none")))
    assert [window.tokens[1] for window in made] == byte_ids("abc")


def test_a_separator_is_its_documents_last_token():
    made = list(windows(["ab", "c"], TOKENIZER, PackingConfig(context=5, bos=False)))
    assert as_lists(made[0]) == (
        [*byte_ids("ab"), EOS, *byte_ids("c"), EOS],
        [0, 0, 0, 1, 1],
        [0, 1, 2, 0, 1],
    )


def test_special_tokens_spelled_out_in_the_text_are_characters():
    text = "x<eos><bos>y"
    config = PackingConfig(context=len(text) + 1, separator="none")
    (window,) = windows([text], TOKENIZER, config)
    assert window.tokens[1:].tolist() == byte_ids(text)
    assert EOS not in window.tokens


def test_empty_documents_keep_the_numbering_of_the_others():
    config = PackingConfig(context=3, packing="document")
    made = list(windows(["", "a", "", "", "b", ""], TOKENIZER, config))
    assert [window.documents[1] for window in made] == [1, 4]
    assert [window.positions[1] for window in made] == [0, 0]


def test_a_text_with_nothing_in_it_gives_no_window():
    assert list(windows([], TOKENIZER, PackingConfig(context=2))) == []
    assert list(windows(["", ""], TOKENIZER, PackingConfig(context=2, packing="document"))) == []


def test_windows_come_before_the_text_has_ended():
    def endless():
        while True:
            yield "abc"

    made = windows(endless(), TOKENIZER, PackingConfig(context=4))
    assert [next(made).documents[1] for _ in range(3)] == [
        0,
        0,
        1,
    ]  # "abc<eos>" in threes: abc | <eos>ab | c…


def test_a_window_of_one_token_is_refused():
    with pytest.raises(TextError, match="context = 1"):
        PackingConfig(context=1)


def test_tokenizers_that_name_tokens_alike_have_one_hash_and_others_another():
    same = tokenizer_hash(tiny.tokenizer())
    assert same == tokenizer_hash(TOKENIZER)
    assert same != tokenizer_hash(tokenizer_without("bos_token"))
    longer = tiny.tokenizer()
    longer.add_tokens(["word"])
    assert same != tokenizer_hash(longer)
