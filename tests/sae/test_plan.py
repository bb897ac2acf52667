"""`sae plan`: work equals closed forms and the shapes of real runs, parts add up, and jobs that do not fit are refused."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from torch.testing import assert_close

from activations.disk.files import size_text
from activations.shuffle import ShuffledReader
from sae.architectures import (
    ARCHITECTURES,
    GBAConfig,
    KronConfig,
    MatryoshkaConfig,
    MFRConfig,
    TopKConfig,
    build,
)
from sae.config import TrainConfig
from sae.plan import rates, training
from sae.plan.forecast import Forecast, active, count, duration, total
from sae.plan.rates import FAR, GPUS, NEAR, Machine, Rates
from sae.plan.training import Data, Job, step_seconds
from tests.tiny import HOOK
from tests.tiny import store as tiny_store

B, D, F, K = 2048, 768, 65_536, 32
UNIT = Rates(**dict.fromkeys(Rates.__dataclass_fields__, 1.0))


def machine(memory: float, **changes: float) -> Machine:
    return Machine("a machine", replace(GPUS["h100"].rates, **changes), int(memory), measured="here")


def data(rows: int = 10**5, width: int = D) -> Data:
    return Data(width, rows, row=2 * width, shard_rows=30_000)


def job(**changes) -> Job:
    return Job(
        **{"arch": TopKConfig(d_sae=F), "train": TrainConfig(steps=1000, batch=B), "data": data(), **changes}
    )


def test_topk_is_one_dense_product_and_four_readings_of_its_rows():
    """Encoding takes 2 B d F operations, B F numbers are searched, rows are read four times, 2 F d + F + d parameters."""
    work = count(TopKConfig(d_sae=F, k=K), D, B, K)
    assert work.encode == 2 * B * D * F
    assert (work.scanned, work.picked, work.products) == (B * F, B * K, 0)
    assert work.gathered == 4 * B * K * D * 4
    assert work.parameters == 2 * F * D + F + D
    assert work.dense == 2**24  # one block, not B F = 2^27
    assert work.weights == 8 * 4 * F * D  # read once for each of the eight blocks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_counted_with_the_parameters_it_trains(name):
    cfg = ARCHITECTURES[name].config(d_sae=512)
    work = count(cfg, 16, 64, active(cfg).value)
    assert work.parameters == sum(p.numel() for p in build(cfg, 16).parameters())
    seconds = step_seconds(work, GPUS["h200"].rates)
    assert all(0 < value < inf for value in seconds.values())


def test_kron_and_mfr_and_matryoshka_differ_from_topk_as_they_should():
    topk = count(TopKConfig(d_sae=8192), D, B, K)
    kron = count(KronConfig(d_sae=8192, m=2, n=4), D, B, K)
    assert_close(
        kron.encode / topk.encode, 6 / 8, rtol=2e-3, atol=0
    )  # (m + n) / (m n), and the products of pairs
    mfr = count(MFRConfig(d_sae=8192, peers=3), D, B, K)
    assert mfr.encode == 3 * topk.encode
    assert mfr.matched == 3 * 8192  # three pairs
    assert count(MatryoshkaConfig(d_sae=8192), D, B, K).gathered > topk.gathered
    assert count(MatryoshkaConfig(d_sae=8192, prefixes=(1.0,)), D, B, K).gathered == topk.gathered


def test_time_is_work_over_rate():
    work = count(TopKConfig(d_sae=4096), D, B, K)
    parts = step_seconds(work, UNIT)
    assert parts["encode"] == work.encode + work.weights
    assert parts["optimizer"] == work.parameters
    twice = step_seconds(work, replace(UNIT, selecting_flops=2.0, weights=2.0))
    assert twice == {**parts, "encode": parts["encode"] / 2}
    assert step_seconds(work, replace(UNIT, selecting_flops=2.0), precision="float32") == parts


def test_rows_are_gathered_at_a_rate_between_those_measured():
    found = replace(UNIT, gather_near=16.0, gather_far=4.0)
    assert [found.gather(n) for n in (1, NEAR, FAR, 10 * FAR)] == pytest.approx([16, 16, 4, 4])
    assert found.gather((NEAR * FAR) ** 0.5) == pytest.approx(8)


def test_dead_latents_cost_and_nothing_else_changes():
    alive, some = (step_seconds(count(TopKConfig(d_sae=F), D, B, K, dead), UNIT) for dead in (0.0, 0.1))
    assert some.pop("dense gradients") == pytest.approx(6 * 2 * B * D * F * 0.1)
    assert some == alive


@pytest.mark.parametrize(
    ("d", "latents", "batch", "milliseconds"),
    [
        (768, 65_536, 8192, 2.59),
        (768, 2**18, 8192, 10.0),
        (768, 2**20, 32_768, 115),
        (2304, 65_536, 8192, 7.32),
    ],
)
def test_an_h200_is_as_the_roofline_has_it(d, latents, batch, milliseconds):
    """Compare with a roofline model of unfused sparse kernels, without launches and the loss."""
    parts = step_seconds(count(TopKConfig(d_sae=latents), d, batch, K), GPUS["h200"].rates)
    assert 1e3 * (total(parts) - parts["loss and the rest"]) == pytest.approx(milliseconds, rel=0.15)


def planned(job: Job, found: Machine) -> Forecast:
    return training.forecast(job, found, Path())


def test_memory_grows_by_sixteen_bytes_a_parameter_and_one_reused_buffer():
    at = {}
    for latents in (F, 2 * F):
        at[latents] = total(planned(job(arch=TopKConfig(d_sae=latents)), machine(1e12)).memory)
    parameters = 2 * F * D + F
    assert at[2 * F] - at[F] == pytest.approx(
        (16 + 8) * parameters, rel=0.02
    )  # the 8 are copies while saving


@pytest.mark.parametrize("parallel", ["latents", "data"])
def test_ranks_share_the_latents_or_each_batch(parallel):
    one, four = (planned(job(ranks=n, parallel=parallel), machine(1e12)) for n in (1, 4))
    split = parallel == "latents"
    assert four.memory["optimizer"] == pytest.approx(one.memory["optimizer"] / (4 if split else 1), rel=1e-3)
    for part in ("encode", "selection", "sparse part"):
        assert four.seconds[part] < one.seconds[part]
    assert (four.seconds["optimizer"] < one.seconds["optimizer"]) == split
    assert four.disk == pytest.approx(one.disk, rel=1e-3)
    assert four.seconds["exchange"] > 0


def test_what_does_not_fit_is_refused_with_what_would(tmp_path):
    need = total(planned(job(), machine(1e12)).memory)
    assert training.forecast(job(), machine(need + 1), tmp_path).refusals == ()
    (refusal,) = training.forecast(job(), machine(0.75 * need), tmp_path).refusals
    assert "too little memory" in refusal
    assert f"--arch.d-sae {F // 2} or --ranks 2 --parallel latents would fit" in refusal
    smaller = job(arch=TopKConfig(d_sae=F // 2))
    assert training.forecast(smaller, machine(0.75 * need), tmp_path).refusals == ()
    assert training.forecast(job(ranks=2, parallel="latents"), machine(0.75 * need), tmp_path).refusals == ()


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("activations.disk.files.free_bytes", lambda path: 10**6)
    (refusal,) = training.forecast(job(), machine(1e12), tmp_path).refusals
    assert refusal.startswith("too little disk: it takes")


def test_the_window_is_the_one_the_reader_takes(tmp_path):
    store = tiny_store(tmp_path)
    reader = ShuffledReader(store, HOOK, 16)
    found = Data.of(store, HOOK)
    assert reader.shards_per_group == len(store.shards)
    assert found.window_rows == found.rows
    assert found.rows == pytest.approx(reader.rows, rel=0.15)  # held-out documents are estimated
    large = data(rows=10**8)
    assert large.window_rows * large.row == pytest.approx(training.WINDOW, rel=0.02)


def test_the_limit_is_what_most_time_goes_to():
    seconds = {"encode": 3.0, "optimizer": 2.0, "selection": 2.0}
    resources = {"encode": "compute", "optimizer": "memory bandwidth", "selection": "memory bandwidth"}
    assert Forecast("a job", {}, {}, seconds, resources).limit.startswith("memory bandwidth (57%")


def test_rates_are_kept_and_told_by_machine_and_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path))
    kept = Machine(rates.this_machine(1), UNIT, rates.memory(), "now", process=5)
    assert rates.load(1) is None
    rates.save(kept)
    assert rates.load(1) == kept
    assert rates.load(2) is None
    (tmp_path / "rates.json").write_text("{")  # damaged, so it has to be measured again
    assert rates.load(1) is None
    rates.save(kept)
    assert rates.load(1) == kept


def test_sizes_and_times_for_people():
    assert [size_text(n) for n in (12, 3.8e7, 1.5e13)] == ["12 B", "38.0 MB", "15.0 TB"]
    assert [duration(s) for s in (0.042, 45, 600, 9000, 10 * 86400)] == [
        "0.042 s",
        "45 s",
        "10 min",
        "2.5 h",
        "10.0 days",
    ]


def test_a_million_latents_and_ten_billion_tokens_are_planned_without_their_memory():
    wide = job(
        arch=TopKConfig(d_sae=2**20), train=TrainConfig(batch=8192), data=Data.planned(768, 10**10, 2 * 768)
    )
    found = planned(wide, GPUS["h200"])
    assert found.refusals == ()  # it has been trained on one H200
    assert 16 * 2 * 2**20 * 768 < total(found.memory) < 60e9
    assert found.seconds["optimizer"] <= 0.5 * total(found.seconds)
    assert planned(replace(wide, ranks=8), GPUS["h200"]).seconds["encode"] < found.seconds["encode"] / 7


def test_averaged_weights_are_one_more_copy_in_memory_and_two_in_each_checkpoint():
    plain, averaged = (job(train=TrainConfig(steps=1000, batch=B, ema=ema)) for ema in (None, 0.999))
    resolved, with_ema = (training.resolve(one, machine(1e12)) for one in (plain, averaged))
    P = resolved.work.parameters
    assert with_ema.checkpoint - resolved.checkpoint == 8 * P
    memory, more = (
        total(training.memory_of(s, one.data, machine(1e12)))
        for s, one in ((resolved, plain), (with_ema, averaged))
    )
    assert more - memory == 4 * P
    finished = [training.disk_of(s, plain.data)["the finished SAE"] for s in (resolved, with_ema)]
    assert finished == [4 * P, 4 * P]


def test_multi_topk_encodes_twice_and_keeps_four_times_as_many_more():
    plain, multi = (count(TopKConfig(d_sae=F, k=K, multi_weight=weight), D, B, K) for weight in (0.0, 1 / 8))
    assert (multi.encode, multi.scanned, multi.picked) == (
        2 * plain.encode,
        2 * plain.scanned,
        5 * plain.picked,
    )


@pytest.mark.parametrize(("settings", "number"), [({"l0": 48.0}, 48), ({}, 32), ({"p_first": 0.1}, None)])
def test_gba_is_planned_with_the_l0_it_aims_at(settings, number):
    cfg = GBAConfig(d_sae=2048, **settings)
    firing = active(cfg)
    assert firing.value == pytest.approx(number or 0.68 * 2048 * cfg.targets().mean().item())
    assert (firing.assumed is None) == ("l0" in settings)


@pytest.mark.parametrize("d_sae", [2**14, 2**24])
def test_checkpoints_take_a_twentieth_of_the_time_at_most_and_come_no_more_often_than_asked(d_sae):
    """Checkpoints of 16 M latents take minutes each; at a fixed number of steps they once took 95 % of such a run."""
    planned = job(arch=TopKConfig(d_sae=d_sae), train=TrainConfig(steps=10**6, batch=B), data=data(10**10))
    on = machine(1e15)
    resolved = training.resolve(planned, on)
    seconds = training.seconds_of(resolved, planned.data, on.rates)
    each, steps = resolved.checkpoint / on.rates.write, total(seconds) - seconds["checkpoints"]
    number = seconds["checkpoints"] / each
    assert number == pytest.approx(1 + steps // max(600, 20 * each))
    assert seconds["checkpoints"] <= steps / 20 + each
    always = resolved._replace(train=replace(resolved.train, checkpoint_minutes=0))
    assert training.seconds_of(always, planned.data, on.rates)["checkpoints"] == pytest.approx(10**6 * each)
