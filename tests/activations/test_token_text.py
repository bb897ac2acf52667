"""Laws of ids and text, for every kind of tokenizer: joined pieces are the document, and names are unique."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from activations.errors import ModelError
from activations.token_text import TokenText, named_bytes, pieces_at
from activations.vocabulary import Vocabulary
from tests import tokenizers
from tests.activations.toys import LAWS

KINDS = list(tokenizers.KINDS)
FAITHFUL = [
    kind for kind in KINDS if kind not in ("unigram", "wordpiece")
]  # the others change white space, or more
SCRIPTS = [
    "The naïve cat's  mat\n\n\tit ", "人工智能正在改变世界", "الذكاء الاصطناعي", "कृत्रिम बुद्धिमत्ता", "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "\x00\x01\x07\x1b\x7f\u200b\u2028\ufeff", "e\u0301 ﬁ ü ß", "<0xE2> <s> </s> <|endoftext|> ▁ ##", " ", "  ", "\n", "ab",
]  # fmt: skip
documents = st.lists(st.one_of(st.sampled_from(SCRIPTS), st.text(max_size=8)), min_size=1, max_size=4).map(
    "".join
)


def vocabulary(kind: str, extra: int = 5) -> Vocabulary:
    """Return the vocabulary of a tokenizer of this kind with an embedding that has `extra` more rows than it has tokens."""
    tokenizer = tokenizers.tokenizer(kind)
    return Vocabulary(tokenizer, len(tokenizer) + extra)


VOCABULARIES = {kind: vocabulary(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@LAWS
@given(document=documents.filter(str.strip))
def test_the_parts_of_a_text_joined_are_the_text(kind, document):
    ids, parts = VOCABULARIES[kind].encode_pieces(document)
    assert ids == VOCABULARIES[kind].encode(document)
    assert len(ids) == len(parts)
    assert not ids or "".join(parts) == document


@pytest.mark.parametrize("kind", FAITHFUL)
@LAWS
@given(document=documents.filter(lambda text: text.strip() and not text.startswith(" ")))
def test_ids_alone_give_the_document_back(kind, document):
    if kind not in ("byte-bpe", "byte-bpe-prefix"):
        document = document.replace(
            "▁", "_"
        )  # SentencePiece writes a space as ▁ and cannot tell the two apart
    ids = VOCABULARIES[kind].encode(document)
    starts = [place == 0 for place in range(len(ids))]
    pieces = VOCABULARIES[kind].text.pieces(ids, starts)
    assert "".join(pieces) == document
    if not document.isascii():
        return
    assert all(pieces[1:]), "a character of one byte lies in one token"


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_cuts_a_character_shows_its_bytes_and_keeps_the_words_apart(kind):
    kept = VOCABULARIES[kind]
    ids = kept.encode("the cat looked while the mat")
    assert "".join(kept.text.pieces(ids[1:])).endswith("looked while the mat")
    ids = kept.encode("x ☂")  # no kind learned it: three bytes, or an unknown token
    if kind != "wordpiece":
        assert "".join(kept.text.pieces(ids[-2:])) == "<0x98><0x82>"
        assert kept.text.pieces(ids[-3:]) == ["☂", "", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_has_a_name_of_its_own_that_leads_back_to_it(kind):
    text = VOCABULARIES[kind].text
    assert len(text.names) == len(set(text.names)) == len(text) == VOCABULARIES[kind].rows
    assert [text.ids[name] for name in text.names] == list(range(len(text)))
    missing = [token for token in range(len(text)) if token not in text.known.tolist()]
    assert missing == list(range(len(text) - 5, len(text)))
    assert [text.names[token] for token in missing] == [f"<id {token}>" for token in missing]
    assert text.name(10**9) == "<id 1000000000>"
    assert VOCABULARIES[kind].known.tolist() == text.known.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_kept_on_the_disk_read_the_same(kind):
    text = VOCABULARIES[kind].text
    again = TokenText.from_tensors(text.to_tensors())
    assert again.spellings == text.spellings
    assert (again.special, again.leading_space, again.names) == (text.special, text.leading_space, text.names)
    damaged = text.to_tensors() | {"lengths": torch.tensor([3, 4])}
    with pytest.raises(ValueError, match="bytes"):
        TokenText.from_tensors(damaged)


def test_names_of_tokens_with_one_text_are_told_apart():
    text = TokenText([b"a", b"a", b"\xe2\x82", b"\xe2\x82", None, b"<eos>", b"", b" \xe2"], special=[5])
    assert text.names == [
        "a", "<0x61>", "<0xE2><0x82>", "<0xE2><0x82><id 3>", "<id 4>", "<eos>", "<id 6>", " <0xE2>"
    ]  # fmt: skip
    assert text.pieces([2, 3, 0]) == ["<0xE2><0x82>", "<0xE2><0x82>", "a"]
    assert text.text([5, 2, 0]) == "�a"


def test_a_character_belongs_to_the_token_with_its_first_byte():
    text = TokenText([b"\xe4\xbd", b"\xa0\xe5", b"\xa5\xbd", b"!"])
    assert text.pieces([0, 1, 2, 3]) == ["你", "好", "", "!"]
    assert pieces_at("你好!", [1, 2, 2, 3]) == ["你", "好", "", "!"]
    assert pieces_at(" a  b ", [2, 5]) == [" a", "  b "]


def test_a_space_that_a_tokenizer_puts_before_a_document_is_no_part_of_it():
    words = [b" a", b"  ", b"<s>", b" "]
    for how, alone, two in (("never", " a", "  "), ("always", "a", " "), ("if absent", "a", "  ")):
        text = TokenText(words, special=[2], leading_space=how)  # type: ignore[arg-type]
        assert text.pieces([2, 0, 0], [False, True, False]) == ["<s>", alone, " a"]
        assert text.pieces([1, 0], [True, False]) == [two, " a"]


def test_a_tokenizer_that_splits_words_and_has_no_decoder_is_read_by_decoding():
    made = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "a": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    kept = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), 4)
    assert kept.text.names == ["<unk>", " the", " cat", " a"]
    assert kept.text.pieces([1, 2], [True, False]) == ["the", " cat"]
    assert (kept.bos, kept.eos) == (None, None)


def test_names_of_bytes_are_read_back():
    assert named_bytes("<0xE2><0x82>") == b"\xe2\x82"
    assert named_bytes("<0xZZ>") == b"<0xZZ>"
    assert named_bytes("") == b""


@pytest.mark.parametrize("kind", KINDS)
def test_characters_that_no_token_spells_are_counted(kind):
    kept = VOCABULARIES[kind]
    assert kept.unspelled("The cat sat on the mat") == 0
    assert kept.unspelled("☂☂ \n") == (2 if kind == "wordpiece" else 0)


def test_a_tokenizer_of_another_model_or_without_a_vocabulary_is_refused():
    tokenizer = tokenizers.tokenizer("byte-bpe")
    with pytest.raises(ModelError, match=r"100 or more.*100 rows"):
        Vocabulary(tokenizer, 100)
    empty = Tokenizer(models.BPE({"<|endoftext|>": 0}, []))
    with pytest.raises(ModelError, match=r"only special tokens.*tokenizer\.json"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=empty, eos_token="<|endoftext|>"), 10)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>"]}
    )  # as Gemma 3's text models have one
    assert Vocabulary(tokenizer, len(tokenizer) - 1).text.names[-1] == "<image>"
