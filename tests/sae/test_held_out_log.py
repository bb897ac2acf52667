"""What a run measures on held-out rows while it trains: the numbers of `sae evaluate`, at no cost to the weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from activations.errors import ConfigError
from activations.rows import is_held_out
from activations.shuffle import ShuffledReader
from activations.store import Store
from activations.streaming.reader import StoredShards, StreamReader
from sae.architectures import ArchConfig, BatchTopKConfig, JumpReLUConfig, TopKConfig
from sae.config import RunConfig, TrainConfig, from_json, to_json
from sae.evaluation.held_out import held_out_rows, reconstruction
from sae.runs.run import Run
from sae.workflows.train import train
from tests import tiny

COLUMNS = ("held_out_fvu", "held_out_l0")
# A batch has more rows than the toy world's store has held-out ones: the sample is then all of them.
SETTINGS = TrainConfig(steps=24, batch=512, lr=3e-3, log_every=5, held_out_every=10)


def trained(world: Path, out: Path, arch: ArchConfig, settings: TrainConfig = SETTINGS) -> Run:
    return train(RunConfig(str(world / "store"), arch=arch, train=settings), out)


@pytest.mark.parametrize(
    ("arch", "ema"),
    [
        (TopKConfig(d_sae=32, k=4), None),
        (TopKConfig(d_sae=32, k=4), 0.8),
        (BatchTopKConfig(d_sae=32, k=4), None),
        (JumpReLUConfig(d_sae=32), None),
    ],
)
def test_the_last_row_has_what_evaluate_finds(
    world: Path, tmp_path: Path, arch: ArchConfig, ema: float | None
):
    run = trained(world, tmp_path / "run", arch, replace(SETTINGS, ema=ema))
    assert 2 < held_out_rows(run.store) < SETTINGS.batch
    measured = reconstruction(run.sae(), run.store, run.hook)["estimates"]
    last = run.log[-1]
    assert last["held_out_fvu"] == pytest.approx(measured["fvu"]["value"], rel=1e-5)
    assert last["held_out_l0"] == pytest.approx(measured["l0"]["value"], rel=1e-5)
    assert [row["step"] for row in run.log if "held_out_fvu" in row] == [10, 20, 24]


def test_measuring_changes_no_weight_and_no_other_number_of_the_log(world: Path, tmp_path: Path):
    arch = TopKConfig(d_sae=32, k=4)
    off, on = (
        trained(world, tmp_path / f"{every}", arch, replace(SETTINGS, held_out_every=every))
        for every in (0, 1)
    )
    assert off.digest == on.digest
    assert all(not {*COLUMNS} & row.keys() for row in off.log)
    assert all({*COLUMNS} <= row.keys() for row in on.log)
    others = [
        [
            {k: v for k, v in row.items() if k not in (*COLUMNS, "seconds", "tokens_per_second")}
            for row in run.log
        ]
        for run in (off, on)
    ]
    assert others[0] == others[1]


def test_the_sample_is_of_held_out_rows_from_all_over_the_first_shards(world: Path):
    store = Store(world / "store")
    every = torch.cat([x for x, *_ in store.batches(tiny.HOOK, 64, "held-out")])
    whole = ShuffledReader(store, tiny.HOOK, 64)
    assert whole.shards_per_group == len(store.shards)
    assert 8 * 40 > len(every) > 8 * 16
    assert torch.equal(whole.held_out(40), every[torch.arange(40) * len(every) // 40])
    fewer = whole.held_out(16)  # of the first shards that hold eight times as many
    assert len(fewer) == len(fewer.unique(dim=0)) == 16
    assert len(torch.cat([every, fewer]).unique(dim=0)) == len(every.unique(dim=0))
    assert torch.equal(whole.held_out(10_000), every)
    # In the order of the text, the sample is of the first group, which a stream has before it begins.
    first = store.read(0, (tiny.HOOK,))
    assert is_held_out(first.documents).any()
    of_first = first.rows(tiny.HOOK, store.rows(first, "held-out").flatten().nonzero()[:, 0])
    text_order = StreamReader(StoredShards(store), tiny.HOOK, 64, shuffle_tokens=1)
    assert torch.equal(text_order.held_out(10_000), of_first)


def test_the_setting_is_left_out_of_run_json_unless_it_is_set():
    """A release before it refuses a run whose settings name it."""
    assert "held_out_every" not in to_json(RunConfig())["train"]
    changed = RunConfig(train=TrainConfig(held_out_every=7))
    assert from_json(json.loads(json.dumps(to_json(changed)))) == changed
    with pytest.raises(ConfigError, match=r"train\.held_out_every = -1"):
        TrainConfig(held_out_every=-1)
