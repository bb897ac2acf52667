"""The loop, the schedule, checkpoints: counts, exact resumption, usable mid-run SAEs."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from activations import precision
from activations.errors import ConfigError, DivergedError, RunError, StoreError
from sae.architectures import JumpReLUConfig, TopKConfig, build
from sae.config import RunConfig, TrainConfig, from_json, peak_rate, to_json
from sae.kernels import SingleProcess
from sae.runs.run import Run
from sae.runs.saved_sae import load_sae, read_log
from sae.training.loggers import JsonLines
from sae.training.optimizer import warmup_then_decay
from sae.training.trainer import Trainer, fit
from sae.workflows.train import train
from tests.tiny import train_until

SETTINGS = TrainConfig(steps=20, batch=64, lr=3e-3, log_every=4, checkpoint_minutes=0.1, keep_checkpoints=2)


def config(world: Path, **changes) -> RunConfig:
    return RunConfig(store=str(world / "store"), arch=TopKConfig(d_sae=32, k=4), train=SETTINGS, **changes)


def trainer(**changes) -> Trainer:
    settings = TrainConfig(
        **{"steps": 8, "batch": 4, "lr": 1e-2, "warmup_steps": 0, "dead_after_tokens": 12, **changes}
    )
    return Trainer(build(TopKConfig(d_sae=6, k=2), 3), settings)


def batches(n: int = 4):
    for seed in itertools.count():
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
        yield x, x


def test_the_schedule_rises_holds_and_falls_and_is_never_zero():
    multiple = warmup_then_decay(steps=100, warmup_steps=10, decay_share=0.2)
    values = [multiple(step) for step in range(100)]
    assert_close(values[:10], [(i + 1) / 10 for i in range(10)])
    assert set(values[10:80]) == {1.0}
    assert all(a > b > 0 for a, b in itertools.pairwise(values[80:]))
    assert_close(values[-1], 1 / 21)


def test_without_warmup_and_decay_the_rate_is_constant():
    multiple = warmup_then_decay(10, 0, 0.0)
    assert {multiple(step) for step in range(10)} == {1.0}


@pytest.mark.parametrize("faster", ["bfloat16", "float32"])
def test_the_precision_is_measured_once_and_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
):
    monkeypatch.setattr(precision, "faster", lambda width, inner: (getattr(torch, faster), 2.0))
    run = train(config(world), tmp_path / "run")
    assert run.config.train.precision == faster
    assert ("precision" in json.loads((tmp_path / "run" / "run.json").read_text())["config"]["train"]) == (
        faster == "bfloat16"
    )
    monkeypatch.setattr(precision, "faster", lambda width, inner: 1 / 0)
    assert train(config(world), tmp_path / "run", resume=True).config == run.config


def test_low_precision_products_change_a_run_a_little():
    # so many rows that some lie within rounding of a tie, however a processor sums the products
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    exact, low = trainer(), trainer(precision="bfloat16")
    for made in (exact, low):
        made.train_step(x, x)
        made.train_step(x, x)
    assert not torch.equal(exact.sae.W_dec, low.sae.W_dec)
    assert_close(exact.sae.W_dec, low.sae.W_dec, rtol=0, atol=0.05)


def test_silence_is_counted_in_tokens_and_broken_by_firing():
    made = trainer()
    with torch.no_grad():
        made.sae.b_enc[1] = -100.0  # never fires
    stream = batches()
    for step in range(1, 4):
        loss, extra = made.train_step(*next(stream))
        assert made.history.silent_tokens[1] == 4 * step
        assert (made.history.silent_tokens[loss.fired] == 0).all()
        assert extra["dead"] == 0
    silent = made.history.silent_tokens.clone()
    _, extra = made.train_step(*next(stream))
    assert extra["dead"] == int((silent >= 12).sum()) >= 1


def test_a_loss_that_is_not_finite_stops_before_the_weights_move():
    made = trainer()
    before = made.sae.W_enc.detach().clone()
    x = torch.full((4, 3), float("inf"))
    with pytest.raises(DivergedError, match=r"step 0.*sae store verify") as raised:
        made.train_step(x, x)
    assert "--train.lr" not in str(raised.value), "no step has been taken yet"
    assert torch.equal(made.sae.W_enc, before)


def test_the_loop_logs_every_so_often_and_at_the_end_and_saves_last():
    made, rows, saves = trainer(steps=7, log_every=3), [], []
    assert fit(made, batches(), log=rows.append, save=lambda: saves.append(made.step))
    assert [row["step"] for row in rows] == [3, 6, 7]
    assert {"tokens", "seconds", "tokens_per_second", "loss", "fvu", "l0", "lr", "grad_norm", "dead"} <= rows[
        0
    ].keys()
    assert [row["tokens"] for row in rows] == [12, 24, 28]
    assert saves == [7]


class Clock:
    """A clock on which a step takes `step` seconds and writing a checkpoint what `saves` says next."""

    def __init__(self, made: Trainer, step: float, saves: Iterator[float]):
        self.made, self.step, self.saves = made, step, saves
        self.saving, self.saved_at = 0.0, []

    def __call__(self) -> float:
        return 1000 + self.made.step * self.step + self.saving

    def save(self) -> None:
        self.saved_at.append(self.made.step)
        self.saving += next(self.saves)


PACES = {
    "every half minute": (0.5, [0.5] * 7, [3, 6, 9, 12, 15, 18, 20]),
    "twenty times as long as the last one took": (0.5, [4.0, 0.1, 9.0, 0.0], [3, 11, 14, 20]),
    "after every step, however long it takes": (0, [1e6] * 20, [*range(1, 21)]),
    "at the end alone": (10, [1.0], [20]),
}


@pytest.mark.parametrize(("minutes", "saves", "steps"), PACES.values(), ids=PACES)
def test_checkpoints_come_by_time(minutes: float, saves: list[float], steps: list[int]):
    made = trainer(steps=20, checkpoint_minutes=minutes)
    clock = Clock(made, step=10.0, saves=iter(saves))
    assert fit(made, batches(), log=lambda row: None, save=clock.save, clock=clock)
    assert clock.saved_at == steps


@pytest.mark.parametrize("each", [0.1, 9.0])
def test_checkpoints_take_a_twentieth_of_the_time_at_most_however_slow_the_disk(each: float):
    made = trainer(steps=60, checkpoint_minutes=1e-3)
    clock = Clock(made, step=10.0, saves=itertools.repeat(each))
    fit(made, batches(), log=lambda row: None, save=clock.save, clock=clock)
    between = [10.0 * (later - earlier) for earlier, later in itertools.pairwise(clock.saved_at[:-1])]
    assert 20 * each <= min(between) <= max(between) <= 20 * each + 10


class Another(SingleProcess):
    """Two ranks: this one, and one that wants to go on or not and finds a checkpoint due or not."""

    def __init__(self, go_on: bool, due: bool):
        self.wishes = torch.tensor([go_on, due], dtype=torch.int32)

    def least(self, value: torch.Tensor) -> torch.Tensor:
        return torch.minimum(value, self.wishes)


@pytest.mark.parametrize(
    ("another", "saves", "finished"),
    [
        (Another(True, False), [8], True),
        (Another(True, True), [*range(1, 9)], True),
        (Another(False, True), [1], False),
    ],
)
def test_all_ranks_stop_when_one_does_and_save_when_each_finds_it_time(
    another: Another, saves: list[int], finished: bool
):
    made, saved_at = trainer(checkpoint_minutes=0), []
    made.ranks = another
    assert fit(made, batches(), log=lambda row: None, save=lambda: saved_at.append(made.step)) == finished
    assert saved_at == saves


def test_asked_to_stop_it_saves_and_says_it_is_not_done():
    made, saves = trainer(), []
    assert not fit(
        made,
        batches(),
        log=lambda row: None,
        save=lambda: saves.append(made.step),
        stop=lambda: made.step == 3,
    )
    assert saves == [3]


def test_what_is_left_out_follows_from_the_data_and_the_dictionary():
    resolved = TrainConfig().resolved(rows=100_000, arch=TopKConfig(d_sae=2**14))
    assert (resolved.steps, resolved.lr, resolved.warmup_steps) == (2000, peak_rate(2**14, 2000), 100)
    assert resolved.dead_after_tokens == 2000 * 2048 // 10
    big = TrainConfig().resolved(rows=10**9, arch=TopKConfig(d_sae=2**16))
    assert (big.steps, big.lr, big.dead_after_tokens) == (10**9 // 2048, 1e-4, 10_000_000)
    assert resolved.resolved(rows=5, arch=TopKConfig(d_sae=9, k=2)) == resolved


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"decay_share": 1.5}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"train.{next(iter(wrong))}"):
        TrainConfig(**wrong)


def test_a_config_survives_json():
    cfg = RunConfig(store="s", arch=TopKConfig(d_sae=64, k=8), train=SETTINGS, loggers=("wandb",))
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg
    older = json.loads(json.dumps(to_json(cfg)))
    older["train"]["checkpoint_every"] = 500  # steps, before checkpoints came by time
    del older["train"]["checkpoint_minutes"]
    assert from_json(older) == replace(cfg, train=replace(SETTINGS, checkpoint_minutes=10.0))
    with pytest.raises(RunError, match="no_such"):
        from_json({**older, "train": {"no_such": 1}})
    with pytest.raises(RunError, match="'nosuch' is unknown"):
        from_json({**to_json(cfg), "architecture": "nosuch"})


def test_stopped_at_any_step_and_resumed_the_weights_are_the_very_same_bits(world, tmp_path, monkeypatch):
    whole = train(config(world), tmp_path / "whole")
    for stop_at in (1, 6, 13):
        out = tmp_path / f"stopped-{stop_at}"
        train_until(config(world), out, stop_at, monkeypatch)
        assert not Run(out).finished
        again = train(config(world), out, resume=True)
        for name in (
            "sae.safetensors",
            "latents.safetensors",
            "checkpoints/step-00000020/training.safetensors",
        ):
            assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), (stop_at, name)
        assert whole.history is not None
        assert whole.history["times_died"].sum() > 0  # or the history would have nothing to get wrong
        assert [row["died"] for row in again.log] == [row["died"] for row in whole.log]
        assert [row["step"] for row in again.log] == [row["step"] for row in whole.log]
        assert [row["loss"] for row in again.log] == [row["loss"] for row in whole.log]


def test_a_free_decoder_is_saved_with_unit_rows_and_resumes_with_the_very_same_bits(
    world, tmp_path, monkeypatch
):
    cfg = replace(config(world), arch=JumpReLUConfig(d_sae=32, loss_form="tanh"))
    whole = train(cfg, str(tmp_path / "whole"))  # as notebooks name folders
    train_until(cfg, tmp_path / "stopped", 13, monkeypatch)
    assert_close(Run(tmp_path / "stopped").sae().W_dec.norm(dim=1), torch.ones(32))
    again = train(cfg, tmp_path / "stopped", resume=True)
    for name in ("sae.safetensors", "checkpoints/step-00000020/training.safetensors"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_mid_run_checkpoint_is_an_sae_of_raw_activations(world, tmp_path, monkeypatch):
    train_until(config(world), tmp_path / "run", 13, monkeypatch)
    run = Run(tmp_path / "run")
    sae = run.sae()
    assert run.record.input_scale != 1
    hook = run.hook
    x = torch.cat([batch for batch, *_ in run.store.batches(hook, 512)])
    fvu = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.8
    assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_only_the_newest_checkpoints_are_kept(world, tmp_path):
    run = train(config(world), tmp_path / "run")
    assert [path.name for path in run.checkpoints] == ["step-00000018", "step-00000020"]


def test_what_a_killed_checkpoint_left_goes_with_the_next_one_whatever_its_step(world, tmp_path):
    run = train(config(world), tmp_path / "run")
    before, last = run.checkpoints
    (run.path / "sae.json").unlink()  # as if it had not finished
    last.rename(last.with_name("step-00000019.part"))
    assert run.checkpoints == [before]
    train(config(world), run.path, resume=True)
    assert sorted((run.path / "checkpoints").iterdir()) == [before, last]


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings_or_another_store(world, tmp_path):
    train(config(world), tmp_path / "run")
    before = (tmp_path / "run/sae.safetensors").read_bytes()
    with pytest.raises(RunError, match="finished run"):
        train(config(world), tmp_path / "run")
    other = RunConfig(store=str(world / "store"), arch=TopKConfig(d_sae=16, k=4), train=SETTINGS)
    with pytest.raises(RunError, match="other settings \\(arch\\)"):
        train(other, tmp_path / "run", resume=True)
    about = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**about, "store_fingerprint": "0"}))
    with pytest.raises(StoreError, match="another store"):
        train(config(world), tmp_path / "run", resume=True)
    assert (tmp_path / "run/sae.safetensors").read_bytes() == before


def test_a_damaged_or_newer_sae_is_refused_by_name(world, tmp_path):
    run = train(config(world), tmp_path / "run")
    weights = run.path / "sae.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError, match=r"sae\.safetensors is damaged"):
        load_sae(run.path)
    about = json.loads((run.path / "sae.json").read_text())
    (run.path / "sae.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(RunError, match="format 99"):
        load_sae(run.path)


def test_the_run_folder_tells_what_made_it(world, tmp_path):
    run = train(config(world), tmp_path / "run")
    assert run.config.train.warmup_steps == 1  # what was left out is filled in
    assert run.record.store_fingerprint == run.store.fingerprint
    assert {"torch", "transformer-lens", "safetensors"} <= run.record.versions.keys()
    assert [row["step"] for row in run.log] == [4, 8, 12, 16, 20]


def test_resuming_a_log_drops_rows_after_the_checkpoint_and_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = JsonLines(path, resume_at=2)
    log.log({"step": 3, "loss": 0.5})
    log.close()
    assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]
