"""A damaged or newer store is refused in one line that names the file, never with a traceback or wrong numbers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations.errors import StoreError, WorkbenchError
from activations.shard import shard_name
from activations.store import INDEX, Store, verify
from tests.activations.test_store_bytes import GOLDEN
from tests.activations.toys import LAWS

SHARD = shard_name(0)
N_BYTES = len((GOLDEN / SHARD).read_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An intact store that a test may damage."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def line_of(act: Callable[[], object]) -> str:
    """Return the one-line message of the StoreError that `act` raises."""
    with pytest.raises(StoreError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def faults(folder: Path) -> dict[str, str]:
    return {name: fault for name, fault in verify(Store(folder)) if fault}


def test_a_good_store_verifies(folder: Path):
    assert dict(verify(Store(folder))) == {SHARD: None, shard_name(1): None}


def test_a_newer_format_is_refused_by_name(folder: Path):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"format": 4, "shards": "kept in another way", "new": index}))
    line = line_of(lambda: Store(folder))
    assert str(folder) in line
    assert "format 4" in line
    assert "up to 3" in line


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, N_BYTES // 2, N_BYTES - 1])
def test_a_truncated_shard_is_refused_when_read_and_found_by_verify(folder: Path, left: int):
    (folder / SHARD).write_bytes((GOLDEN / SHARD).read_bytes()[:left])
    line = line_of(lambda: Store(folder).read(0))
    assert str(folder / SHARD) in line
    assert f"{left:,} bytes found, {N_BYTES:,} written" in line
    assert faults(folder) == {SHARD: f"{left:,} bytes found, {N_BYTES:,} written"}
    Store(folder).read(1)


def test_a_shard_that_grew_is_refused(folder: Path):
    (folder / SHARD).write_bytes((GOLDEN / SHARD).read_bytes() + b"\0")
    assert str(folder / SHARD) in line_of(lambda: Store(folder).read(0))


def test_a_missing_shard_is_refused_when_read_and_found_by_verify(folder: Path):
    (folder / SHARD).unlink()
    line = line_of(lambda: Store(folder).read(0))
    assert str(folder / SHARD) in line
    assert "missing" in line
    assert faults(folder) == {SHARD: "missing"}


@LAWS
@given(st.integers(0, N_BYTES - 1), st.integers(0, 7))
def test_verify_finds_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int):
    folder = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("flip") / "store"))
    flip(folder / SHARD, place, bit)
    assert faults(folder) == {SHARD: "its bytes have changed"}


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def test_whatever_bit_is_flipped_reading_gives_windows_or_one_line(folder: Path):
    good = Store(GOLDEN).read(0, ("wide", "narrow"))
    refused = {}
    for place in range(0, N_BYTES):
        flip(folder / SHARD, place, place % 8)
        try:
            found = Store(folder).read(0, ("wide", "narrow"))
            Store(folder).rows(found, "train")
        except StoreError as error:
            refused[place] = str(error)
        else:
            assert found.documents.shape == good.documents.shape, place
            assert found.activations["wide"].shape == good.activations["wide"].shape, place
        flip(folder / SHARD, place, place % 8)
    assert all(str(folder / SHARD) in line and "\n" not in line for line in refused.values())
    assert len(refused) > 100
    assert torch.equal(Store(folder).read(0).tokens, good.tokens)


INDEX_TEXT = (GOLDEN / INDEX).read_text()
DAMAGED = {
    "empty": "",
    "cut short": INDEX_TEXT[: len(INDEX_TEXT) // 2],
    "not JSON": "PAR1",
    "not UTF-8": b"\xff\xfe",
    "a list": "[]",
    "null": "null",
    "a number": "1",
    "an empty object": "{}",
    "a format that is no number": INDEX_TEXT.replace('"format": 1', '"format": "x"'),
    "no format": INDEX_TEXT.replace('"format": 1,', ""),
    "no shards": re.sub(r'"shards": \[.*\]', '"shards": null', INDEX_TEXT, flags=re.DOTALL),
    "shards of another kind": re.sub(r'"shards": \[.*\]', '"shards": [3]', INDEX_TEXT, flags=re.DOTALL),
    "an unknown key in a shard": INDEX_TEXT.replace('"windows": 2', '"windowz": 2'),
    "no packing": INDEX_TEXT.replace('"packing": {', '"packing": null, "was": {'),
    "a packing that cannot be": INDEX_TEXT.replace('"context": 4', '"context": 1'),
    "no moments": re.sub(
        r'"moments": \{.*\},\n "shards"', '"moments": {},\n "shards"', INDEX_TEXT, flags=re.DOTALL
    ),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_index_is_refused_in_one_line_that_names_it(folder: Path, content: str | bytes):
    assert content != INDEX_TEXT
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WorkbenchError) as caught:
        Store(folder).mean("wide")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
