"""Every kind of source gives the same documents, in the source's order, or an error of one readable line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activations import demo_assets, text
from activations.errors import TextError
from activations.text import TextConfig, documents, revision, rows

ROWS = ["first", "", "two lines\nof text", "naïve 鳥 & <b>", None, "last"]
TEXTS = [row or "" for row in ROWS]


def jsonl(path: Path, rows: list[str | None], column: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({"n": n, column: row}) + "\n" for n, row in enumerate(rows)), encoding="utf-8"
    )
    return path


def parquet(path: Path, rows: list[str | None], column: str = "text") -> Path:
    pq.write_table(pa.table({"n": list(range(len(rows))), column: rows}), path)
    return path


def comma_separated(path: Path, rows: list[str | None], column: str = "text") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("n", column), *enumerate(rows)])
    return path


FILES = {"jsonl": jsonl, "parquet": parquet, "csv": comma_separated}
every_file = pytest.mark.parametrize(("ending", "write"), FILES.items(), ids=FILES)


def read(source: Path | str, **settings: str) -> list[str]:
    return list(documents(TextConfig(dataset=str(source), **settings)))


def complaint(source: Path | str, **settings: str) -> str:
    """Return the one-line error that reading ends in."""
    with pytest.raises(TextError) as caught:
        read(source, **settings)
    assert "\n" not in str(caught.value)
    assert Path(source).name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_without_types_gives_every_field_as_it_is_written(tmp_path: Path, ending: str):
    """Whatever stands in the other rows, and in rows of another chunk."""
    words = ["NA", "None", "null", "nan", "N/A", "007", "12", "1.50", "True", "", " x "]
    texts = [words[number % len(words)] for number in range(11_000)] + ["1"] * 11_000
    labels = ["1"] * 11_000 + ["0.50"] * 11_000
    path = tmp_path / f"a.{ending}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
        writer.writerows([("text", "label"), *zip(texts, labels, strict=True)])
    read_rows = [*rows(TextConfig(str(path)))]
    assert [document for document, _ in read_rows] == texts
    assert [row["label"] for _, row in read_rows] == labels


def test_fields_without_a_name_are_dropped_where_empty_and_refused_elsewhere(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("label,text\n007,first,\n1,second,\n2,third\n")
    assert [*rows(TextConfig(str(path)))] == [
        ("first", {"label": "007", "text": "first"}),
        ("second", {"label": "1", "text": "second"}),
        ("third", {"label": "2", "text": "third"}),
    ]
    path.write_text("label,text\n1,first,\n2,second, with a comma\n")
    assert "row 2 than the 2 names" in complaint(path)


@every_file
def test_a_table_gives_its_texts_in_order_empty_ones_too(tmp_path: Path, ending: str, write: Callable):
    assert read(write(tmp_path / f"a.{ending}", ROWS)) == TEXTS


@every_file
def test_a_column_of_another_name_is_read_when_asked_for(tmp_path: Path, ending: str, write: Callable):
    assert read(write(tmp_path / f"a.{ending}", ROWS, "body"), column="body") == TEXTS


@every_file
def test_a_missing_column_is_refused_with_the_nearest_there_is(tmp_path: Path, ending: str, write: Callable):
    line = complaint(write(tmp_path / f"a.{ending}", ["x"], "txt"))
    assert "no column 'text'" in line
    assert "'n'" in line
    assert line.endswith("try --column txt")


@pytest.mark.parametrize(("ending", "write"), [("jsonl", jsonl), ("parquet", parquet)])
def test_a_column_that_holds_no_text_is_refused(tmp_path: Path, ending: str, write: Callable):
    line = complaint(write(tmp_path / f"a.{ending}", ["x"]), column="n")
    assert "column 'n'" in line
    assert "int, not text" in line


@every_file
def test_the_order_is_the_same_at_each_call(tmp_path: Path, ending: str, write: Callable):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.{ending}", [f"{name}{n}" for n in range(40)])
    first = read(tmp_path)
    assert first == [f"{name}{n}" for name in "abc" for n in range(40)]
    assert read(tmp_path) == first


def test_a_list_in_a_json_file_gives_its_entries(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x"}, {"text": "y"}]) + "\n" * (2**20 + 5))
    assert read(path) == ["x", "y"]


@pytest.mark.parametrize("space", ["", "\n", " " * (2**20 + 5)])
@pytest.mark.parametrize("following", ['["second"]', "garbage", "]"])
def test_what_follows_a_list_is_refused_and_not_lost(tmp_path: Path, space: str, following: str):
    path = tmp_path / "a.jsonl"
    path.write_text('["zeroth", "first"]' + space + following + "\n")
    line = complaint(path)
    assert "after entry 1" in line
    assert "one list" in line


@pytest.mark.parametrize("ending", ["txt", "md"])
def test_plain_text_is_cut_into_files_paragraphs_or_lines(tmp_path: Path, ending: str):
    path = tmp_path / f"a.{ending}"
    path.write_text("one\ntwo\n\nthree\n\nfour\n", encoding="utf-8")
    assert read(path) == ["one\ntwo\n\nthree\n\nfour\n"]
    assert [found.strip() for found in read(path, document="paragraph")] == ["one\ntwo", "three", "four"]
    assert read(path, document="line") == ["one", "two", "", "three", "", "four"]


def test_plain_text_needs_no_column(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    assert read(tmp_path / "a.txt", column="body") == ["one"]


def test_a_folder_is_read_with_the_folders_in_it_by_name(tmp_path: Path):
    for name in ("b.txt", "a.txt", "c/a.txt", "b/z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.rst").write_text("not text to train on")
    assert read(tmp_path) == ["a.txt", "b.txt", "b/z.txt", "c/a.txt"]


def test_a_glob_takes_what_it_names(tmp_path: Path):
    for name in ("a1.txt", "a2.txt", "b1.txt", "c/a3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "a?.txt") == ["a1.txt", "a2.txt"]
    assert read(tmp_path / "**" / "a*.txt") == ["a1.txt", "a2.txt", "c/a3.txt"]


def test_a_file_named_with_signs_of_a_glob_is_read_as_the_file_it_is(tmp_path: Path):
    assert read(jsonl(tmp_path / "notes[1].jsonl", ["x"])) == ["x"]


def test_a_relative_path_is_read_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", ["x"])
    assert read("a.jsonl") == read("./a.jsonl") == read("*.jsonl") == ["x"]


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.txt", "gone/*.txt", "gone"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str):
    assert complaint(tmp_path / name).startswith("no text at ")


def test_a_folder_without_text_is_refused(tmp_path: Path):
    assert complaint(tmp_path).startswith("no text at ")


def test_a_file_of_an_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path: Path):
    (tmp_path / "a.docx").write_text("x")
    line = complaint(tmp_path / "a.docx")
    assert ".docx" in line
    assert ".jsonl" in line


def test_a_folder_with_two_kinds_of_files_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    jsonl(tmp_path / "b.jsonl", ["y"])
    line = complaint(tmp_path)
    assert ".jsonl, .txt" in line


@pytest.mark.parametrize("broken", ['{"text": ', "not json", '{"text": "\\ud800"}'])
def test_a_malformed_json_line_is_refused(tmp_path: Path, broken: str):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' + broken + "\n")
    assert "cannot be read" in complaint(path)


def test_a_column_of_text_and_numbers_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": 3}\n')
    assert "text" in complaint(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00x", b"PAR1"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "txt"])
def test_bytes_that_are_not_of_the_files_kind_are_refused(tmp_path: Path, ending: str, content: bytes):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    if ending == "txt" and content == b"PAR1":
        assert read(path) == ["PAR1"]  # text like any other
    else:
        assert "cannot" in complaint(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_an_empty_file_is_refused(tmp_path: Path, ending: str):
    path = tmp_path / f"a.{ending}"
    path.touch()
    complaint(path)


def test_an_empty_plain_file_is_at_most_one_empty_document(tmp_path: Path):
    (tmp_path / "a.txt").touch()
    assert read(tmp_path / "a.txt") in ([], [""])


def test_a_hub_data_set_is_opened_with_everything_asked_for(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, str]]:
        calls.append((args, kwargs))
        return [{"body": "x"}, {"body": "y"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = TextConfig("someone/some-text", "validation", "sample-10BT", "v2", "body", streaming=False)
    assert list(documents(config)) == ["x", "y"]
    assert list(documents(TextConfig("someone/some-text", column="body"))) == ["x", "y"]
    asked, left_out = calls
    assert asked == (
        ("someone/some-text", "sample-10BT"), {"split": "validation", "revision": "v2", "streaming": False},
    )  # fmt: skip
    assert left_out == (("someone/some-text", None), {"split": "train", "revision": None, "streaming": True})


@pytest.mark.parametrize(
    "error", [ValueError("Unknown split\nand more"), ConnectionError("no\nway"), OSError("away")]
)
def test_a_hub_data_set_that_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def load_dataset(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "cannot open the data set 'someone/some-text'" in complaint("someone/some-text")


def test_a_hub_data_set_that_breaks_off_is_refused_with_the_place(monkeypatch: pytest.MonkeyPatch):
    def rows():
        yield {"text": "x"}
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    assert "at document 1: the line went dead" in complaint("someone/some-text")


@pytest.mark.parametrize("name", ["some text", "a/b/c", "x" * 200])
def test_what_is_neither_a_file_nor_a_possible_name_is_refused(name: str):
    with pytest.raises(TextError) as caught:
        revision(TextConfig(name))
    assert name in str(caught.value)


def test_files_have_no_revision_and_the_embedded_text_has_its_own(tmp_path: Path):
    assert revision(TextConfig(str(jsonl(tmp_path / "a.jsonl", ["x"])))) is None
    assert revision(TextConfig("embedded")) == demo_assets.TEXT_VERSION


def test_with_a_hub_that_does_not_answer_the_revision_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"
    )  # the discard port: nothing listens
    assert revision(TextConfig("someone/some-text", dataset_revision="v2")) == "v2"


def test_without_a_network_the_revision_is_the_one_asked_for():
    assert revision(TextConfig("someone/some-text", dataset_revision="v2")) == "v2"
    assert revision(TextConfig("someone/some-text")) is None


def test_the_default_is_the_embedded_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_assets, "documents", lambda: iter(["x"]))
    assert list(text.documents(TextConfig())) == ["x"]
