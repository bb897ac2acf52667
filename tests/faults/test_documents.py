"""Unexpected documents (empty, enormous, binary, in no encoding) are harvested or refused by place; omissions are reported."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activations.store import Store
from tests import tiny
from tests.cli.commands import Server, harvest

PLAIN = ["a plain document, like any other"] * 30


def lines(folder: Path, texts: list[str | None], name: str = "odd.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return folder / name


def test_empty_documents_are_left_out_and_counted(sae: Server, world: Path, tmp_path: Path):
    text = lines(tmp_path, ["", None, "   ", *PLAIN, ""])
    ended = sae(*harvest(world, tmp_path / "store", dataset=text, tokens=10**6))
    assert ended.code == 0, ended.err
    assert "3 of 34 documents read are empty and left out" in ended.err
    store = Store(tmp_path / "store")
    found = {int(n) for number in range(len(store.shards)) for n in store.read(number).documents.unique()}
    assert not found & {0, 1, 33}
    assert 2 in found, "white space is text"


def test_rows_without_the_column_are_empty_documents(sae: Server, world: Path, tmp_path: Path):
    text = tmp_path / "odd.jsonl"
    rows = [{"text": text} for text in PLAIN] + [{"title": "no text"}] * 3
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = sae(*harvest(world, tmp_path / "store", dataset=text, tokens=10**6))
    assert ended.code == 0, ended.err
    assert "3 of 33 documents read are empty" in ended.err


@pytest.mark.parametrize(
    ("characters", "changes"),
    [(400_000, {}), pytest.param(5_000_000, {"labels": "builtin"}, marks=pytest.mark.slow)],
)
def test_an_enormous_document_is_harvested(
    sae: Server, world: Path, tmp_path: Path, characters: int, changes: dict[str, str]
):
    text = lines(tmp_path, ["a short one first", "naïve birds " * (characters // 12), *PLAIN])
    ended = sae(*harvest(world, tmp_path / "store", dataset=text, tokens=3200, **changes))
    assert ended.code == 0, ended.err
    assert Store(tmp_path / "store").tokens == 3200


@pytest.mark.parametrize(
    "odd",
    [
        "\0" * 40,
        "\x01\x02\x7f\u200b\ufeff\uffff" * 10,
        "<bos><eos>" * 9,
        "😀" * 30,
        "a\r\n\u2028b" * 9,
        "\U0010ffff" * 9,
    ],
    ids=["NULs", "controls", "special tokens", "beyond the BMP", "line ends", "the last character"],
)
def test_characters_nobody_types_are_text_and_come_back(sae: Server, world: Path, tmp_path: Path, odd: str):
    text = lines(tmp_path, [odd, *PLAIN])
    ended = sae(*harvest(world, tmp_path / "store", dataset=text, tokens=10**6))
    assert ended.code == 0, ended.err
    shard = Store(tmp_path / "store").read(0)
    mine = shard.tokens[(shard.documents == 0)]
    tokenizer = tiny.tokenizer()
    assert tokenizer.decode(mine[:-1]) == odd, "all but the <eos> that ends it"


def parquet(folder: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"text": column}), folder / "odd.parquet")
    return folder / "odd.parquet"


def not_utf8() -> pa.Array:
    """Write Parquet with a column declared as text whose document 3 is not text."""
    texts = [text.encode() for text in PLAIN]
    texts[3] = b"caf\xe9 \xff\xfe"
    return pa.StringArray.from_buffers(len(texts), *pa.array(texts, pa.binary()).buffers()[1:])


REFUSED = {
    "JSON lines in Latin-1": (
        lambda folder: _bytes(folder / "odd.jsonl", '{"text": "café"}\n'.encode("latin-1") * 30),
        "cannot be read at line 1",
    ),
    "a lone surrogate": (
        lambda folder: _bytes(
            folder / "odd.jsonl", b'{"text": "plain"}\n{"text": "half \\ud83d of a pair"}\n' * 9
        ),
        "odd.jsonl",
    ),
    "a text file in UTF-16": (
        lambda folder: _bytes(folder / "odd.txt", "plain words ".encode("utf-16") * 99),
        "cannot be read: 'utf-8'",
    ),
    "a binary file": (
        lambda folder: _bytes(folder / "odd.txt", bytes(range(256)) * 99),
        "cannot be read: 'utf-8'",
    ),
    "Parquet whose text is no text": (
        lambda folder: parquet(folder, not_utf8()),
        "cannot be read at document",
    ),
    "Parquet of bytes": (
        lambda folder: parquet(folder, pa.array([b"\xff\x00"] * 9, pa.binary())),
        "column 'text' holds bytes",
    ),
    "Parquet of lists": (lambda folder: parquet(folder, pa.array([["a", "b"]] * 9)), "list of str, not text"),
    "CSV with another column": (
        lambda folder: _bytes(folder / "odd.csv", b"txt,n\nhello,1\n"),
        "no column 'text': it has 'txt', 'n'; try --column txt",
    ),
}


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused_in_one_line_and_makes_nothing(
    sae: Server, world: Path, tmp_path: Path, make, says: str
):
    text = make(tmp_path)
    line = sae(*harvest(world, tmp_path / "store", dataset=text)).complaint
    assert str(text) in line
    assert says in line
    assert not (tmp_path / "store").exists()
