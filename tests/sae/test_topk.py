"""TopK: its own properties (methods: nnz, ReLU after the choice, AuxK's revival and its limits)."""

import pytest
import torch
from torch.testing import assert_close

from sae.architectures import TopKConfig, build
from sae.config import TrainConfig
from sae.losses import auxk, fvu
from sae.training.trainer import Trainer


def test_each_row_keeps_k_latents_when_k_are_positive_and_fewer_when_they_are_not():
    sae = build(TopKConfig(d_sae=12, k=4), 6)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.fill_(-0.2)
    positive = (sae.pre_activations(x).dense > 0).sum(1)
    assert torch.equal(sae.encode(x).l0(), positive.clamp_max(4))
    assert (positive < 4).any()
    assert sae.encode(x).dense().min() >= 0


def planted(n_features: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """Random unit features, and the generator they came from."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
    return features, generator


def batch(features: torch.Tensor, active: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Rows with exactly `active` of the features on, with coefficients U(0.5, 1.5)."""
    chosen = torch.rand(rows, len(features), generator=generator).topk(active, dim=1).indices
    strength = torch.rand(rows, active, generator=generator) + 0.5
    return torch.zeros(rows, len(features)).scatter(1, chosen, strength) @ features


def test_auxk_revives_latents_that_are_weak():
    """Half of the encoder shrunk to 0.02. Expected: FVU .313 with 32 dead, and .089 with 2; within 30 %."""
    features, generator = planted(64, 32, seed=0)
    results = {}
    for weight in (0.0, 1 / 32):
        trainer = _damaged(weight, features, generator.manual_seed(1))
        results[weight] = _train(trainer, features, generator)
    (fvu_off, dead_off), (fvu_on, dead_on) = results[0.0], results[1 / 32]
    assert dead_off >= 28
    assert dead_on <= 4
    assert fvu_off > 0.7 * 0.313
    assert fvu_on < 1.3 * 0.089


def _damaged(aux_weight: float, features: torch.Tensor, generator: torch.Generator) -> Trainer:
    settings = TrainConfig(
        steps=2500, batch=256, lr=1e-3, dead_after_tokens=10_000, warmup_steps=0, decay_share=0
    )
    trainer = Trainer(build(TopKConfig(d_sae=64, k=3, aux_weight=aux_weight), 32, seed=0), settings)
    with torch.no_grad():
        trainer.sae.W_enc[:, :32] *= 0.02
    return trainer


def _train(trainer: Trainer, features: torch.Tensor, generator: torch.Generator) -> tuple[float, int]:
    """Train to the end; FVU of a fresh large batch, and how many latents stay silent on it."""
    while not trainer.finished:
        x = batch(features, 3, 256, generator)
        trainer.train_step(x, x)
    x = batch(features, 3, 20_000, generator)
    loss = trainer.sae.eval().loss(x, x, torch.zeros(64, dtype=torch.bool))
    return loss.terms["fvu"].item(), int((~loss.fired).sum())


def test_a_latent_never_positive_gets_no_gradient_from_auxk():
    sae = build(TopKConfig(d_sae=8, k=2, aux_weight=1.0), 4)
    with torch.no_grad():
        sae.b_enc[3] = -100.0
    dead = torch.zeros(8, dtype=torch.bool)
    dead[3] = True
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    sae.loss(x, x, dead).total.backward()
    assert sae.W_enc.grad[:, 3].abs().sum() == 0


@pytest.mark.parametrize("signed", [False, True])
def test_auxk_is_the_fvu_of_the_residual_given_the_k_dead_latents_of_largest_size(signed):
    generator = torch.Generator().manual_seed(0)
    u, W_dec = torch.randn(20, 6, generator=generator), torch.randn(6, 4, generator=generator)
    residual = torch.randn(20, 4, generator=generator)
    active = u if signed else u.relu()
    code = torch.zeros(20, 6)
    for row in range(20):
        for latent in sorted(range(6), key=lambda j: -abs(active[row, j]))[:2]:
            code[row, latent] = active[row, latent]
    error = (code @ W_dec - residual).double().square().sum()
    spread = (residual - residual.mean(0)).double().square().sum()
    assert_close(auxk(active, W_dec, residual, 2).double(), error / spread)


def test_auxk_sends_no_gradient_into_the_residual():
    residual = torch.randn(5, 3, requires_grad=True)
    auxk(torch.randn(5, 4, requires_grad=True), torch.randn(4, 3), residual, 2).backward()
    assert residual.grad is None


def test_fvu_is_zero_when_exact_one_at_the_mean_and_blind_to_scale_and_shift():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x_hat = x + 0.1
    assert fvu(x, x) == 0
    assert_close(fvu(x, x.mean(0).expand_as(x)), torch.tensor(1.0))
    assert_close(fvu(3 * x + 5, 3 * x_hat + 5), fvu(x, x_hat), rtol=1e-3, atol=0)


def test_fvu_and_its_gradient_are_those_of_the_formula_in_float64():
    generator = torch.Generator().manual_seed(0)
    x, x_hat = (torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in "ab")
    spread = (x.detach() - x.detach().mean(0)).square().sum()
    value, expected = fvu(x, x_hat), (x_hat - x).square().sum() / spread
    assert_close(value, expected)
    for own, reference in zip(
        torch.autograd.grad(3 * value, (x, x_hat)), torch.autograd.grad(3 * expected, (x, x_hat)), strict=True
    ):
        assert_close(own, reference)


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_fvu_of_rows_that_are_all_equal_is_relative_to_their_squares(rows):
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).expand(rows, 4).contiguous()
    for scale in (1.0, 1e-3, 1e4):
        assert fvu(scale * x, scale * x) == 0
        assert_close(fvu(scale * x, torch.zeros(rows, 4)), torch.tensor(1.0))
        assert_close(fvu(scale * x, 3 * scale * x), torch.tensor(4.0))
    zeros = torch.zeros(rows, 4)
    assert fvu(zeros, zeros) == 0
    assert_close(fvu(zeros, torch.ones(rows, 4)), torch.tensor(1.0))


def test_multi_topk_is_the_weighted_sum_of_both_errors_and_moves_what_only_the_longer_code_reaches():
    """Against autograd through a dense float64 form; the training step with gradients by row agrees with it."""
    cfg = TopKConfig(d_sae=40, k=2, multi_weight=1 / 8)
    sae, x = build(cfg, 12), torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    loss = sae.loss(x, x, torch.zeros(40, dtype=torch.bool))
    loss.total.backward()
    parts = {name: p.detach().double().requires_grad_() for name, p in sae.named_parameters()}
    u = (x.double() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]

    def error(k: int) -> torch.Tensor:
        places = u.topk(k, dim=1)
        z = torch.zeros_like(u).scatter(1, places.indices, places.values.relu())
        return fvu(x.double(), z @ parts["W_dec"] + parts["b_dec"])

    whole = error(2) + error(8) / 8
    whole.backward()
    assert_close(loss.total.double(), whole.detach())
    assert_close(loss.terms["fvu_multi"].double(), error(8).detach())
    for name, p in parts.items():
        assert_close(sae.get_parameter(name).grad.double(), p.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert not loss.fired[torch.isin(torch.arange(40), sae.encode(x).indices, invert=True)].any()


def test_multi_topk_of_few_latents_takes_all_there_are():
    assert TopKConfig(d_sae=10, k=4).multi_k == 10
