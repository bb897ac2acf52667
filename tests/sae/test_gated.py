"""Gated: what the gate does, where gradients may go, and that it shrinks nothing."""

import copy

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import Gated, GatedConfig, JumpReLUConfig, ReLUConfig, build
from sae.architectures.base import ArchConfig
from sae.config import TrainConfig
from sae.losses import squared_error
from sae.training.trainer import Trainer

D, F = 8, 24
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 50) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def made(**settings) -> Gated:
    sae = build(GatedConfig(d_sae=F, **settings), D)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for vector in (sae.b_enc, sae.b_mag, sae.r_mag, sae.b_dec):
            vector.normal_(std=0.3, generator=generator)
    return sae


def dense(weights: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """pi and z by the paper's equations, with the two paths computed apart."""
    centred = x - weights["b_dec"]
    pi = centred @ weights["W_enc"] + weights["b_enc"]
    magnitude = (centred @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"]).relu()
    return pi, (pi > 0) * magnitude


def test_loss_and_gradients_are_those_of_the_dense_formula():
    sae, x, y = made(l1_weight=0.7), rows(), rows().flip(0)
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in sae.named_parameters()}
    pi, z = dense(weights, x.double())
    y_hat = z @ weights["W_dec"] + weights["b_dec"]
    by_gate = pi.relu() @ weights["W_dec"].detach() + weights["b_dec"].detach()
    expected = squared_error(y.double(), y_hat) + squared_error(y.double(), by_gate)
    expected = expected + 0.7 * pi.relu().sum(1).mean()
    expected.backward()
    total = sae.loss(x, y, NONE_DEAD).total
    total.backward()
    assert_close(total.double(), expected, rtol=1e-5, atol=0)
    for name, parameter in sae.named_parameters():
        assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_closed_gate_silences_a_latent_whatever_its_magnitude():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.b_mag.fill_(5.0)
    pi, _ = dense(dict(sae.named_parameters()), x)
    z = sae.encode(x).dense()
    assert (z[pi <= 0] == 0).all()
    assert (z[pi > 0] > 0).any()


def test_the_reconstruction_gives_the_gates_bias_no_gradient():
    sae, x = made(), rows()
    squared_error(x, sae.decode(sae.gate_and_magnitudes(x)[1])).backward()
    assert sae.b_enc.grad is None
    assert sae.b_mag.grad.abs().sum() > 0


def test_the_gates_own_error_teaches_the_gate_and_no_decoder():
    """W_dec gets nothing; b_dec only as what is taken off x, minus the encoder's share."""
    sae, x = made(l1_weight=0.0), rows()
    gate, z = sae.gate_and_magnitudes(x)
    from_reconstruction = torch.autograd.grad(
        squared_error(x, sae.decode(z)), [sae.W_dec, sae.b_dec], retain_graph=True
    )
    sae.loss(x, x, NONE_DEAD).total.backward()
    assert_close(sae.W_dec.grad, from_reconstruction[0])
    fixed = gate.dense() @ sae.W_dec.detach() + sae.b_dec.detach()
    (by_gate,) = torch.autograd.grad(squared_error(x, fixed), [sae.b_enc])
    assert by_gate.abs().sum() > 0
    through_x = -(sae.W_enc.detach() @ by_gate)
    assert_close(sae.b_dec.grad, from_reconstruction[1] + through_x, rtol=1e-4, atol=1e-4)


def test_it_equals_a_jumprelu_whose_threshold_is_where_the_gate_opens():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.b_mag.copy_(
            sae.r_mag.exp() * sae.b_enc + torch.rand(F, generator=torch.Generator().manual_seed(2))
        )
    twin = build(JumpReLUConfig(d_sae=F), D)
    with torch.no_grad():
        twin.W_enc.copy_(sae.W_enc * sae.r_mag.exp())
        twin.b_enc.copy_(sae.b_mag - sae.b_dec @ twin.W_enc)
        twin.W_dec.copy_(sae.W_dec)
        twin.b_dec.copy_(sae.b_dec)
        twin.log_threshold.copy_((sae.b_mag - sae.r_mag.exp() * sae.b_enc).log())
    ours = sae.encode(x).dense()
    assert_close(twin.encode(x).dense(), ours, rtol=1e-4, atol=1e-5)
    assert (ours[ours > 0].min() > 0) and (ours == 0).any()


def test_with_equal_paths_it_is_a_relu():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.r_mag.zero_()
        sae.b_mag.copy_(sae.b_enc)
    pi, _ = dense(dict(sae.named_parameters()), x)
    assert_close(sae.encode(x).dense(), pi.relu())


def test_adam_runs_without_momentum():
    trainer = Trainer(
        made(), TrainConfig(steps=1, batch=50, lr=1e-3, dead_after_tokens=10**9, warmup_steps=0)
    )
    before = copy.deepcopy(trainer.optimizer.param_groups)
    assert [group["betas"] for group in before] == [(0.0, 0.999)]
    assert sum(len(group["params"]) for group in before) == 6


def test_a_weight_left_out_grows_with_the_norm_of_inputs():
    assert [build(GatedConfig(d_sae=F), d).penalty_weight for d in (100, 10_000)] == [0.5, 5.0]
    assert build(GatedConfig(d_sae=F, l1_weight=0.0), D).penalty_weight == 0


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="l1_weight = -1"):
        GatedConfig(l1_weight=-1.0)


def planted(n: int, generator: torch.Generator) -> torch.Tensor:
    """Rows with 3 of 24 fixed features on, coefficients U(0.5, 1.5)."""
    directions = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(directions, dim=1)
    chosen = torch.rand(n, 24, generator=generator).topk(3, dim=1).indices
    strength = torch.rand(n, 3, generator=generator) + 0.5
    return torch.zeros(n, 24).scatter(1, chosen, strength) @ features


def size_of_outputs(cfg: ArchConfig) -> float:
    """gamma = E<x_hat, x_hat> / E<x_hat, x> after training: below 1, reconstructions are too small."""
    settings = TrainConfig(
        steps=200, batch=128, lr=1e-2, dead_after_tokens=10**9, warmup_steps=0, decay_share=0
    )
    trainer, generator = Trainer(build(cfg, 16), settings), torch.Generator().manual_seed(1)
    for _ in range(200):
        x = planted(128, generator)
        trainer.train_step(x, x)
    x = planted(2000, generator)
    x_hat = trainer.sae(x).detach()
    return float((x_hat * x_hat).sum() / (x_hat * x).sum())


def test_an_l1_penalty_shrinks_a_relus_outputs_but_not_those_of_gates_and_thresholds():
    assert size_of_outputs(ReLUConfig(d_sae=24, l1_weight=0.3)) < 0.92
    assert abs(size_of_outputs(GatedConfig(d_sae=24, l1_weight=0.3)) - 1) < 0.02
    jump = JumpReLUConfig(d_sae=24, sparsity_weight=0.05, bandwidth=0.1, threshold=0.1)
    assert abs(size_of_outputs(jump) - 1) < 0.02
