"""What a ring is opened with: all that its runs, their kept stores and the ring before it hold; and what is refused."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activations.errors import ConfigError, HarvestError
from activations.store import Store, StoreSpec
from activations.store_writer import StoreWriter
from activations.streaming.folder import RingFolder, StreamConfig
from activations.streaming.reader import planned_rows
from activations.streaming.ring import Ring
from activations.tokens import PackingConfig
from sae.architectures import AdaptiveKConfig, TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.runs.run import STORE
from sae.workflows import rings
from sae.workflows.rings import RingSettings, open_ring
from sae.workflows.training import resolve
from tests.tiny import HOOK

OTHER = "blocks.0.hook_resid_post"
STREAM = StreamConfig("model", tokens=4000, packing=PackingConfig(context=16), shard_tokens=512)


def config(hook: str | None = HOOK, batch: int = 64, **changes: Any) -> RunConfig:
    train = TrainConfig(steps=10, batch=batch)
    return RunConfig(
        "",
        arch=TopKConfig(d_sae=32, k=4),
        hook=hook,
        stream=STREAM,
        train=train,
        shuffle_tokens=512,
        **changes,
    )


@pytest.fixture
def spec(world: Path) -> StoreSpec:
    made = Store(world / "store").spec
    return replace(made, packing=PackingConfig(context=16), windows_per_shard=32)


class Opened:
    """In place of a ring: no producer is started."""

    made: dict[str, Any]

    def __init__(self, spec: StoreSpec):
        self.spec, self.closed = spec, False

    def __call__(self, *_: Any, **settings: Any) -> "Opened":
        self.made = settings
        return self

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, spec: StoreSpec) -> Opened:
    one = Opened(spec)
    monkeypatch.setattr(rings, "Ring", one)
    return one


def both(spec: StoreSpec, labels: str | None = None) -> StoreSpec:
    return replace(spec, hooks=dict.fromkeys((OTHER, HOOK), 16), labels=labels)


def test_a_run_that_is_left_of_a_sweep_opens_the_ring_with_the_hooks_and_labels_of_all(
    opened: Opened, spec: StoreSpec, tmp_path: Path
):
    for place in (tmp_path / "run" / STORE, RingFolder(RingSettings().path(tmp_path)).shards):
        StoreWriter(place, both(spec, "surprise"))
    open_ring({tmp_path / "run": config()}, tmp_path, RingSettings())
    assert opened.made["hooks"] == f"{OTHER},{HOOK}"
    assert opened.made["labels"] == "surprise"


def test_a_run_that_is_added_to_an_interrupted_sweep_has_the_ring_made_anew(
    opened: Opened, spec: StoreSpec, tmp_path: Path
):
    ring = RingFolder(RingSettings().path(tmp_path))
    StoreWriter(ring.shards, replace(spec, hooks={HOOK: 16}))
    open_ring({tmp_path / "old": config(), tmp_path / "new": config(OTHER)}, tmp_path, RingSettings())
    assert ring.spec() is None
    assert opened.made["hooks"] == f"{HOOK},{OTHER}"


def test_a_run_that_keeps_other_hooks_than_a_new_one_reads_is_told_before_anything_is_made(
    opened: Opened, spec: StoreSpec, tmp_path: Path
):
    StoreWriter(tmp_path / "old" / STORE, replace(spec, hooks={HOOK: 16}))
    runs = {tmp_path / "old": config(), tmp_path / "new": config(OTHER)}
    with pytest.raises(ConfigError, match="old keeps activations at .* finish it first"):
        open_ring(runs, tmp_path, RingSettings())
    assert not hasattr(opened, "made")
    adaptive = replace(config(), arch=AdaptiveKConfig(d_sae=32, k_min=2, k_max=8))
    with pytest.raises(ConfigError, match="labels None"):
        open_ring({tmp_path / "old": config(), tmp_path / "new": adaptive}, tmp_path, RingSettings())


@pytest.mark.parametrize(("batch", "positions"), [(300, "all"), (20, "last")])
def test_a_batch_that_may_not_fit_into_a_shuffle_group_is_refused(
    opened: Opened, tmp_path: Path, batch: int, positions: Any
):
    """Reading it would use up more of the ring than there is, and the trainer would wait for shards that nobody makes again."""
    with pytest.raises(ConfigError, match=f"train.batch = {batch}: .*--shuffle-tokens"):
        open_ring({tmp_path: config(batch=batch, positions=positions)}, tmp_path, RingSettings())
    assert opened.closed


class Filled(Ring):
    """A ring whose shards nobody makes."""

    def __init__(self, folder: Path, spec: StoreSpec):
        self._folder, self._stream, self.spec, self._first = RingFolder(folder), STREAM, spec, 0
        self._capacity, self._closed, self._producers, self._told, self._kept = 3, False, None, False, {}
        self._lock = threading.Lock()


def test_a_shard_that_made_room_for_later_ones_is_not_waited_for(spec: StoreSpec, tmp_path: Path):
    ring = Filled(tmp_path, spec)
    ring._first = 5
    with pytest.raises(HarvestError, match="shard 4 of the stream is needed again"):
        ring.shard(4, (HOOK,))


def test_steps_that_are_left_out_do_not_change_when_the_text_turns_out_to_be_shorter(
    spec: StoreSpec, tmp_path: Path
):
    ring = Filled(tmp_path, replace(spec, hooks={HOOK: 16}))
    ring._folder.shards.mkdir(parents=True)
    cfg = replace(config(), train=TrainConfig(batch=64))
    before, _ = resolve(cfg, ring)
    ring._folder.set_text(2, ended=True)
    assert ring.shards_per_pass == 2
    assert resolve(cfg, ring)[0] == before


def test_a_run_on_last_positions_counts_a_row_a_window(spec: StoreSpec):
    assert planned_rows(spec, 10, "last") == int(0.9 * 10 * 32)
    assert planned_rows(spec, 10, "all") == int(0.9 * 10 * 32 * 15)
