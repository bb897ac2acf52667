"""Rows as int8: how far rounding may move a number, and that every reader gets the same numbers back."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from activations.errors import StoreError
from activations.harvest import harvest
from activations.int8 import BLOCK, LARGEST, dequantise, quantise
from activations.language_model import LanguageModel
from activations.shard import shard_name
from activations.shuffle import ShuffledReader, sample
from activations.store import Store, row_bytes
from activations.streaming.reader import StoredShards, StreamReader
from activations.tokens import NOWHERE
from tests import tiny
from tests.activations.harvests import config, contents, interrupted
from tests.activations.test_store_bytes import NAMES, by_hand, golden_store
from tests.activations.toys import LAWS, spec, window, write

WIDTHS = st.integers(1, 3 * BLOCK + 1)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def scale_of_each(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the scale of each number, in float64."""
    return scales.double().repeat_interleave(BLOCK, -1)[..., : x.shape[-1]]


@LAWS
@given(st.data(), st.integers(0, 4), WIDTHS)
def test_no_number_moves_by_more_than_half_its_scale_whatever_it_is(
    data: st.DataObject, rows: int, width: int
):
    x = torch.tensor(data.draw(st.lists(NUMBERS, min_size=rows * width, max_size=rows * width)))
    x = x.float().view(rows, width)
    q, scales = quantise(x)
    assert (q.dtype, scales.dtype, scales.shape) == (torch.int8, torch.bfloat16, (rows, -(-width // BLOCK)))
    assert int(q.abs().max() if q.numel() else 0) <= LARGEST
    back = dequantise(q, scales)
    step = scale_of_each(x, scales)
    assert ((back.double() - x.double()).abs() <= step / 2 * (1 + 1e-4)).all()
    assert torch.equal(back.double(), q.double() * step)  # the product is exact
    assert torch.equal(back == 0, q == 0)


@LAWS
@given(st.integers(0, 1000), WIDTHS, st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_scale_is_the_smallest_that_holds_the_block(seed: int, width: int, size: float):
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(seed)) * size
    _, scales = quantise(x)
    smaller = (scales.view(torch.int16) - 1).view(torch.bfloat16)
    for block, (scale, less) in zip(
        x.split(BLOCK, -1), zip(scales.T.double(), smaller.T.double(), strict=True), strict=True
    ):
        largest = block.double().abs().amax(-1)
        assert (scale * LARGEST >= largest).all()
        assert (less * LARGEST < largest).all()


def test_zero_rows_stay_zero_and_one_huge_number_spoils_its_block_alone():
    x = torch.randn(3, 4 * BLOCK, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[1, BLOCK + 5] = 30_000.0
    back = dequantise(*quantise(x))
    assert torch.equal(back[0], x[0])
    error = (back - x).abs()[1]
    assert error[BLOCK : 2 * BLOCK].max() > 0.5
    assert torch.cat([error[:BLOCK], error[2 * BLOCK :]]).max() < 0.02
    assert abs(back[1, BLOCK + 5] / 30_000 - 1) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [4095, 4096, 4097])
def test_many_rows_of_any_type_are_rounded_like_one(dtype: torch.dtype, rows: int):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, scales = quantise(x.view(rows, 1, 3))
    for number in (0, 4094, rows - 1):
        alone = quantise(x[number : number + 1])
        assert torch.equal(q[number], alone[0])
        assert torch.equal(scales[number], alone[1])


def test_a_shard_is_the_bytes_the_format_describes(tmp_path: Path):
    made = golden_store(tmp_path / "store", "int8")
    content = (tmp_path / "store" / NAMES[1]).read_bytes()
    wide, narrow = (
        [[value / 8 - 2 for value in range(3 * row, 3 * row + 3)] for row in range(8)],
        [[float(value)] for value in range(8)],
    )

    def scale(row: list[float]) -> int:
        """Return the bits of the smallest bfloat16 with 127 s >= every number, by trying the next ones."""
        largest = max(map(abs, row))
        bits = struct.unpack("<I", struct.pack("<f", largest / 127))[0] >> 16
        bits = max(bits - 1, 0)
        while 127 * value_of(bits) < largest:
            bits += 1
        return bits

    def value_of(bits: int) -> float:
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]

    def packed(rows: list[list[float]]) -> tuple[bytes, bytes]:
        scales = [scale(row) for row in rows]
        q = [
            round(value / value_of(bits)) if bits else 0
            for row, bits in zip(rows, scales, strict=True)
            for value in row
        ]
        return struct.pack(f"<{len(q)}b", *q), struct.pack(f"<{len(scales)}H", *scales)

    (q_wide, s_wide), (q_narrow, s_narrow) = packed(wide), packed(narrow)
    segments = [(0, 1, 3, 0, 0), (1, 1, 1, 0, 3), (1, 2, 2, 2, 0)]
    tensors = {
        "segments": ("I32", [3, 5], b"".join(struct.pack("<5i", *segment) for segment in segments)),
        "tokens": ("I32", [2, 4], struct.pack("<8i", 0, 70, 71, 1, 0, 72, 80, 81)),
        "narrow.scales": ("BF16", [2, 4, 1], s_narrow),
        "wide.scales": ("BF16", [2, 4, 1], s_wide),
        "narrow": ("I8", [2, 4, 1], q_narrow),
        "wide": ("I8", [2, 4, 3], q_wide),
    }
    assert content == by_hand("sae-store-1", tensors)
    assert made.shards[0].sha256 == hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(llama: LanguageModel, tmp_path: Path, text: Path) -> Store:
    return harvest(llama, tmp_path / "store", config(text, dtype="int8"))


def test_every_reader_gives_the_numbers_of_the_shards(store: Store):
    shards = [store.read(number, (tiny.HOOK,)) for number in range(len(store.shards))]
    rows = torch.cat([shard.activations[tiny.HOOK][store.rows(shard, "train")] for shard in shards])
    assert rows.dtype == torch.float32
    wanted = {tuple(row.tolist()) for row in rows}
    for reader in (
        ShuffledReader(store, tiny.HOOK, 8),
        ShuffledReader(store, tiny.HOOK, 8, memory=1),
        ShuffledReader(store, tiny.HOOK, 8, target_hook=tiny.HOOK),
        StreamReader(StoredShards(store), tiny.HOOK, 8, shuffle_tokens=512),
    ):
        batch = sample(reader, 200)
        assert batch.x.dtype == torch.float32
        assert {tuple(row.tolist()) for row in batch.x} <= wanted
    whole = torch.cat([x for x, *_ in store.batches(tiny.HOOK, 7, "train")])
    assert torch.equal(whole, rows)
    first = rows[: int(store.rows(shards[0], "train").sum())].double()
    stream = StreamReader(StoredShards(store), tiny.HOOK, 8, shuffle_tokens=512)
    assert stream.mean_square_norm() == pytest.approx(first.square().sum(1).mean().item())


def test_two_hook_points_and_labels_keep_their_columns_apart(
    llama: LanguageModel, tmp_path: Path, text: Path
):
    hooks = f"{tiny.HOOK},blocks.0.hook_mlp_out"
    made = {
        dtype: harvest(llama, tmp_path / dtype, config(text, hooks=hooks, dtype=dtype, labels="surprise"))
        for dtype in ("int8", "float32")
    }
    batches = {
        dtype: sample(
            ShuffledReader(store, tiny.HOOK, 8, target_hook="blocks.0.hook_mlp_out", labels=True), 64
        )
        for dtype, store in made.items()
    }
    exact, rounded = batches["float32"], batches["int8"]
    assert exact.labels is not None
    assert rounded.labels is not None
    assert torch.equal(exact.labels.isnan(), rounded.labels.isnan())
    assert torch.equal(exact.labels.nan_to_num(), rounded.labels.nan_to_num())
    for one, other in ((exact.x, rounded.x), (exact.y, rounded.y)):
        assert ((one - other).norm() / one.norm()) < 0.01
        assert not torch.equal(one, other)


def test_an_interrupted_harvest_ends_with_the_same_bytes(
    llama: LanguageModel, store: Store, tmp_path: Path, text: Path
):
    interrupted(llama, tmp_path / "again", config(text, dtype="int8"), after=600)
    harvest(llama, tmp_path / "again", config(text, dtype="int8"))
    assert contents(tmp_path / "again") == contents(store.path)


def test_padding_is_zero(llama: LanguageModel, tmp_path: Path, text: Path):
    packed = harvest(
        llama,
        tmp_path / "packed",
        tiny.harvest_config(text, dtype="int8", packing=tiny.PackingConfig(context=64, packing="document")),
    )
    shard = packed.read(0, (tiny.HOOK,))
    padding = (shard.documents == NOWHERE) & (torch.arange(packed.context) > 0)
    assert padding.any()
    assert not shard.activations[tiny.HOOK][padding].any()


@pytest.mark.parametrize("largest", [3e38, 70_000.0, 1e-30])
def test_numbers_of_any_size_are_held(tmp_path: Path, largest: float):
    x = torch.full((1, 4, 2), largest)
    made = write(
        tmp_path / "store",
        spec({"h": 2}, 4, "int8"),
        [window([NOWHERE, 0, 0, 0], [NOWHERE, 0, 1, 2])],
        {"h": x},
    )
    torch.testing.assert_close(made.read(0, ("h",)).activations["h"], x, rtol=0.01, atol=0)


def test_a_row_takes_what_is_said(store: Store):
    width = store.width(tiny.HOOK)
    assert row_bytes("int8", width) == width + 2
    assert [row_bytes(dtype, 576) for dtype in ("int8", "float16", "float32")] == [612, 1152, 2304]
    with safe_open(store.path / shard_name(0), "pt") as file:
        names = (tiny.HOOK, f"{tiny.HOOK}.scales")
        taken = sum(file.get_tensor(name).nbytes for name in names)
    assert taken == row_bytes("int8", width) * store.context * store.spec.windows_per_shard


def test_a_shard_without_its_scales_or_with_others_is_refused_by_name(store: Store):
    for change in (
        lambda t: {n: x for n, x in t.items() if "scales" not in n},
        lambda t: {n: x.half() if "scales" in n else x for n, x in t.items()},
        lambda t: {n: x[..., :0] if "scales" in n else x for n, x in t.items()},
    ):
        damaged(store, change)
        with pytest.raises(StoreError, match=r"shard-00000.*scales"):
            Store(store.path).read(0, (tiny.HOOK,))


def test_a_scale_that_is_no_number_is_refused(store: Store):
    damaged(store, lambda t: {n: x * float("nan") if "scales" in n else x for n, x in t.items()})
    with pytest.raises(StoreError, match="NaN or infinite"):
        Store(store.path).read(0, (tiny.HOOK,))


def damaged(store: Store, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write shard 0 with other tensors, and an index that vouches for it."""
    path = store.path / shard_name(0)
    original = path.with_suffix(".bak")
    if not original.exists():
        path.rename(original)
    save_file(change(load_file(original)), path, {"format": "sae-store-1"})
    index = json.loads((store.path / "index.json").read_text())
    index.pop("checksum", None)
    index["shards"][0] |= {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (store.path / "index.json").write_text(json.dumps(index))
