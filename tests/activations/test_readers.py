"""Plain text gives the documents that Python's own reading gives; a long document is read piece by piece."""

import codecs
from itertools import chain, islice
from pathlib import Path

import pytest

from activations import readers
from activations.chunks import WHOLE
from activations.document_labels import Labels
from activations.documents import HEAD, LongText, beginning
from activations.errors import TextError
from activations.text import TextConfig, documents
from activations.tokens import NOWHERE, PackingConfig, windows
from tests import tiny
from tests.tokenizers import tokenizer

CONTENT = "one\r\ntwo\rthree\n\n\nfour\n\n\n\nfive 鳥\u2028x\x0c\n\n" * 5
UNITS: dict[readers.Unit, list[str]] = {
    "file": [CONTENT.replace("\r\n", "\n").replace("\r", "\n")],
    "paragraph": [part for part in CONTENT.replace("\r\n", "\n").replace("\r", "\n").split("\n\n") if part],
    "line": CONTENT.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1],
}


def joined(document: object) -> str:
    return "".join(document) if isinstance(document, LongText) else str(document)


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 2**20])
@pytest.mark.parametrize("head", [1, 3, HEAD])
@pytest.mark.parametrize("unit", UNITS)
def test_documents_are_python_s_own_however_little_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: readers.Unit, at_once: int, head: int, bom: str
):
    monkeypatch.setattr(readers, "BYTES", at_once)
    monkeypatch.setattr(readers, "HEAD", head)
    path = tmp_path / "a.txt"
    path.write_bytes((bom + CONTENT).encode())
    first, *rest = UNITS[unit]
    found = [joined(document) for document in documents(TextConfig(str(path), document=unit))]
    assert found == [first, *rest]  # the mark that says UTF-8 is no part of the text


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_document_that_is_left_unread_does_not_spill_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: readers.Unit
):
    monkeypatch.setattr(readers, "HEAD", 2)
    monkeypatch.setattr(readers, "BYTES", 3)
    path = tmp_path / "a.txt"
    path.write_bytes(CONTENT.encode())
    count = sum(1 for _ in documents(TextConfig(str(path), document=unit)))
    assert count == len(UNITS[unit])


@pytest.mark.parametrize("bom", [0, 3])
@pytest.mark.parametrize("place", [5, 2**20 - 1, 2**20, 3 * 2**20 + 1])
def test_a_byte_that_is_no_utf8_is_named_with_its_place(tmp_path: Path, place: int, bom: int):
    path = tmp_path / "a.txt"
    before = place - bom
    path.write_bytes(
        codecs.BOM_UTF8[:bom] + "é".encode() * (before // 2) + b"a" * (before % 2) + b"\xff more"
    )
    with pytest.raises(TextError) as caught:
        [*map(joined, documents(TextConfig(str(path))))]
    assert f"byte 0xff in position {place}:" in str(caught.value)


def test_a_long_document_has_the_windows_of_the_same_text_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readers, "HEAD", WHOLE)
    text = "The cat sat é on the mat. " * (WHOLE // 20)
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    (document,) = documents(TextConfig(str(path)))
    assert isinstance(document, LongText)
    made = tokenizer("byte-bpe")
    found = [*windows([document, text], made, PackingConfig(context=4096))]
    ids = [*made(text, add_special_tokens=False)["input_ids"], made.eos_token_id]
    tokens, numbers, places = (
        [*chain(*(column[1:].tolist() for column in columns))] for columns in zip(*found, strict=True)
    )
    assert tokens == (ids * 2)[: len(tokens)]
    assert numbers == ([0] * len(ids) + [1] * len(ids))[: len(tokens)]
    assert places == [*range(len(ids)), *range(len(ids))][: len(tokens)]
    assert len(tokens) > len(ids) * 2 - 4096
    assert all(window.documents[0] == NOWHERE for window in found)


def test_a_few_tokens_of_a_long_document_ask_for_its_beginning_alone(tmp_path: Path):
    read = 0

    def pieces():
        nonlocal read
        for _ in range(10_000):
            read += 1000
            yield "the cat " * 125

    [*islice(windows([LongText("", pieces())], tiny.tokenizer(), PackingConfig(context=16)), 100)]
    assert read < 2 * WHOLE


def test_a_long_document_has_the_label_of_its_beginning(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("A plain sentence of words. " * (HEAD // 20), encoding="utf-8")
    labels = Labels("builtin", TextConfig(str(path)))
    made = [*islice(windows(labels.documents(), tiny.tokenizer(), PackingConfig(context=16)), 3)]
    whole = Labels("builtin", TextConfig(str(path)))
    (document,) = whole.documents()
    assert len(beginning(document)) == HEAD
    assert labels.of(made) == {0: pytest.approx(whole._label(0))}
