"""JumpReLU: derivatives through the jump, which gradients exist and which do not, both loss forms."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import JumpReLUConfig, build
from sae.architectures.jumprelu import jump, step
from sae.config import TrainConfig
from sae.training.trainer import Trainer

D, F = 8, 24
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 50) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def made(**settings):
    sae = build(JumpReLUConfig(d_sae=F, **settings), D)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.W_enc.normal_(std=0.3, generator=generator)
        sae.b_enc.normal_(std=0.1, generator=generator)
        sae.b_dec.normal_(generator=generator)
        sae.log_threshold.normal_(mean=-1.5, std=0.3, generator=generator)
    return sae


def test_the_smoothed_derivatives_are_those_of_the_expectation():
    """y ~ N(0, 1), theta = .7: d/dtheta E[step] = -pdf(.7) = -.3123, d/dtheta E[jump] = -.7 pdf(.7) = -.2186."""
    y = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor(0.7, requires_grad=True)
    pdf = math.exp(-(0.7**2) / 2) / math.sqrt(2 * math.pi)
    for function, expected in ((step, -pdf), (jump, -0.7 * pdf)):
        (slope,) = torch.autograd.grad(function(y, theta.expand_as(y), 0.05).mean(), theta)
        assert abs(slope - expected) < 0.02 * pdf  # half a window would give half of it
    log_theta = torch.tensor(0.7).log().requires_grad_()
    (slope,) = torch.autograd.grad(step(y, log_theta.exp().expand_as(y), 0.05).mean(), log_theta)
    assert abs(slope + 0.7 * pdf) < 0.02 * pdf


def test_at_the_threshold_a_latent_is_silent_and_just_above_it_keeps_its_whole_value():
    theta = torch.tensor([0.5, 0.5, 0.5])
    y = torch.tensor([0.5, 0.5000001, -2.0])
    assert_close(jump(y, theta, 0.1), torch.tensor([0.0, 0.5000001, 0.0]))
    assert step(y, theta, 0.1).tolist() == [0.0, 1.0, 0.0]
    sae = made()
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.copy_(sae.threshold)
    assert sae.encode(rows()).l0().sum() == 0


def test_the_derivative_by_y_is_that_of_a_relu_and_a_step_has_none():
    y = torch.tensor([0.49, 0.51, 2.0], requires_grad=True)
    theta = torch.full((3,), 0.5, requires_grad=True)
    by_y, by_theta = torch.autograd.grad(jump(y, theta, 0.1).sum(), [y, theta])
    assert by_y.tolist() == [0.0, 1.0, 1.0]
    assert_close(by_theta, torch.tensor([-5.0, -5.0, 0.0]))
    by_y, by_theta = torch.autograd.grad(step(y, theta, 0.1).sum(), [y, theta], allow_unused=True)
    assert by_y is None
    assert_close(by_theta, torch.tensor([-10.0, -10.0, 0.0]))


def test_with_thresholds_of_0_it_is_a_relu():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.log_threshold.fill_(-torch.inf)
    assert_close(sae.encode(x).dense(), (x @ sae.W_enc + sae.b_enc).relu())


def dense_loss(sae, weights: dict[str, torch.Tensor], x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """The loss over all latents of all rows, thresholds smoothed by the kernel where they are differentiated.

    A step's surrogate: its value now, plus slope * (theta - theta now)."""
    y = x @ weights["W_enc"] + weights["b_enc"]
    theta = weights["log_threshold"].exp()
    fires = (y > theta).double()
    kernel = ((y - theta).abs() < sae.bandwidth / 2) / sae.bandwidth
    fires_smoothly = fires - kernel.detach() * (theta - theta.detach())
    z = y * fires - theta.detach() * kernel.detach() * (theta - theta.detach())
    norms = weights["W_dec"].norm(dim=1)
    error = (z @ weights["W_dec"] + weights["b_dec"] - x).square().sum(1).mean()
    if sae.cfg.loss_form == "l0":
        return error + sae.penalty_weight * fires_smoothly.sum(1).mean()
    pull = ((theta - y).relu() * norms)[:, dead].sum(1).mean()
    counted = (sae.cfg.tanh_slope * z * norms).tanh()
    return error + sae.penalty_weight * counted.sum(1).mean() + sae.cfg.pre_act_weight * pull


@pytest.mark.parametrize("bandwidth", [0.1, 0.8])
@pytest.mark.parametrize("form", ["l0", "tanh"])
def test_loss_and_gradients_are_those_of_the_dense_formula(form, bandwidth):
    """Also with a kernel wider than the thresholds, which then reaches latents below 0."""
    sae = made(loss_form=form, bandwidth=bandwidth, sparsity_weight=0.3, pre_act_weight=0.2)
    x, dead = rows(), torch.arange(F) < 5
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in sae.named_parameters()}
    expected = dense_loss(sae, weights, x.double(), dead)
    expected.backward()
    total = sae.loss(x, x, dead).total
    total.backward()
    assert_close(total.double(), expected, rtol=1e-5, atol=0)
    for name, parameter in sae.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_penalty_on_firing_reaches_thresholds_only_and_that_on_tanh_the_encoder_too():
    x = rows()
    for form, reached in (("l0", False), ("tanh", True)):
        gradients = []
        for weight in (0.0, 5.0):
            sae = made(loss_form=form, sparsity_weight=weight, bandwidth=0.2)
            sae.loss(x, x, NONE_DEAD).total.backward()
            gradients.append(sae)
        free, penalised = gradients
        assert torch.equal(free.W_enc.grad, penalised.W_enc.grad) != reached
        assert torch.equal(free.b_enc.grad, penalised.b_enc.grad) != reached
        assert not torch.equal(free.log_threshold.grad, penalised.log_threshold.grad)


def test_dead_latents_are_pulled_towards_their_thresholds_in_the_tanh_form_only():
    x, dead = rows(), torch.arange(F) == 2
    for form, pulled in (("l0", False), ("tanh", True)):
        sae = made(loss_form=form, bandwidth=0.1)
        with torch.no_grad():
            sae.b_enc[2] = -50.0
        loss = sae.loss(x, x, dead)
        loss.total.backward()
        assert not loss.fired[2]
        assert (sae.b_enc.grad[2] < 0) == pulled


def test_thresholds_stay_above_0_even_when_pushed_down_hard():
    settings = TrainConfig(steps=50, batch=50, lr=0.5, dead_after_tokens=10**9, warmup_steps=0)
    trainer = Trainer(made(sparsity_weight=0.0, bandwidth=1.0), settings)
    for _ in range(50):
        trainer.train_step(rows(), rows())
    assert trainer.sae.threshold.min() > 0


def test_log_thresholds_move_at_their_own_rate_and_adam_has_no_momentum():
    settings = TrainConfig(steps=1, batch=50, lr=1e-3, dead_after_tokens=10**9, warmup_steps=0, decay_share=0)
    trainer = Trainer(made(bandwidth=0.5, threshold_lr_scale=7.0), settings)
    before = copy.deepcopy(trainer.sae)
    trainer.train_step(rows(), rows())
    moved = [(trainer.sae.log_threshold - before.log_threshold), (trainer.sae.b_enc - before.b_enc)]
    assert_close(moved[0].abs().max(), torch.tensor(7e-3), rtol=1e-3, atol=0)  # Adam's first step is its rate
    assert_close(moved[1].abs().max(), torch.tensor(1e-3), rtol=1e-3, atol=0)
    assert {(group["betas"], group["eps"]) for group in trainer.optimizer.param_groups} == {
        ((0.0, 0.999), 1e-8)
    }


def test_what_is_left_out_follows_from_the_width_and_the_form():
    paper, tanh = build(JumpReLUConfig(d_sae=F), 100), build(JumpReLUConfig(d_sae=F, loss_form="tanh"), 100)
    assert_close(paper.threshold, torch.full((F,), 0.01))
    assert_close(tanh.threshold, torch.full((F,), 0.1))
    assert (paper.bandwidth, paper.warmup_share, paper.penalty_weight) == (0.01, 0.05, 0.1)
    assert (tanh.bandwidth, tanh.warmup_share, tanh.penalty_weight) == (2.0, 1.0, pytest.approx(100 / 2600))
    assert (paper.threshold_lr_scale, tanh.threshold_lr_scale) == (10.0, 1.0)
    assert paper.unit_norm_decoder
    assert not tanh.unit_norm_decoder
    assert tanh.W_enc.abs().max() <= F**-0.5


def test_folding_scales_thresholds_exactly_as_far_as_rounding_allows():
    sae = made()
    folded = copy.deepcopy(sae)
    folded.fold_input_scale(4.0)
    assert_close(folded.threshold, sae.threshold / 4, rtol=1e-6, atol=0)
    assert torch.equal(folded.W_enc, sae.W_enc)


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.0}, {"bandwidth": -1.0}, {"warmup_share": 2.0}, {"sparsity_weight": -1.0}],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        JumpReLUConfig(**wrong)


def test_another_loss_form_is_refused_by_name():
    cfg = JumpReLUConfig()
    object.__setattr__(cfg, "loss_form", "l2")  # past the type checker that tests run under
    with pytest.raises(ConfigError, match="loss_form = 'l2' must be l0 or tanh"):
        cfg.__post_init__()
