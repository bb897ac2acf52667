"""Reading in the order of the text: every training row once per pass, shuffled within its group, resumable anywhere."""

import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations.disk import files
from activations.errors import HarvestError, StoreError
from activations.parallel.threads import BackgroundWriter
from activations.shuffle import Cursor, sample
from activations.store import Store
from activations.streaming.folder import RingFolder, StreamConfig
from activations.streaming.producer import Job, Producers, _has_room, visible
from activations.streaming.reader import StoredShards, StreamReader
from activations.streaming.ring import devices_of
from tests.activations.test_shuffle import CONTEXT, PER_SHARD, eligible, store, take, through_json
from tests.activations.toys import LAWS

__all__ = ["store"]
GROUPS = {"one shard": 1, "two shards": 2 * PER_SHARD * CONTEXT, "more than all": 10_000}
READERS = st.fixed_dictionaries(
    {
        "shuffle_tokens": st.sampled_from([*GROUPS.values()]),
        "seed": st.integers(0, 3),
        "batch": st.sampled_from([2, 8, 13]),
        "prefetch": st.just(0),  # test_shuffle.py has shown that reading ahead changes nothing
    }
)


def reader(store: Store, **settings) -> StreamReader:
    return StreamReader(StoredShards(store), "row", **{"batch": 8, "shuffle_tokens": 1, **settings})


def numbers_of(stream: StreamReader, count: int) -> list[int]:
    """The numbers of the first `count` rows that a reader yields; a row's first activation is its number."""
    batches = islice(iter(stream), -(-count // stream.batch))
    return [int(x) for batch in batches for x in batch.x[:, 0]][:count]


@LAWS
@given(READERS)
def test_every_pass_yields_every_training_row_once_in_the_order_of_groups(store: Store, settings: dict):
    rows, stream = eligible("train"), reader(store, **settings)
    shards, per_group = len(store.shards), stream.shards_per_group
    by_shard = [[row for row in rows if row // (CONTEXT * PER_SHARD) == shard] for shard in range(shards)]
    # The sequence of shards begins again when it ends, so that a group may hold the end of one pass and the next one's start
    groups = [
        Counter(row for at in range(first, first + per_group) for row in by_shard[at % shards])
        for first in range(0, 3 * shards, per_group)
    ]
    found = numbers_of(stream, sum(group.total() for group in groups))
    for group in groups:
        assert Counter(found[: group.total()]) == group
        found = found[group.total() :]


def test_rows_are_shuffled_within_their_group_by_the_seed(store: Store):
    orders = {seed: numbers_of(reader(store, seed=seed), 12) for seed in (0, 1)}
    assert sorted(orders[0]) != orders[0] != orders[1]


@LAWS
@given(READERS, st.integers(0, 40))
def test_a_restored_reader_goes_on_where_the_other_was(store: Store, settings: dict, before: int):
    one, other = reader(store, **settings), reader(store, **settings)
    take(one, before)
    state = through_json(one.state())
    wanted = take(one, 12)
    other.restore(state)
    assert take(other, 12) == wanted


def test_a_reader_with_other_groups_is_not_resumed(store: Store):
    state = reader(store, shuffle_tokens=1).state()
    with pytest.raises(StoreError, match="shards_per_group = 1"):
        reader(store, shuffle_tokens=2 * PER_SHARD * CONTEXT).restore(state)


def test_a_sample_stays_within_the_first_group_and_does_not_move_the_cursor(store: Store):
    stream = reader(store)
    rows = {int(x) for x in sample(stream, 10**6).x[:, 0]}
    assert rows <= set(eligible("train")[: stream.first_rows])
    assert stream.cursor == Cursor()


def test_the_scale_is_that_of_the_first_groups_training_rows(store: Store):
    stream = reader(store)
    rows = torch.tensor(eligible("train")[: stream.first_rows], dtype=torch.float64)
    assert stream.mean_square_norm() == pytest.approx(float((rows**2 + 0.25).mean()), rel=1e-12)


class Recorded(StoredShards):
    """A sequence of shards that records what it is told."""

    def __init__(self, store: Store):
        super().__init__(store)
        self.asked: list[int] = []
        self.passed: list[int] = []

    def shard(self, number, hooks):
        self.asked.append(number)
        return super().shard(number, hooks)

    def pass_to(self, number):
        self.passed.append(number)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_shards_are_asked_for_once_and_passed_only_when_their_rows_are_used(store: Store, prefetch: int):
    shards = Recorded(store)
    stream = StreamReader(shards, "row", 8, shuffle_tokens=1, prefetch=prefetch)
    for _ in islice(iter(stream), 60):
        assert all(number <= stream.cursor.epoch for number in shards.passed)
    assert shards.asked == list(range(len(shards.asked)))
    assert shards.passed == list(range(1, stream.cursor.epoch + 1))


def test_a_text_without_training_rows_is_refused(store: Store):
    class Empty(StoredShards):
        def __init__(self, store: Store):
            super().__init__(store)
            self.rows = lambda shard, *_: torch.zeros(shard.tokens.shape, dtype=torch.bool)

    with pytest.raises(StoreError, match="one document in ten is held out"):
        next(iter(StreamReader(Empty(store), "row", 8, shuffle_tokens=1)))


def test_a_producer_that_prints_much_is_not_blocked_and_its_error_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a function for `--labels` may print, or a library at its import."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'activations.streaming.producer' in sys.orig_argv:\n"
        "    print('hello')\n"
        "    import atexit, os\n"
        "    atexit.register(lambda: os.write(1, b'bye ' * 2**16))\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    stream = StreamConfig(str(tmp_path / "nowhere"), model_dtype="float32")
    producers = Producers([Job(stream, "a.hook", None, str(tmp_path / "ring"), 10**6, 0, 1, "cpu", 1)])
    ends = time.monotonic() + 30

    def wait() -> None:
        while time.monotonic() < ends:
            producers.check()
            time.sleep(0.05)

    with pytest.raises(HarvestError, match="nowhere"):
        wait()
    producers.close()


@pytest.mark.parametrize("of", [1, 2])
def test_a_producer_notices_a_trainer_that_goes_back_by_the_shards_that_are_gone(tmp_path: Path, of: int):
    """Between two looks at the trainer's number it may have risen, shards may have been deleted, and it may have fallen again."""
    ring, room = RingFolder(tmp_path), 4
    job = Job(StreamConfig(), "a.hook", None, str(tmp_path), 10**6, 0, of, "cpu", 1)

    def write(number: int) -> None:
        files.write_json(ring.note_path(number), {})

    ring.shards.mkdir()
    for number in range(6, 10):
        write(number)
    with BackgroundWriter() as background:
        ring.need_from(0, 7)
        assert _has_room(ring, job, 10, room, background)
        assert not ring.note_path(6).exists(), "what nobody needs any more has been deleted"
        ring.need_from(0, 8)  # seen by another producer only, which deletes shard 7
        ring.forget()
        ring.need_from(0, 6 if of == 2 else 7)
        assert not _has_room(ring, job, 10, room, background), "a shard that is needed again is gone"
        ring.need_from(0, 8)
        assert _has_room(ring, job, 10, room, background)
        ring.need_from(0, 10)
        background.submit(lambda: (time.sleep(0.2), write(10)))
        assert _has_room(ring, job, 10 + of, room, background), "a shard that is being written is not gone"
        assert not ring.note_path(8).exists()


def test_producers_take_the_gpus_that_no_trainer_uses_and_share_them_where_they_spread_a_model(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert devices_of(3, "bridge") == [("cuda:1", ()), ("cuda:2", ()), ("cuda:3", ())]
    assert devices_of(2, "transformers") == [("cuda:0", (1, 3)), ("cuda:0", (2, 4))]
    assert devices_of(1, "transformers") == [("cuda:0", (1, 2, 3, 4))]
    assert [gpus for _, gpus in devices_of(6, "transformers")] == [(1,), (2,), (3,), (4,), (1,), (2,)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices_of(1, "transformers") == [("cuda:0", (0,))], "the trainer's own, where there is no other"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_of(2, "transformers") == [("cpu", ())] * 2


def test_a_producer_s_gpus_are_named_as_its_trainer_sees_them():
    assert visible((1, 3), None) == ["1", "3"]
    assert visible((0, 2), "4,5, GPU-8932f937") == ["4", "GPU-8932f937"]
