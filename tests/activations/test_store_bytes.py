"""Format 1 of the store, byte for byte: what this release writes and what every release must be able to read.

The files in `golden/` are `golden_store` below as the first release wrote it: its index has no checksum."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch

from activations.disk.files import unsealed
from activations.store import Moments, Store
from activations.tokens import NOWHERE
from tests.activations.toys import spec, window, write

GOLDEN = Path(__file__).with_name("golden")
NAMES = ["index.json", "shard-00000.safetensors", "shard-00001.safetensors"]
WINDOWS = [
    window([NOWHERE, 0, 0, 0], [NOWHERE, 0, 1, 2], [0, 70, 71, 1]),
    window([NOWHERE, 0, 2, 2], [NOWHERE, 3, 0, 1], [0, 72, 80, 81]),
    window([NOWHERE, 2, NOWHERE, NOWHERE], [NOWHERE, 2, NOWHERE, NOWHERE], [0, 82, 82, 82]),
]
WIDE = torch.arange(36.0).view(3, 4, 3) / 8 - 2
NARROW = torch.arange(12.0).view(3, 4, 1)
# SHA-256 of shard-00000 with the same numbers in the half precisions
HALVES = {
    "float16": "4855e0b3efc355f707cec4b275c5adb7176080314e9b5d80bf2774e65c870213",
    "bfloat16": "7c5fdee295dce389b89744ff077ebaeea17b0fdf53318bafbc1d4fbfe6f7a46e",
}


def golden_store(folder: Path, dtype: str = "float32") -> Store:
    """Write a store of two hook points: three windows of three documents, the last padded, in two shards."""
    return write(folder, spec({"wide": 3, "narrow": 1}, 4, dtype), WINDOWS, {"wide": WIDE, "narrow": NARROW})


def by_hand(format_name: str, tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """Return a safetensors file made by its specification: header length, JSON header padded to 8 bytes, data."""
    header, place = {"__metadata__": {"format": format_name}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_written_as_the_first_release_wrote_it(tmp_path: Path, name: str):
    made = golden_store(tmp_path / "store")
    assert unsealed((tmp_path / "store" / name).read_bytes()) == (GOLDEN / name).read_bytes()
    assert made.fingerprint == Store(GOLDEN).fingerprint


def test_a_store_is_three_files_and_no_more(tmp_path: Path):
    golden_store(tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == NAMES


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_written_as_the_first_release_wrote_it(tmp_path: Path, dtype: str):
    made = golden_store(tmp_path / "store", dtype)
    assert made.shards[0].sha256 == HALVES[dtype]
    assert hashlib.sha256((tmp_path / "store" / NAMES[1]).read_bytes()).hexdigest() == HALVES[dtype]


def test_a_shard_is_the_bytes_the_format_describes():
    segments = [
        (0, 1, 3, 0, 0),
        (1, 1, 1, 0, 3),
        (1, 2, 2, 2, 0),
    ]  # window, column, length, document, position
    expected = by_hand(
        "sae-store-1",
        {
            "narrow": ("F32", [2, 4, 1], struct.pack("<8f", *range(8))),
            "segments": ("I32", [3, 5], b"".join(struct.pack("<5i", *segment) for segment in segments)),
            "tokens": ("I32", [2, 4], struct.pack("<8i", 0, 70, 71, 1, 0, 72, 80, 81)),
            "wide": ("F32", [2, 4, 3], struct.pack("<24f", *(n / 8 - 2 for n in range(24)))),
        },
    )
    assert sorted(parts(expected)) == sorted(parts((GOLDEN / NAMES[1]).read_bytes()))


def parts(file: bytes) -> list[tuple[str, str, list[int], bytes]]:
    """Return name, type, shape and bytes of a file's tensors, in the header's order, and its metadata."""
    (length,) = struct.unpack("<Q", file[:8])
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    metadata = header.pop("__metadata__")
    found = [
        (name, entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    ]
    assert sum(len(one[3]) for one in found) == len(data)
    return [*found, ("__metadata__", json.dumps(metadata), [], b"")]


def test_the_index_has_the_keys_the_format_lists():
    index = json.loads((GOLDEN / "index.json").read_text(encoding="utf-8"))
    assert set(index) == {
        "format", "model", "model_revision", "weights_sha256", "tokenizer_sha256", "dataset", "dataset_revision",
        "packing", "bos_token", "hooks", "dtype", "windows_per_shard", "text_ended", "moments", "shards",
    }  # fmt: skip
    assert index["format"] == 1
    for entry, name in zip(index["shards"], NAMES[1:], strict=True):
        content = (GOLDEN / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert [(entry["windows"], entry["rows"]) for entry in index["shards"]] == [(2, 6), (1, 1)]


def test_the_first_releases_store_reads_as_it_did():
    golden = Store(GOLDEN)
    assert golden.spec == spec({"wide": 3, "narrow": 1}, 4)
    assert golden.text_ended
    shards = [golden.read(number, ("wide", "narrow")) for number in range(2)]
    assert torch.equal(torch.cat([shard.activations["wide"] for shard in shards]), WIDE)
    assert torch.equal(torch.cat([shard.activations["narrow"] for shard in shards]), NARROW)
    for column in ("tokens", "documents", "positions"):
        found = torch.cat([getattr(shard, column) for shard in shards])
        assert found.tolist() == [getattr(window, column).tolist() for window in WINDOWS]
    rows = [1, 2, 3, 5, 6, 7, 9]  # of narrow, whose value is the row's number
    assert golden._moments["narrow"] == Moments([sum(rows) / 7], sum(row**2 for row in rows) / 7)
