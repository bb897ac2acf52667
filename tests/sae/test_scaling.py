"""Scaling laws: planted constants are found from any start, intervals cover them as often as they say, and too few runs are refused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from activations.disk import files
from activations.errors import ConfigError, RunError
from sae.architectures import TopKConfig
from sae.config import TrainConfig
from sae.evaluation import scaling
from sae.evaluation.scaling import compute_loss, fit_compute, fit_joint, frontier, joint_loss, levels
from sae.plan import training
from sae.plan.forecast import total
from sae.plan.rates import GPUS
from sae.plan.scaling import bought, sparsest
from sae.plan.training import Data, Job
from sae.report import scaling as report
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.runs.scaling import (
    INDEX,
    PLOT,
    FittedRun,
    Law,
    Scaling,
    ScalingRecord,
    changed,
    l0_levels,
    scaling_of,
)
from sae.workflows.scaling import fit_scaling

GPT4 = np.array(
    [-0.50, 0.26, -0.017, -0.042, -1.32, -0.085]
)  # Gao et al. 2024, as methods notes remember them
STEEP = np.array([0.9, 0.05, -0.12, -0.03, -1.9, -0.15])
TRUTHS = {"GPT-4": GPT4, "steep": STEEP}
WIDE = tuple(np.ravel(grid) for grid in np.meshgrid(2.0 ** np.arange(11, 21, 1.5), 2.0 ** np.arange(3, 9)))
SMALL = tuple(np.ravel(grid) for grid in np.meshgrid(2.0 ** np.arange(9, 14), 2.0 ** np.arange(3, 7)))


def noisy(loss, share, seed):
    return loss * np.exp(np.random.default_rng(seed).normal(0, share, loss.shape))


def test_the_law_equals_its_formula():
    alpha, beta_k, beta_n, gamma, zeta, eta = GPT4
    n, k = 5000.0, 20.0
    by_hand = (
        np.exp(alpha) * k**beta_k * n**beta_n * np.exp(gamma * np.log(k) * np.log(n)) + np.exp(zeta) * k**eta
    )
    assert joint_loss(GPT4, n, k) == pytest.approx(by_hand, rel=1e-14)
    many = joint_loss(np.stack([GPT4, STEEP])[:, None], np.array([n, 2 * n, 3 * n]), k)
    assert many.shape == (2, 3)
    assert many[1, 2] == pytest.approx(float(joint_loss(STEEP, 3 * n, k)))
    assert compute_loss([2.0, -0.3], 1e12) == pytest.approx(np.exp(2) * 1e12**-0.3)


@pytest.mark.parametrize("name", ["GPT-4", "steep"])
@pytest.mark.parametrize("seed", range(3))  # of the noise and of the starts
def test_planted_constants_are_found_within_a_twentieth(name, seed, monkeypatch):
    truth = TRUTHS[name]
    monkeypatch.setattr(scaling, "RESAMPLES", 2)
    n, k = WIDE
    exact = fit_joint(n, k, joint_loss(truth, n, k), seed=seed)
    assert exact.constants == pytest.approx(truth, rel=1e-5)
    assert exact.spread < 1e-6
    fit = fit_joint(n, k, noisy(joint_loss(truth, n, k), 2e-4, seed), seed=seed)
    assert fit.constants == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("share", [0.05, 0.35, 0.65, 0.95])
def test_every_start_leads_to_the_planted_constants(share):
    n, k = WIDE
    log_loss = np.log(joint_loss(STEEP, n, k))
    u, v = np.log(n) - np.log(n).mean(), np.log(k) - np.log(k).mean()
    start = scaling._start(u, v, log_loss, share, 0.1)
    found, cost = scaling._least_squares(u, v, log_loss, float(log_loss.mean()), start)
    assert cost < 1e-10
    assert scaling._uncentred(found, np.log(n).mean(), np.log(k).mean()) == pytest.approx(STEEP, rel=1e-3)


def test_derivatives_are_those_of_the_law():
    u, v, theta = (
        np.array([-1.0, 0.3, 2.0]),
        np.array([0.5, -2.0, 1.0]),
        np.array([-1.0, 0.2, -0.1, -0.04, -1.5, -0.3]),
    )
    total, by = scaling._log_joint(theta, u, v)
    for place in range(6):
        moved = np.array(theta)
        moved[place] += 1e-6
        assert by[:, place] == pytest.approx((scaling._log_joint(moved, u, v)[0] - total) / 1e-6, abs=1e-5)


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    """Of 40 draws of noise, 95 % intervals of each constant and of an extrapolated loss: 38 are expected, with a deviation of 1.4."""
    monkeypatch.setattr(scaling, "RESAMPLES", 100)
    monkeypatch.setattr(scaling, "STARTS", 3)
    n, k = WIDE
    truth = joint_loss(GPT4, n, k)
    covered = []
    for seed in range(40):
        fit = fit_joint(n, k, noisy(truth, 0.002, seed), seed=seed)
        low, high = fit.interval(lambda constants: constants)
        beyond = fit.interval(lambda constants: joint_loss(constants, 2.0**23, 64))
        inside = beyond[0] <= joint_loss(GPT4, 2.0**23, 64) <= beyond[1]
        covered.append([*((low <= GPT4) & (high >= GPT4)), inside])
    counts = np.sum(covered, 0)
    assert (counts >= 33).all(), counts
    assert counts.mean() < 40


def test_intervals_of_few_runs_are_as_wide_as_student_s(monkeypatch):
    """L(C) is linear in its logarithms, so that its intervals are known: those of four runs are three times as wide as a normal's."""
    flops, covered = np.geomspace(1e12, 1e14, 4), 0
    for seed in range(100):
        fit = fit_compute(flops, noisy(compute_loss([4.0, -0.2], flops), 0.02, seed), seed)
        low, high = fit.interval(lambda constants: constants[..., 1])
        covered += bool(low <= -0.2 <= high)
    assert 88 <= covered <= 100


@pytest.mark.parametrize(
    ("n", "k", "says"),
    [
        ([512, 1024, 2048, 4096] * 2, [8] * 4 + [16] * 4, "8 runs, 4 widths, 2 L0s"),
        ([512] * 9, [8, 16, 32] * 3, "9 runs, 1 widths, 3 L0s"),
        ([512, 1024, 2048] * 3, [31.9, 32.0, 32.1] * 3, "9 runs, 3 widths, 1 L0s"),
        ([], [], "0 runs, 0 widths, 0 L0s"),
    ],
)
def test_too_few_runs_are_refused_with_what_is_needed(n, k, says):
    with pytest.raises(ConfigError, match=says) as refused:
        fit_joint(n, k, np.full(len(n), 0.3))
    assert "9 runs, of 3 widths and 3 L0s" in refused.value.message
    with pytest.raises(ConfigError, match="needed are 4 and a factor of 4"):
        fit_compute([1e9, 2e9, 3e9, 3.5e9], [0.4, 0.3, 0.2, 0.1])


def test_the_frontier_and_levels():
    assert frontier([4.0, 1.0, 2.0, 3.0, 1.0], [0.2, 0.5, 0.6, 0.3, 0.4]) == [4, 3, 0]
    assert levels([10, 11, 11.9, 12, 13, 20]) == 3


def law(constants, names) -> Law:
    resampled = [list(constants)] * 3
    return Law(
        {name: Estimate(c, c, c) for name, c in zip(names, constants, strict=True)}, resampled, 0.01, 9
    )


def fitted(n, k, loss, **changes) -> Scaling:
    runs = [
        FittedRun(f"<b>{i}", "0" * 64, int(a), float(b), float(c), 1000, a * 1e6, True, True, False)
        for i, (a, b, c) in enumerate(zip(n, k, loss, strict=True))
    ]
    made = Scaling(
        "topk", "blocks.1.hook_resid_pre", 16, runs, law(STEEP, scaling.JOINT), [], ["L(C): <none>"]
    )
    return dataclasses.replace(made, **changes)


def test_a_budget_buys_the_widest_dictionary_that_it_trains(tmp_path: Path):
    n, k = SMALL
    one = fitted(n, k, joint_loss(STEEP, n, k))
    data = Data(768, 10_000_000, 1536, 1_000_000)
    job = Job(TopKConfig(d_sae=512, k=8), TrainConfig(steps=10_000, batch=4096), data)

    def cost(width: int, k: int = 32) -> float:
        of = dataclasses.replace(job, arch=TopKConfig(d_sae=width, k=k))
        return total(training.forecast(of, GPUS["h200"], tmp_path).seconds)

    budget = cost(4096)  # in seconds, whatever the rates of the device are
    few, many = (
        bought(one, job, GPUS["h200"], seconds, (8.0, 32.0), tmp_path) for seconds in (budget, cost(40_000))
    )
    assert [choice.l0 for choice in few] == [8.0, 32.0]
    for less, more in zip(few, many, strict=True):
        assert less.width < more.width
        assert less.seconds <= budget < cost(16 * round(less.width * 2**0.25 / 16), round(less.l0))
        assert less.fvu.value == pytest.approx(float(joint_loss(STEEP, less.width, less.l0)))
        assert (less.fvu.value or 0) > (more.fvu.value or 0)
        assert more.extrapolated == more.width / 8192
    best = sparsest(many, many[0].fvu.value or 0)
    assert best is not None
    assert best.l0 == 8.0
    assert sparsest(many, 1e-6) is None
    with pytest.raises(ConfigError, match="0.36 s buy nothing: not even 512 latents"):
        bought(one, job, GPUS["h200"], 0.36, (8.0,), tmp_path)
    with pytest.raises(ConfigError, match="was not fitted to these runs: too few"):
        bought(
            dataclasses.replace(one, joint=None, left_out=["too few"]),
            job,
            GPUS["h200"],
            60.0,
            (8.0,),
            tmp_path,
        )


def test_what_is_shown_says_what_the_fit_cannot_and_escapes_names():
    n, k = SMALL
    one = fitted(n, k, joint_loss(STEEP, n, k))
    runs = [dataclasses.replace(run, converged=False) if i < 3 else run for i, run in enumerate(one.runs)]
    one = dataclasses.replace(one, runs=runs)
    assert report.basis(one) == "20 runs of 512 to 8,192 latents, L0 8 to 64, trained on 1,000 tokens"
    said = " ".join(report.remarks(one))
    assert "3 of 20 runs had not converged" in said
    assert "L(C): <none>." in said
    [(title, rows)] = report.tables(one)
    assert title.startswith("L(n, k) = exp(")
    assert [row[2] for row in rows] == ["0.9", "0.05", "−0.12", "−0.03", "−1.9", "−0.15"]
    drawn = cast(Any, report.figure(one).data)
    curves = [trace for trace in drawn if trace.mode == "lines"]
    assert len(curves) == 4
    assert curves[0].y[0] == pytest.approx(float(joint_loss(STEEP, 512, 8)))
    page = report.page(ScalingRecord([one]))
    assert "<b>" not in page.split("</script>")[-1]
    assert 'src="http' not in page


@pytest.fixture(scope="module")
def sweep(world, tmp_path_factory) -> Path:
    """Copies of one run under other names; what the fit reads of them is planted by `planted`."""
    folder = tmp_path_factory.mktemp("scaling")
    for number in range(12):
        run = folder / f"run{number}"
        shutil.copytree(world / "runs" / "toy", run, ignore=shutil.ignore_patterns("features", "checkpoints"))
        about = files.read_json(run / "run.json")
        width, k = 32 * 2 ** (number % 3), 2 * 2 ** (number // 3)
        about["config"]["arch"] |= {"d_sae": width, "k": k}
        files.write_sealed(run / "run.json", about)
        found = files.read_json(run / "eval.json")
        fvu, l0 = float(joint_loss(STEEP, width, k)), float(k)
        found["estimates"] |= {
            "fvu": dict.fromkeys(("value", "low", "high"), fvu),
            "l0": dict.fromkeys(("value", "low", "high"), l0),
        }
        files.write_sealed(run / "eval.json", found)
    return folder


def test_the_fit_of_runs_is_written_read_and_refused_where_damaged(sweep: Path):
    runs = [Run(path.parent) for path in sorted(sweep.glob("*/run.json"))]
    record = fit_scaling(runs, sweep)
    assert scaling_of(sweep) == record
    assert (sweep / PLOT).exists()
    [one] = record.fits
    assert (one.architecture, one.d_model, len(one.runs)) == ("topk", 16, 12)
    assert one.joint is not None
    assert one.joint.fit.constants == pytest.approx(STEEP, rel=0.01)
    assert one.left_out == ["L(C): all runs are of one length; sweep over train.steps too"]
    first = one.runs[0]
    assert first.tokens == 30 * 64
    encoder = files.read_json(sweep / "run0" / "eval.json")["encoder"]["parameters"]
    assert first.flops == 6 * (encoder + 32 * 16) * 30 * 64
    assert first.converged is None  # its log has no held-out FVU before the last step
    assert [round(l0) for l0, _ in l0_levels(one.runs)] == [2, 4, 8, 16]
    assert changed(record, sweep) == []
    index = files.read_json(sweep / "run3" / "sae.json")
    files.write_sealed(sweep / "run3" / "sae.json", {**index, "weights_file_sha256": "0" * 64})
    shutil.rmtree(sweep / "run5")
    assert changed(record, sweep) == ["run3", "run5"]
    content = files.read_json(sweep / INDEX)
    content["fits"][0]["joint"]["resampled"][0].pop()
    files.write_sealed(sweep / INDEX, content)
    with pytest.raises(RunError, match="damaged: a law lacks constants or resamples"):
        scaling_of(sweep)
    with pytest.raises(
        ConfigError, match=r"no scaling law can be fitted \(topk.*too few runs.*needed are 9 runs"
    ):
        fit_scaling(runs[:4], sweep)
