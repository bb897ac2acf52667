"""The shuffled reader: every row once per pass, in an order that is seeded, mixed, and can be resumed anywhere."""

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations.errors import StoreError
from activations.rows import is_held_out
from activations.shuffle import Batch, Cursor, ShuffledReader, sample
from activations.store import Store
from activations.tokens import NOWHERE
from tests.activations.toys import LAWS, rows_that_count, spec, window, write

CONTEXT, WINDOWS, PER_SHARD = 6, 27, 4
ROW_BYTES = 2 * 4  # of hook point "row", float32
MEMORY = {"everything": 4 << 30, "three shards": 3 * PER_SHARD * CONTEXT * ROW_BYTES, "two shards": 1}
every_memory = pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)


def made_windows() -> list:
    """Return windows of documents 0 to 39, each 3 to 9 tokens long; one window in five has padding."""
    found, document, position = [], 0, 0
    for number in range(WINDOWS):
        documents, positions = [NOWHERE], [NOWHERE]
        while len(documents) < CONTEXT:
            if number % 5 == 4 and len(documents) == CONTEXT - 1:
                documents, positions = [*documents, NOWHERE], [*positions, NOWHERE]
                continue
            if position > 2 + document % 7:
                document, position = document + 1, 0
            documents, positions = [*documents, document], [*positions, position]
            position += 1
        found.append(window(documents, positions))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of seven shards whose activations identify their row: "row" is (row, 0.5), "other" (-row, row mod 7, 1)."""
    rows = torch.arange(WINDOWS * CONTEXT, dtype=torch.float32).view(WINDOWS, CONTEXT)
    activations = {
        "row": torch.stack([rows, torch.full_like(rows, 0.5)], -1),
        "other": torch.stack([-rows, rows % 7, torch.ones_like(rows)], -1),
    }
    about = spec({"row": 2, "other": 3}, CONTEXT, windows_per_shard=PER_SHARD)
    return write(tmp_path_factory.mktemp("shuffle") / "store", about, made_windows(), activations)


def eligible(split: str, with_bos: bool = False) -> list[int]:
    """Return the row numbers of a split, found one by one."""
    found = []
    for number, column in rows_that_count(made_windows(), excluded=0 if with_bos else 1):
        document = torch.tensor([made_windows()[number].documents[column]])
        if split == "all" or bool(is_held_out(document)) == (split == "held-out"):
            found.append(number * CONTEXT + column)
    return found


def rows_of(batch: Batch) -> list[int]:
    return batch.x[:, 0].long().tolist()


def take(reader: ShuffledReader, batches: int) -> list[list[int]]:
    return [rows_of(batch) for batch in islice(iter(reader), batches)]


def passes(reader: ShuffledReader, count: int) -> list[list[int]]:
    """Return the first `count` passes, each a list of rows, from as many batches as they take."""
    flat = list(chain.from_iterable(take(reader, -(-count * reader.rows // reader.batch))))
    return [flat[n * reader.rows : (n + 1) * reader.rows] for n in range(count)]


@every_memory
@pytest.mark.parametrize("batch", [1, 7, 32, 90])
@pytest.mark.parametrize("split", ["train", "all"])
def test_every_row_of_a_split_comes_once_a_pass(store: Store, memory: int, batch: int, split: str):
    reader = ShuffledReader(store, "row", batch, split=split, memory=memory)
    wanted = sorted(eligible(split))
    assert reader.rows == len(wanted)
    for one_pass in passes(reader, 3):
        assert sorted(one_pass) == wanted


@every_memory
def test_bos_rows_come_only_when_asked_for(store: Store, memory: int):
    bos = set(range(0, WINDOWS * CONTEXT, CONTEXT))
    (without,) = passes(ShuffledReader(store, "row", 8, memory=memory), 1)
    (with_bos,) = passes(ShuffledReader(store, "row", 8, with_bos=True, memory=memory), 1)
    assert not bos & set(without)
    assert sorted(with_bos) == sorted(eligible("train", with_bos=True))
    assert bos <= set(with_bos)


def test_train_and_held_out_share_no_document_and_together_are_all(store: Store):
    splits = {
        split: passes(ShuffledReader(store, "row", 4, split=split), 1)[0]
        for split in ("train", "held-out", "all")
    }
    documents = {
        split: {int(made_windows()[row // CONTEXT].documents[row % CONTEXT]) for row in rows}
        for split, rows in splits.items()
    }
    assert not documents["train"] & documents["held-out"]
    assert documents["held-out"]
    assert sorted(splits["train"] + splits["held-out"]) == sorted(splits["all"])


@every_memory
def test_the_same_seed_gives_the_same_order_and_another_seed_another(store: Store, memory: int):
    first, again, other = (
        take(ShuffledReader(store, "row", 8, seed=s, memory=memory), 30) for s in (3, 3, 4)
    )
    assert first == again
    assert first != other


@every_memory
def test_each_pass_has_an_order_of_its_own(store: Store, memory: int):
    one, two, three = passes(ShuffledReader(store, "row", 8, memory=memory), 3)
    assert one != two != three != one
    assert one != sorted(one)


def test_with_room_for_everything_any_row_may_come_first(store: Store):
    firsts = Counter(take(ShuffledReader(store, "row", 1, seed=seed), 1)[0][0] for seed in range(300))
    share = 1 - math.exp(
        -300 / len(eligible("train"))
    )  # share of the rows that this many uniform draws are expected to cover
    assert len(firsts) > 0.9 * share * len(eligible("train"))
    assert max(firsts.values()) < 12


@pytest.mark.parametrize(("memory", "shards"), [("two shards", 2), ("three shards", 3)])
def test_a_batch_mixes_the_shards_of_a_group_and_no_others(store: Store, memory: str, shards: int):
    reader = ShuffledReader(store, "row", 20, memory=MEMORY[memory])
    assert reader.shards_per_group == shards
    (one_pass,) = passes(reader, 1)
    first = [row // (CONTEXT * PER_SHARD) for row in one_pass[:20]]
    assert len(set(first)) == shards
    groups, seen = [], set()  # shards in the order in which they first and last appear
    for row in one_pass:
        shard = row // (CONTEXT * PER_SHARD)
        if shard not in seen and (not groups or len(groups[-1]) == shards):
            groups.append(set())
        groups[-1].add(shard)
        seen.add(shard)
        assert shard in groups[-1]
    assert [len(group) for group in groups] == [shards] * (7 // shards) + [1]


def test_a_batch_is_float32_and_x_is_y_for_an_autoencoder(store: Store):
    batch = next(iter(ShuffledReader(store, "row", 8)))
    assert batch.x is batch.y
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (8, 2)
    assert (batch.x[:, 1] == 0.5).all()


@every_memory
def test_a_target_hook_gives_the_same_rows_of_another_hook_point(store: Store, memory: int):
    reader = ShuffledReader(store, "row", 10, target_hook="other", memory=2 * memory)
    alone = ShuffledReader(store, "row", 10, memory=memory)
    for x, y, *_ in islice(iter(reader), 40):
        assert (x.shape[1], y.shape[1]) == (2, 3)
        assert torch.equal(y[:, 0], -x[:, 0])
        assert torch.equal(y[:, 1], x[:, 0] % 7)
    if memory == MEMORY["everything"]:
        assert take(ShuffledReader(store, "row", 10, target_hook="other"), 20) == take(alone, 20)
    same = next(iter(ShuffledReader(store, "row", 10, target_hook="row")))
    assert same.x is same.y


READERS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 60),
        "memory": st.sampled_from(list(MEMORY.values())),
        "seed": st.integers(0, 2**40),
        "split": st.sampled_from(["train", "all"]),
    }
)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state, allow_nan=False))


@LAWS
@given(READERS, st.integers(0, 40), st.integers(0, 10))
def test_a_restored_reader_gives_exactly_the_batches_that_would_have_come(
    store: Store, settings: dict, before: int, stray: int
):
    reader = ShuffledReader(store, "row", **settings)
    take(reader, before)
    state = through_json(reader.state())
    wanted = take(reader, 12)
    other = ShuffledReader(store, "row", **settings)
    take(other, stray)  # whatever batches it yielded before
    other.restore(state)
    assert other.state() == state
    assert take(other, 12) == wanted


@LAWS
@given(READERS, st.integers(1, 15))
def test_reading_in_one_go_or_with_a_restore_after_every_batch_is_the_same(
    store: Store, settings: dict, batches: int
):
    whole = take(ShuffledReader(store, "row", **settings), batches)
    state, pieces = ShuffledReader(store, "row", **settings).state(), []
    for _ in range(batches):
        reader = ShuffledReader(store, "row", **settings)
        reader.restore(through_json(state))
        pieces += take(reader, 1)
        state = reader.state()
    assert pieces == whole


def test_the_place_is_that_after_the_batches_given_out(store: Store):
    reader = ShuffledReader(store, "row", 50)
    assert reader.cursor == Cursor(0, 0)
    stream = iter(reader)
    for given_out in range(50, 300, 50):
        next(stream)
        assert reader.cursor.epoch * reader.rows + reader.cursor.row == given_out


CHANGES: dict[str, Callable[[Store], ShuffledReader]] = {
    "batch": lambda store: ShuffledReader(store, "row", 9),
    "seed": lambda store: ShuffledReader(store, "row", 8, seed=1),
    "shards_per_group": lambda store: ShuffledReader(store, "row", 8, memory=1),
    "rows": lambda store: ShuffledReader(store, "row", 8, split="all"),
    "hooks": lambda store: ShuffledReader(store, "other", 8),
}


@pytest.mark.parametrize("key", CHANGES)
def test_the_place_of_a_reader_of_another_order_is_refused(store: Store, key: str):
    state = through_json(ShuffledReader(store, "row", 8).state())
    other = CHANGES[key](store)
    with pytest.raises(StoreError, match=f"{key} = ") as caught:
        other.restore(state)
    assert "\n" not in str(caught.value)
    assert other.cursor == Cursor(0, 0)


def test_a_batch_larger_than_the_split_is_refused_with_both_numbers(store: Store):
    rows = len(eligible("held-out"))
    with pytest.raises(StoreError, match=f"has {rows} held-out rows and a batch takes {rows + 1}"):
        ShuffledReader(store, "row", rows + 1, split="held-out")
    ShuffledReader(store, "row", rows, split="held-out")


def test_an_unknown_hook_point_is_refused(store: Store):
    for hooks in ({"hook": "gone"}, {"hook": "row", "target_hook": "gone"}):
        with pytest.raises(StoreError, match="holds no 'gone'"):
            ShuffledReader(store, batch=8, **hooks)


def test_a_sample_is_the_start_of_the_order_and_moves_nothing(store: Store):
    reader = ShuffledReader(store, "row", 8)
    expected = list(chain.from_iterable(take(ShuffledReader(store, "row", 8), 5)))
    assert sample(reader, 45).x[:, 0].long().tolist() == expected
    assert reader.cursor == Cursor(0, 0)
    assert len(sample(reader, 10**9).x) == reader.rows // 8 * 8
    assert len(sample(reader, 1).x) == 8


def test_shards_without_a_row_of_the_split_are_passed_over(tmp_path: Path):
    windows = [
        window([NOWHERE, n, n, n], [NOWHERE, 0, 1, 2]) for n in (1, 0, 1, 1, 2)
    ]  # document 1 is held out
    x = torch.arange(20.0).view(5, 4, 1)
    made = write(tmp_path / "store", spec({"h": 1}, 4, windows_per_shard=1), windows, {"h": x})
    for split, rows in {"train": [5, 6, 7, 17, 18, 19], "held-out": [1, 2, 3, 9, 10, 11, 13, 14, 15]}.items():
        for memory in (1, 4 << 30):
            for one_pass in passes(ShuffledReader(made, "h", 2, split=split, memory=memory), 3):
                assert sorted(one_pass) == rows


@every_memory
def test_batches_made_ahead_change_neither_the_order_nor_the_place(
    store: Store, memory: int, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []
    real = ShuffledReader._batch
    monkeypatch.setattr(
        ShuffledReader, "_batch", lambda reader, pieces: made.append(1) or real(reader, pieces)
    )
    wanted = ShuffledReader(store, "row", 20, memory=memory, prefetch=0)
    reader = ShuffledReader(store, "row", 20, memory=memory, prefetch=3)
    expected, stream = iter(wanted), iter(reader)
    for given_out in range(1, 25):
        made.clear()
        assert rows_of(next(stream)) == rows_of(next(expected))
        assert reader.state() == wanted.state()
        assert reader.cursor.epoch * reader.rows + reader.cursor.row == 20 * given_out
    del stream  # ends its thread
    made.clear()
    stream = iter(reader)
    next(stream)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(made) == 4  # the one yielded, and three that wait


@every_memory
@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_every_batch_of_the_reader_that_is_alone(store: Store, memory: int, world: int):
    alone = ShuffledReader(store, "row", 42, memory=memory)
    readers = [ShuffledReader(store, "row", 42, memory=memory) for _ in range(world)]
    for rank, reader in enumerate(readers):
        reader.share(rank, world)
    streams = [iter(reader) for reader in readers]
    for whole in take(alone, 12):
        assert [rows_of(next(stream)) for stream in streams] == [whole[r::world] for r in range(world)]
    assert all(reader.state() == alone.state() for reader in readers)


def test_a_batch_that_ranks_cannot_share_is_refused_with_both_numbers(store: Store):
    with pytest.raises(StoreError, match="20 rows cannot be shared by 3 ranks"):
        ShuffledReader(store, "row", 20).share(0, 3)


def test_a_shard_that_goes_missing_ends_the_stream_in_its_own_error(store: Store, tmp_path: Path):
    copied = Store(shutil.copytree(store.path, tmp_path / "store"))
    stream = iter(ShuffledReader(copied, "row", 8, memory=1))
    next(stream)
    for path in copied.path.glob("shard-*"):
        path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        list(islice(stream, 100))


def test_a_reader_is_made_without_reading_an_activation(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Store, "read", lambda *_: pytest.fail("a shard was read"))
    assert ShuffledReader(store, "row", 8).rows == len(eligible("train"))
