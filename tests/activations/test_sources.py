"""Folders that other tools wrote are read as they are: every text once, one split at a time, packed or not."""

import bz2
import gzip
import json
import logging
import lzma
import os
import shutil
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from activations.errors import TextError
from activations.sources import split_of
from activations.text import TextConfig, documents

LINES = ['{"text": "one"}', '{"text": "two naïve 鳥"}', '{"text": ""}']
TEXTS = ["one", "two naïve 鳥", ""]


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def read(source: Path, **settings: str) -> list[object]:
    return list(documents(TextConfig(str(source), **settings)))  # type: ignore[arg-type]


def jsonl(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def parquet(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts)}), path)
    return path


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet"])
def test_a_packed_file_reads_like_the_file(tmp_path: Path, packing: str, ending: str):
    plain = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet(plain, *TEXTS)
    else:
        content = {"txt": "one\n\ntwo\r\nthree", "jsonl": "\n".join(LINES), "csv": 'text\none\n"two, 鳥"\n'}
        plain.write_text(content[ending], encoding="utf-8")
    want = read(plain)
    packed = tmp_path / "packed" / f"a.{ending}.{packing}"
    packed.parent.mkdir()
    packed.write_bytes(PACKERS[packing](plain.read_bytes()))
    assert read(packed) == read(packed.parent) == want
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) // 2])
    with pytest.raises(TextError, match="cannot be read"):
        read(packed)


def test_files_of_several_frames_are_read_to_their_end(tmp_path: Path):
    for packing in ("gz", "zst"):
        path = tmp_path / f"a.jsonl.{packing}"
        path.write_bytes(b"".join(PACKERS[packing](f"{line}\n".encode()) for line in LINES))
        assert read(path) == TEXTS


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "tsv", "arrow", "feather"])
def test_every_table_is_read(tmp_path: Path, ending: str):
    path = tmp_path / f"a.{ending}"
    table = pa.table({"n": [1, 2, 3], "text": TEXTS})
    if ending == "feather":
        feather.write_feather(table, path)
    elif ending == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text(
            "n\ttext\n1\tone\n2\ttwo naïve 鳥\n3\t\n" if ending == "tsv" else "\n".join(LINES), "utf-8"
        )
    assert read(path) == TEXTS


def test_json_is_read_however_it_is_laid_out(tmp_path: Path):
    rows = [json.loads(line) for line in LINES]
    path = tmp_path / "a.json"
    for content in (
        json.dumps(rows),
        json.dumps(rows, indent=2),
        "\ufeff" + "\r\n".join(LINES),
        "\n\n" + "\n\n".join(json.dumps(row, indent=1) for row in rows),
        json.dumps([row["text"] for row in rows]),
        "\n".join(['{"other": 1}', *LINES[:2]]),
    ):
        path.write_text(content, encoding="utf-8")
        assert read(path) == (["", *TEXTS[:2]] if "other" in content else TEXTS)


def test_a_zip_is_read_like_a_folder(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/two.txt", "two")
        archive.writestr("a.txt", "one")
        archive.writestr("__MACOSX/a.txt", "junk")
        archive.writestr("README.md", "about")
    assert read(tmp_path / "a.zip") == ["one", "two"]
    assert read(tmp_path) == ["one", "two"]


def test_saved_data_sets_are_read_and_a_split_of_several_chosen(tmp_path: Path):
    made = datasets.Dataset.from_dict({"text": [str(number) for number in range(20)]})
    made.save_to_disk(tmp_path / "one", num_shards=3)
    assert read(tmp_path / "one") == [str(number) for number in range(20)]
    both = datasets.DatasetDict({"train": made.select(range(5)), "test": made.select(range(5, 8))})
    both.save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two") == ["0", "1", "2", "3", "4"]
    assert read(tmp_path / "two", split="test") == ["5", "6", "7"]
    with pytest.raises(TextError, match="--split test or train"):
        read(tmp_path / "two", split="validation")


def snapshot(folder: Path) -> Path:
    for name in (
        "README.md",
        ".gitattributes",
        "LICENSE",
        "images/a.png",
        ".cache/x.jsonl",
        ".git/y.parquet",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no data")
    (folder / "dataset_infos.json").write_text("{}")
    parquet(folder / "data/train-00000-of-00002.parquet", "a", "b")
    parquet(folder / "data/train-00001-of-00002.parquet", "c")
    parquet(folder / "data/test-00000-of-00001.parquet", "t")
    return folder


def test_a_snapshot_of_the_hub_gives_the_split_asked_for_and_never_two(tmp_path: Path):
    folder = snapshot(tmp_path / "data set")
    assert read(folder) == ["a", "b", "c"]
    assert read(folder, split="test") == ["t"]
    assert read(folder / "**/*.parquet") == ["a", "b", "c"]
    assert read(folder / "data/test-*") == ["t"]
    with pytest.raises(TextError, match="--split test or train"):
        read(folder, split="validation")


def test_the_hub_s_cache_is_read_by_its_links(tmp_path: Path):
    cache = tmp_path / "datasets--someone--text"
    (cache / "blobs").mkdir(parents=True)
    shutil.move(parquet(tmp_path / "x.parquet", "a"), cache / "blobs" / "0123")
    for commit in ("old", "new"):
        (cache / "snapshots" / commit).mkdir(parents=True)
        os.symlink(cache / "blobs" / "0123", cache / "snapshots" / commit / "train.parquet")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("new")
    assert read(cache) == read(cache / "snapshots" / "old") == read(cache / "snapshots") == ["a"]


def test_a_text_that_is_there_twice_is_read_once_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    plain = jsonl(tmp_path / "notes.jsonl", "x", "y")
    (tmp_path / "notes.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    shutil.copy(plain, tmp_path / "z-copy.jsonl")
    (tmp_path / "link.jsonl").symlink_to(plain)
    jsonl(tmp_path / "sub/other.jsonl", "z")
    assert sorted(map(str, read(tmp_path))) == ["x", "y", "z"]
    (line,) = [record.getMessage() for record in caplog.records if "cop" in record.getMessage()]
    assert "3 of 5" in line
    assert "notes.jsonl.gz" in line


def test_hidden_files_and_what_is_said_about_the_data_are_passed_over(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", "x")
    for name in (
        ".git/b.jsonl",
        ".cache/c.jsonl",
        "__MACOSX/._a.jsonl",
        ".ipynb_checkpoints/a.jsonl",
        "._a.jsonl",
    ):
        jsonl(tmp_path / name, "hidden")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "LICENSE.txt").write_text("law")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(tmp_path) == read(tmp_path / "**/*.jsonl") == ["x"]


def test_notes_may_include_one_called_readme(tmp_path: Path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.md").write_text("a")
    assert read(tmp_path) == ["about", "a"]


def test_a_folder_of_two_kinds_is_refused_with_the_pattern_that_works(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", "x")
    jsonl(tmp_path / "sub/b.jsonl", "y")
    (tmp_path / "c.txt").write_text("z")
    with pytest.raises(TextError) as caught:
        read(tmp_path)
    pattern = str(caught.value).split("--dataset '")[1].rstrip("'")
    assert read(Path(pattern)) == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("train_sft-00000-of-00001-a1b2.parquet", "train_sft"),
        ("test.jsonl.gz", "test"),
        ("wiki.valid.tokens.txt", "validation"),
        ("my_train.csv", "train"),
        ("en/dev/part-1.jsonl", "validation"),
        ("notes.txt", None),
        ("2024/latest.txt", None),
        ("contest.txt", None),
    ],
)
def test_a_split_is_known_by_a_whole_word(name: str, split: str | None):
    assert split_of(name) == split
