"""Readers of one store share its rows: sixty runs that train together would read and hold it sixty times otherwise."""

import gc
import shutil
from pathlib import Path

import pytest
import torch

from activations.rows import Split
from activations.shuffle import ShuffledReader, sample
from activations.store import Store

ROWS = 64


def reader(store: Store, seed: int = 0, split: Split = "train") -> ShuffledReader:
    return ShuffledReader(store, store.only_hook(), 8, seed=seed, split=split)


def test_readers_of_one_store_share_its_rows_and_those_of_other_rows_do_not(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(
        world / "store", tmp_path / "store"
    )  # other tests' readers may still hold the rows of the world's
    store, numbers, read = Store(tmp_path / "store"), [], Store.read
    monkeypatch.setattr(
        Store, "read", lambda self, number, hooks: numbers.append(number) or read(self, number, hooks)
    )
    first = reader(store)
    kept = sample(first, ROWS).x
    assert len(numbers) == len(store.shards)
    other = sample(reader(Store(store.path), seed=1), ROWS).x
    assert len(numbers) == len(store.shards), "another seed reads nothing more"
    assert not torch.equal(kept, other)
    held_out = sample(reader(store, split="held-out"), ROWS).x
    assert len(numbers) == 2 * len(store.shards)
    assert not torch.equal(kept[:8], held_out[:8])
    del first
    gc.collect()
    assert torch.equal(sample(reader(store), ROWS).x, kept)
    assert len(numbers) == 3 * len(store.shards), "rows that no reader needs are not kept"
