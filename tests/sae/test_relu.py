"""ReLU: what its loss is made of, and that rescaling a latent changes nothing."""

import copy

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import ReLUConfig, build

D, F = 8, 24
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 50) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def made(**settings):
    """An SAE with biases and rows of all sorts."""
    sae = build(ReLUConfig(d_sae=F, **settings), D)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=generator)
        sae.b_dec.normal_(generator=generator)
        sae.W_dec.mul_(torch.rand(F, 1, generator=generator) + 0.5)
    return sae


def dense_loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, l1_weight: float):
    z = (x @ weights["W_enc"] + weights["b_enc"]).relu()
    y_hat = z @ weights["W_dec"] + weights["b_dec"]
    error = (y - y_hat).square().sum(1).mean()
    return error + l1_weight * (z * weights["W_dec"].norm(dim=1)).sum(1).mean()


@pytest.mark.parametrize("l1_weight", [0.0, 5.0])
def test_loss_and_gradients_are_those_of_the_dense_formula(l1_weight):
    """Squared error summed over D, L1 weighted by row norms, mean over rows; without L1 a plain autoencoder."""
    sae, x, y = made(l1_weight=l1_weight), rows(), rows().flip(0)
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in sae.named_parameters()}
    expected = dense_loss(weights, x.double(), y.double(), l1_weight)
    expected.backward()
    total = sae.loss(x, y, NONE_DEAD).total
    total.backward()
    assert_close(total.double(), expected, rtol=1e-5, atol=0)
    for name, parameter in sae.named_parameters():
        assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_rescaling_a_latent_leaves_reconstruction_and_loss():
    sae, x = made(), rows()
    scaled = copy.deepcopy(sae)
    factor = torch.rand(F, generator=torch.Generator().manual_seed(2)) + 0.5
    with torch.no_grad():
        scaled.W_dec.mul_(factor[:, None])
        scaled.W_enc.div_(factor)
        scaled.b_enc.div_(factor)
    assert_close(scaled(x), sae(x), rtol=1e-4, atol=1e-5)
    assert_close(scaled.loss(x, x, NONE_DEAD).total, sae.loss(x, x, NONE_DEAD).total)
    scaled.fold_decoder_norms()
    assert_close(scaled.loss(x, x, NONE_DEAD).total, sae.loss(x, x, NONE_DEAD).total)


def test_a_latent_whose_row_is_0_stays_finite_when_norms_are_folded():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.W_dec[3] = 0
    before = sae(x)
    sae.fold_decoder_norms()
    assert_close(sae(x), before)
    assert all(torch.isfinite(tensor).all() for tensor in sae.state_dict().values())


def test_it_starts_with_rows_of_norm_a_tenth_a_transposed_encoder_and_centred_inputs():
    sae, centre = build(ReLUConfig(d_sae=F), D), torch.linspace(-3, 3, D)
    sae.initialise(centre[None], centre, torch.Generator().manual_seed(0))
    assert_close(sae.W_dec.norm(dim=1), torch.full((F,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    x = rows()
    assert_close(sae.encode(x + centre).dense(), (x @ sae.W_enc).relu(), rtol=1e-4, atol=1e-5)
    assert torch.equal(sae.b_dec, centre)


def test_the_weight_rises_linearly_over_its_share_of_the_steps():
    sae, x = made(l1_weight=2.0, l1_warmup_share=0.1), rows()
    weights = []
    for step in (0, 3, 10, 99):
        sae.begin_step(step, 100)
        loss = sae.loss(x, x, NONE_DEAD)
        weights.append((loss.total - loss.terms["squared_error"]) / loss.terms["l1"])
    assert_close(torch.stack(weights), torch.tensor([0.0, 0.6, 2.0, 2.0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"l1_weight": -1.0}, {"l1_weight": float("nan")}, {"l1_warmup_share": 1.5}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ReLUConfig(**wrong)


def test_a_weight_left_out_grows_with_the_norm_of_inputs():
    assert [build(ReLUConfig(d_sae=F), d).penalty_weight for d in (576, 57_600)] == [1.0, 10.0]
    assert build(ReLUConfig(d_sae=F, l1_weight=0.0), D).penalty_weight == 0
