"""GBA: biases that only the rule moves, groups and their targets, the jump of the output, planted features found."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError, RunError
from sae import config
from sae.architectures import GBA, GBAConfig, build
from sae.config import TrainConfig
from sae.evaluation.recovery import recovery
from sae.evaluation.synthetic import Gaussian
from sae.training.trainer import Trainer
from sae.workflows.synthetic import train

D, F = 6, 12
NONE_DEAD = torch.zeros(F, dtype=torch.bool)
SETTINGS = TrainConfig(steps=400, batch=64, lr=5e-3, warmup_steps=0, decay_share=0)


def rows(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def made(**changes) -> GBA:
    """An SAE of three groups of four with biases in the middle of their range."""
    settings = {"d_sae": F, "groups": 3, "p_first": 0.4, "p_last": 0.1, "eps": 0.01, **changes}
    sae = build(GBAConfig(**settings), D)
    sae.b_enc.fill_(-0.5)
    return sae


def observed(sae: GBA, times: list[int], strongest: list[float], rows_seen: int = 100) -> GBA:
    """The SAE with these statistics of its latents gathered."""
    sae.rows_seen.fill_(rows_seen)
    sae.times_fired.copy_(torch.tensor(times))
    sae.strongest.copy_(torch.tensor(strongest))
    return sae


def test_targets_fall_geometrically_and_both_ends_are_exact():
    targets = GBAConfig(groups=4, p_first=0.3, p_last=0.0003).targets()
    assert targets[0] == torch.tensor(0.3)
    assert targets[-1] == torch.tensor(0.0003)
    assert_close(targets[1:] / targets[:-1], torch.full((3,), 0.1))
    assert GBAConfig(groups=1, p_first=0.3).targets().tolist() == [pytest.approx(0.3)]


@pytest.mark.parametrize(("d_sae", "groups", "sizes"), [(12, 3, {4}), (14, 4, {3, 4}), (10, 10, {1})])
def test_groups_follow_one_another_and_differ_by_one_latent_at_most(d_sae, groups, sizes):
    group = build(GBAConfig(d_sae=d_sae, groups=groups), D).group
    assert (group.diff() >= 0).all()
    assert set(torch.bincount(group, minlength=groups).tolist()) == sizes


def test_a_bias_falls_rises_or_stays_by_how_often_its_latent_fired():
    """First group, target 0.4: too often, at the target, in the band, silent."""
    sae = observed(made(), [41, 40, 1, 0, *[1] * 8], [0.3, 0.5, 0.1, 0.0, *[0.2] * 8])
    sae.adapt()
    assert_close(sae.b_enc[0], torch.tensor(-0.5 - 0.01 * 0.3))
    assert (sae.b_enc[[1, 2]] == -0.5).all()
    assert_close(sae.b_enc[3], torch.tensor(-0.5 + 0.01 * (0.3 + 0.5 + 0.1) / 3))
    assert (sae.b_enc[4:] == -0.5).all()


def test_a_group_in_which_nothing_fired_stays_and_has_no_nan():
    sae = observed(made(), [1] * 8 + [0] * 4, [0.2] * 8 + [0.0] * 4)
    sae.adapt()
    assert (sae.b_enc == -0.5).all()


def test_biases_stay_between_minus_one_and_zero_whatever_was_seen():
    sae = made(gamma_plus=1.0, gamma_minus=1.0)
    for _ in range(3):
        observed(sae, [100, 0] * 6, [1e9, 0.0] * 6).adapt()
    assert_close(sae.b_enc, torch.tensor([-1.0, 0.0] * 6))


def test_an_update_begins_the_statistics_anew():
    sae = observed(made(), [5] * F, [0.2] * F)
    sae.adapt()
    assert not any(map(torch.any, (sae.rows_seen, sae.times_fired, sae.strongest)))


def test_statistics_are_those_of_all_batches_and_of_training_alone():
    sae = made().train()
    x = rows(96)
    for part in x.split(32):
        sae.loss(part, part, NONE_DEAD)
    direction = torch.nn.functional.normalize(x - sae.b_dec, dim=1)
    switch = direction @ sae.W_dec.T + sae.b_enc
    assert sae.rows_seen == 96
    assert torch.equal(sae.times_fired, (switch > 0).sum(0))
    assert_close(sae.strongest, switch.max(0).values.relu())
    sae.eval().loss(x, x, NONE_DEAD)
    assert sae.rows_seen == 96


@pytest.mark.parametrize("end_to_end", [False, True])
def test_biases_move_every_so_many_steps_and_no_optimizer_owns_them(end_to_end: bool):
    settings = TrainConfig(steps=9, batch=64, lr=1e-2, warmup_steps=0, dead_after_tokens=10**9)
    trainer = Trainer(build(GBAConfig(d_sae=F, groups=3, l0=2, update_rows=4 * 64 - 5), D), settings)
    owned = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert not any(p is trainer.sae.b_enc for p in owned)
    assert not trainer.sae.b_enc.requires_grad
    divergence = (lambda x_hat: x_hat.square().mean()) if end_to_end else None
    moved = []
    for step in range(9):
        before = trainer.sae.b_enc.clone()
        trainer.train_step(rows(seed=step), rows(seed=step), divergence=divergence)
        moved.append(not torch.equal(trainer.sae.b_enc, before))
    assert moved == [step in (3, 7) for step in range(9)]


def updates(cfg: GBAConfig, batch: int, steps: int, until: int) -> list[int]:
    """Which of a run's first steps end with an update of the biases."""
    sae = build(cfg, D).train()
    moved = []
    for step in range(until):
        before = sae.rows_seen.item()
        sae.loss(rows(batch), rows(batch), torch.zeros(cfg.d_sae, dtype=torch.bool))
        sae.after_step(step, steps)
        if sae.rows_seen <= before:
            moved.append(step)
    return moved


def test_time_between_updates_is_counted_in_rows_whatever_the_batch():
    """Target .1 for all: a latent there fires five times in 50 rows."""
    cfg = GBAConfig(d_sae=F, groups=1, p_first=0.1)
    assert updates(cfg, batch=10, steps=1000, until=15)[:3] == [4, 9, 14]
    assert updates(cfg, batch=20, steps=1000, until=15)[:3] == [2, 5, 8]
    assert updates(cfg, batch=500, steps=1000, until=15)[:3] == [0, 1, 2]


def test_a_short_run_has_a_hundred_updates_unless_rows_are_asked_for():
    rare = GBAConfig(d_sae=F, groups=2, p_first=0.1, p_last=0.0001)  # five firings take 50,000 rows
    assert updates(rare, batch=8, steps=350, until=9) == [2, 5, 8]
    assert updates(rare, batch=8, steps=40, until=3) == [0, 1, 2]
    asked = GBAConfig(d_sae=F, groups=2, p_first=0.1, p_last=0.0001, update_rows=800)
    assert updates(asked, batch=80, steps=350, until=20) == [9, 19]


@pytest.mark.parametrize("groups", [1, 4, 10])
@pytest.mark.parametrize("tied", [True, False])
def test_targets_follow_from_the_l0_asked_for_in_proportion(groups, tied):
    few, many = (GBAConfig(d_sae=4096, groups=groups, tied=tied, l0=l0) for l0 in (32, 96))
    assert few.expected_l0().value == pytest.approx(32)
    assert_close(many.targets(), 3 * few.targets())
    if groups > 1:
        assert few.targets()[-1] == pytest.approx(few.targets()[0].item() / 100)
    assert GBAConfig(d_sae=4096).expected_l0().value == pytest.approx(32)
    assert GBAConfig(d_sae=64).expected_l0().value == pytest.approx(4)


@pytest.mark.parametrize("tied", [True, False])
def test_biases_start_where_each_latent_fires_as_often_as_its_group_should(tied):
    """Counted one latent at a time, by sorting; blocks of latents do not matter."""
    cfg, x = GBAConfig(d_sae=50, groups=4, p_first=0.2, p_last=0.002, tied=tied), rows(1000) + 3
    sae = build(cfg, D)
    sae.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(x - x.mean(0), dim=1) @ sae.W_dec.T
    for latent in range(50):
        wanted = int(sae.target[sae.group[latent]] * 1000)
        assert (cosines[:, latent] + sae.b_enc[latent] > 0).sum() == wanted
    assert (sae.encode(x).dense() != 0).float().mean() == pytest.approx(
        sae.cfg.targets().mean().item(), rel=0.1
    )
    assert sae.b_enc.max() <= 0 and sae.b_enc.min() >= -1


def test_from_zero_biases_are_zero_and_amplitudes_one():
    sae = build(GBAConfig(d_sae=50, groups=4, start="zero"), D)
    sae.initialise(rows(100), torch.zeros(D), torch.Generator().manual_seed(0))
    assert not sae.b_enc.any()
    assert (sae.amplitude == 1).all()


def test_untied_it_starts_as_tied_and_its_encoder_s_length_decides_nothing():
    """In float64: cos(W_enc, x - b_dec) + b > 0, then a <W_enc, x - b_dec> with another decoder."""
    cfg = GBAConfig(d_sae=F, groups=3, p_first=0.4, p_last=0.1, tied=False)
    sae, x = build(cfg, D), rows(200)
    for one in (sae, tied := build(dataclasses.replace(cfg, tied=True), D)):
        one.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
    assert_close(sae(x), tied(x))
    with torch.no_grad():
        sae.W_enc.copy_(3 * torch.randn(D, F, generator=torch.Generator().manual_seed(1)))
        code = sae.encode(x).dense()
    centred, W = (x - sae.b_dec).double(), sae.W_enc.double()
    cosine = (centred / centred.norm(dim=1, keepdim=True)) @ (W / W.norm(dim=0))
    expected = sae.amplitude * (centred @ W) * (cosine + sae.b_enc > 0)
    assert_close(code.double(), expected, rtol=1e-4, atol=1e-5)
    assert 0 < (code != 0).float().mean() < 0.9
    assert_close(sae.dense_pre_activations(x).double(), cosine + sae.b_enc, rtol=1e-4, atol=1e-6)
    assert_close(sae(x), code @ sae.W_dec + sae.b_dec)


def test_settings_of_version_0_1_0_are_read_as_what_they_did():
    old = {"d_sae": 64, "groups": 2, "p_first": 0.1, "p_last": 0.01, "update_every": 50}
    read = config.from_json({"architecture": "gba", "store": "s", "arch": old, "train": {"batch": 512}}).arch
    assert (read.start, read.tied, read.p_first, read.update_rows) == ("zero", True, 0.1, 50 * 512)
    assert config.arch_from_json("gba", old).update_rows is None
    with pytest.raises(RunError, match="no field .update_often"):
        config.from_json({"architecture": "gba", "store": "s", "arch": {"update_often": 1}})


def test_just_above_the_switch_the_output_is_minus_the_bias_and_below_it_zero():
    sae = build(GBAConfig(d_sae=1, groups=1), 2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0]]))
        sae.amplitude.fill_(2.0)
    sae.b_enc.fill_(-0.6)
    for length in (0.1, 1.0, 50.0):
        above, below = torch.tensor([[0.601, 0.799], [0.599, 0.801]]) * length
        assert_close(sae.encode(above).dense()[0, 0] / length, torch.tensor(2 * 0.6), rtol=0.01, atol=0)
        assert sae.encode(below).dense().sum() == 0


def test_a_row_at_the_centre_has_no_code_and_leaves_no_nan():
    sae = made().train()
    sae.b_enc.zero_()
    x = torch.cat([sae.b_dec.detach()[None], rows(3)])
    assert sae.encode(x[:1]).dense().sum() == 0
    sae.loss(x, x, NONE_DEAD)
    assert sae.strongest.isfinite().all()


def test_shared_weights_get_gradients_from_encoding_and_decoding():
    """Against autograd through a dense float64 form of the same function, the switch held."""
    sae, x = made(), rows()
    sae.b_enc.fill_(-0.2)
    sae.loss(x, x, NONE_DEAD).total.backward()
    W, a = (p.detach().double().requires_grad_() for p in (sae.W_dec, sae.amplitude))
    centred = x.double() - sae.b_dec.detach().double()
    gate = (centred / centred.norm(dim=1, keepdim=True)) @ W.detach().T + sae.b_enc > 0
    error = ((a * (centred @ W.T) * gate) @ W - centred).square().sum()
    (error / (centred - centred.mean(0)).square().sum()).backward()
    assert_close(sae.W_dec.grad.double(), W.grad, rtol=1e-4, atol=1e-6)
    assert_close(sae.amplitude.grad.double(), a.grad, rtol=1e-4, atol=1e-6)


def test_the_log_tells_each_groups_frequency_against_its_target():
    sae, x = made(), rows()
    sae.b_enc.fill_(-0.3)
    terms = sae.loss(x, x, NONE_DEAD).terms
    frequency = (sae.encode(x).dense() != 0).float().mean(0)
    for k, target in enumerate(sae.cfg.targets()):
        ratio = frequency[4 * k : 4 * k + 4].mean() / target
        assert_close(terms[f"frequency_ratio_{k + 1}"], ratio)
    targets = sae.cfg.targets().repeat_interleave(4)
    assert_close(terms["resonant"], ((frequency >= 0.01) & (frequency <= targets)).float().mean())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"groups": 9000}, "groups = 9000"),
        ({"groups": 0}, "groups = 0"),
        ({"p_first": 0.001, "p_last": 0.1}, "p_first = 0.001"),
        ({"update_rows": 0}, "update_rows = 0"),
        ({"l0": 0.0}, "l0 = 0 must lie"),
        ({"d_sae": 100, "l0": 50}, "l0 = 50 .* d_sae = 100"),
        ({"l0": 32, "p_first": 0.1}, "l0 = 32 and p_first = 0.1"),
        ({"p_last": 0.1}, "p_last = 0.1 needs p_first"),
        ({"p_first": 0.1, "p_last": 0.0}, "p_last = 0.0"),
        ({"gamma_plus": -1.0}, "gamma_plus"),
    ],
)
def test_settings_out_of_range_are_named(setting, words):
    with pytest.raises(ConfigError, match=words):
        GBAConfig(**setting)


def quickly(gamma_minus: float) -> tuple[float, float]:
    """Share of 20 planted features found, and NMSE, after a short training at the features' own frequency."""
    world = Gaussian(d_model=16, n_features=20, active=2)
    cfg = GBAConfig(
        d_sae=40, groups=1, p_first=0.1, p_last=0.1, start="zero", update_rows=640, gamma_minus=gamma_minus
    )
    found = recovery(train(world, cfg, SETTINGS), world, rows=4000)
    return found.frr_90, found.nmse


def test_planted_features_are_found_with_adapting_biases_and_merely_reconstructed_without():
    adapting, _ = quickly(gamma_minus=0.03)
    fixed, error = quickly(gamma_minus=0.0)
    assert adapting > fixed + 0.5
    assert error < 0.02
