"""Learning rates: what is left out, and what `auto` measures."""

import math

import pytest
import torch

from activations.errors import DivergedError
from activations.progress import no_progress
from sae.architectures import TopKConfig, build
from sae.cli.train import show_rate
from sae.config import LONG, STEPS_POWER, RunConfig, TrainConfig, peak_rate
from sae.runs.run import Run
from sae.training import rates
from sae.workflows.train import train

ARCH = TopKConfig(d_sae=32, k=4)


def planted(rows: int = 64, unit: float = 1.0):
    """Batches of planted features, the same from the first whenever they are begun."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(24, 12, generator=generator)
    while True:
        code = torch.rand(rows, 24, generator=generator) * (torch.rand(rows, 24, generator=generator) < 0.15)
        x = unit * code @ features
        yield x, x, None


def tried(cfg: TrainConfig, unit: float = 1.0):
    """The rate for planted features in this unit, brought back to 1 by the trainer's scale; and its trials."""
    x = next(planted(4096))[0]

    def make():
        sae = build(ARCH, 12)
        sae.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
        return sae

    return rates.try_rates(make, cfg.resolved(0, ARCH), ARCH, lambda: planted(64, unit), 1 / unit)


def test_a_rate_left_out_is_gao_s_for_long_runs_and_higher_for_short_ones():
    assert peak_rate(2**14, LONG) == pytest.approx(2e-4)
    assert peak_rate(2**14, 10**9) == pytest.approx(2e-4)
    assert peak_rate(2**12, LONG) == pytest.approx(4e-4)
    by_steps = [peak_rate(2**12, steps) for steps in (600, 5000, 50_000, LONG)]
    assert by_steps == sorted(set(by_steps), reverse=True)
    assert peak_rate(32, 10) == peak_rate(64, 20) < 0.01
    assert TrainConfig(steps=600).resolved(0, ARCH).lr == pytest.approx(ARCH.rate * peak_rate(32, 600))


@pytest.fixture(scope="module")
def found():
    """A rate for a run of 400 steps, by trials of 100."""
    return tried(TrainConfig(steps=400, batch=64, lr="auto"))


def test_the_best_rate_tried_has_a_worse_neighbour_on_either_side(found):
    lr, trials = found
    losses = {trial.lr: trial.loss for trial in trials}
    best = min(losses, key=lambda rate: losses[rate])
    assert losses[best / 2] > losses[best] < losses[best * 2]
    at_trial = lr / 4**STEPS_POWER  # of 100 steps, a quarter of the run's
    assert best / math.sqrt(2) <= at_trial <= best * math.sqrt(2)


def test_a_measured_rate_does_not_depend_on_the_unit_of_the_activations(found):
    lr, trials = tried(TrainConfig(steps=400, batch=64, lr="auto"), 64.0)
    assert lr == pytest.approx(found[0], rel=1e-3)
    assert [trial.lr for trial in trials] == [trial.lr for trial in found[1]]


def test_rates_that_all_diverge_are_refused():
    with pytest.raises(DivergedError, match="diverged"):
        tried(TrainConfig(steps=100, batch=64, lr="auto"), math.nan)


def trial_fails(stage: str, *rest: object, **more: object):
    assert stage != "learning rate", "the rate is measured again"
    return no_progress(stage, 1, "")


def test_a_run_s_rate_is_measured_told_and_kept(world, tmp_path, capsys):
    path = Run(world / "runs" / "toy").config.store
    cfg = RunConfig(store=path, arch=ARCH, train=TrainConfig(steps=20, batch=64, lr="auto"))
    run = train(cfg, tmp_path / "run")
    lr = run.config.train.lr
    assert isinstance(lr, float)
    assert len(run.record.rate_trials) >= 3
    show_rate(run)
    assert f"learning rate {lr:.3g}" in capsys.readouterr().out
    again = train(cfg, tmp_path / "run", resume=True, progress=trial_fails)
    assert again.config.train.lr == lr
    given = RunConfig(store=path, arch=ARCH, train=TrainConfig(steps=20, batch=64, lr=lr))
    weights = train(given, tmp_path / "given").sae().state_dict()
    for name, tensor in run.sae().state_dict().items():
        assert torch.equal(tensor, weights[name]), name
