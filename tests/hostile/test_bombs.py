"""Small files that claim much: refused in one line, before the memory or the time they ask for is spent."""

import bz2
import gzip
import json
import lzma
import struct
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from activations import text
from activations.errors import ConfigError, TextError
from activations.rows import lie_within
from activations.shard import shard_name
from activations.store import INDEX
from activations.text import TextConfig
from activations.tokens import PackingConfig, windows
from sae.workflows import sweep
from tests import tiny
from tests.hostile import worker
from tests.hostile.readers import READERS
from tests.hostile.repairs import FEATURES, RUN, repair_features, repair_sae, repair_store, rewrite
from tests.hostile.worlds import SWEEP

HUGE = 2**40


def header(path: Path, change: Callable[[dict], object]) -> None:
    """Change the JSON at the start of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])
    change(about)
    text = json.dumps(about).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def tensors(path: Path, change: Callable[[dict], object]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path)


def claim_length(world: Path) -> None:
    path = world / "store" / shard_name(0)
    path.write_bytes(struct.pack("<Q", HUGE) + path.read_bytes()[8:])
    repair_store(world)


def claim_shape(world: Path) -> None:
    header(
        world / "store" / shard_name(0),
        lambda h: h["tokens"].update(shape=[HUGE, 16], data_offsets=[0, HUGE * 64]),
    )
    repair_store(world)


def overlay_segments(world: Path) -> None:
    """Write one stretch of tokens over and over: 20 bytes of file for each 16 rows."""
    whole = torch.tensor([[0, 0, 16, 0, 0]], dtype=torch.int32)
    tensors(world / "store" / shard_name(0), lambda t: t.update(segments=whole.repeat(2_000_000, 1)))
    repair_store(world)


def claim_windows(world: Path) -> None:
    rewrite(world / "store" / INDEX, lambda index: index["shards"][0].update(windows=HUGE))


def claim_latents(world: Path) -> None:
    rewrite(
        world / RUN / "sae.json", lambda about: (about["arch"].update(d_sae=HUGE), about.update(d_model=HUGE))
    )
    repair_sae(world)


def claim_features(world: Path) -> None:
    rewrite(world / FEATURES / "features.json", lambda about: about.update(d_sae=2**50))


def inflate_table(world: Path) -> None:
    """Hundreds of megabytes of zeros in some kilobytes of Parquet, with as many rows as there are latents."""
    path = world / FEATURES / "features.parquet"
    table = pq.read_table(path)
    ends = np.arange(len(table) + 1, dtype=np.int32) * 400_000
    zeros = pa.ListArray.from_arrays(ends, np.zeros(ends[-1]))
    place = table.schema.get_field_index("neighbour_cosines")
    pq.write_table(table.set_column(place, "neighbour_cosines", zeros), path, compression="zstd")
    repair_features(world)


def nest_index(world: Path) -> None:
    (world / "store" / INDEX).write_text("[" * 10_000_000)


def nest_lines(world: Path) -> None:
    (world / "text.jsonl").write_text('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a header of a terabyte": ("store shard", claim_length),
    "a tensor of 64 terabytes": ("store shard", claim_shape),
    "segments over segments": ("store shard", overlay_segments),
    "a terabyte of windows": ("store index", claim_windows),
    "an SAE of a million latents": ("SAE", claim_latents),
    "2^50 features": ("features", claim_features),
    "a table that unpacks to 100 megabytes": ("features table", inflate_table),
    "ten million brackets": ("store index", nest_index),
    "a document nested 100,000 deep": ("data set .jsonl", nest_lines),
}


@pytest.mark.parametrize(("name", "arm"), BOMBS.values(), ids=BOMBS)
def test_what_claims_much_is_refused_in_little_memory(kinds: Path, name: str, arm: Callable[[Path], None]):
    kept = {reader.file: (kinds / reader.file).read_bytes() for reader in READERS.values()}
    try:
        arm(kinds)
        assert worker.alone(READERS[name], kinds) == "refused"
    finally:
        for file, content in kept.items():
            (kinds / file).write_bytes(content)


def test_a_grid_of_too_many_runs_is_refused_before_it_is_laid_out(tmp_path: Path):
    lists = "".join(f"train.{name} = [{', '.join(map(str, range(1, 300)))}]\n" for name in ("steps", "batch", "seed", "log_every"))  # fmt: skip
    (tmp_path / "sweep.toml").write_text(SWEEP.split("[[grid]]")[0] + f'[[grid]]\narch = "topk"\n{lists}')
    with pytest.raises(ConfigError, match="10,000 at most"):
        sweep.load(tmp_path / "sweep.toml")


def test_a_sweep_larger_than_any_is_refused_unread(tmp_path: Path):
    (tmp_path / "sweep.toml").write_text("# long\n" * 200_000)
    with pytest.raises(ConfigError, match="larger than"):
        sweep.load(tmp_path / "sweep.toml")


def read(path: Path, content: bytes) -> list[object]:
    path.write_bytes(content)
    return list(text.documents(TextConfig(str(path))))


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a": ' * 200_000, '[{"text": "a"}, ' + "[" * 200_000])
def test_a_document_nested_deeper_than_python_reads_is_refused(tmp_path: Path, deep: str):
    with pytest.raises(TextError, match="nested deeper|cannot be read"):
        read(tmp_path / "x.json", deep.encode())
    quoted = '{"text": "' + "[" * 5000 + '\\"[[{{"}\n'
    assert len(read(tmp_path / "x.json", quoted.encode() * 3)) == 3


@pytest.mark.parametrize("given", ["null", "\ufeffnull", '\n\n  null\n{"text": "a"}', '{"text": "a"}\nnull'])
def test_null_in_the_place_of_a_document_is_refused(tmp_path: Path, given: str):
    with pytest.raises(TextError, match="null at line"):
        read(tmp_path / "x.json", given.encode())
    assert read(tmp_path / "x.json", b'[\n  {"text": null},\n  null\n]') == ["", ""]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_a_packed_file_is_unpacked_no_further_than_asked(tmp_path: Path, pack: Callable):
    ending = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]
    path = tmp_path / f"x.txt.{ending}"
    path.write_bytes(pack(b"a " * 2**25))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    stream = windows(text.documents(TextConfig(str(path))), tiny.tokenizer(), PackingConfig(context=16))
    assert len([*islice(stream, 100)]) == 100
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_segments_lie_behind_one_another():
    rows = torch.tensor([[0, 0, 4, 0, 0], [0, 4, 2, 1, 0], [1, 0, 6, 2, 0]], dtype=torch.int32)
    assert lie_within(rows, 2, 6)
    assert not lie_within(rows[[0, 0]], 2, 6)
    assert not lie_within(rows[[1, 0, 2]], 2, 6)
    rows[1, 1] = 3
    assert not lie_within(rows, 2, 6)
