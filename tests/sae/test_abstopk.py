"""AbsTopK: signs kept everywhere, the nearest sparse vector, and the two-sided threshold of its batch form."""

import copy
import itertools

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae import kernels
from sae.architectures import AbsTopKConfig, TopKConfig, build
from sae.config import TrainConfig
from sae.training.trainer import Trainer

D, F = 8, 24
NONE_DEAD = torch.zeros(F, dtype=torch.bool)
PER_BATCH = AbsTopKConfig(d_sae=F, k=3, per="batch")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signed_mixtures(n: int, seed: int) -> torch.Tensor:
    """Rows of 3 of D planted orthonormal directions, each with strength U(0.5, 1.5) of random sign."""
    directions = torch.linalg.qr(normal(D, D, seed=100)).Q
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, D, generator=generator).argsort(1).argsort(1) < 3
    sign = torch.randint(0, 2, (n, D), generator=generator) * 2 - 1
    return (on * sign * (torch.rand(n, D, generator=generator) + 0.5)) @ directions


def trained(cfg, steps: int = 300, scale: float = 1.0) -> Trainer:
    settings = TrainConfig(steps=steps, batch=128, lr=1e-2, dead_after_tokens=10**9, warmup_steps=0)
    trainer = Trainer(build(cfg, D), settings, scale)
    for step in range(steps):
        x = signed_mixtures(128, seed=step)
        trainer.train_step(x, x)
    return trainer


def test_a_row_keeps_exactly_k_pre_activations_unchanged():
    sae, x = build(AbsTopKConfig(d_sae=F, k=5), D), normal(50, D)
    z, u = sae.encode(x).dense(), sae.pre_activations(x).dense
    assert torch.equal(sae.encode(x).l0(), torch.full((50,), 5))
    assert torch.equal(z[z != 0], u[z != 0])
    assert (z < 0).any() and (z > 0).any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_code_is_the_nearest_k_sparse_vector(k: int):
    """Against all supports of size k, each with the best values it can have: those of u itself."""
    sae, x = build(AbsTopKConfig(d_sae=7, k=k), D), normal(20, D)
    u = sae.pre_activations(x).dense
    ours = (u - sae.encode(x).dense()).square().sum(1)
    supports = torch.zeros(0, 7)
    for support in itertools.combinations(range(7), k):
        supports = torch.cat([supports, torch.zeros(1, 7).index_fill(1, torch.tensor(support), 1.0)])
    others = (u[:, None] * (1 - supports)).square().sum(2)
    assert_close(ours, others.min(1).values)


def test_negating_the_input_negates_the_code():
    sae, x = build(AbsTopKConfig(d_sae=F, k=4), D), normal(30, D)
    assert torch.equal(sae.encode(-x).dense(), -sae.encode(x).dense())
    assert_close(sae.encode(2 * x).dense(), 2 * sae.encode(x).dense())


def test_of_non_negative_pre_activations_it_is_topk():
    signed, plain = build(AbsTopKConfig(d_sae=F, k=4), D), build(TopKConfig(d_sae=F, k=4), D)
    with torch.no_grad():
        signed.W_enc.abs_()
    plain.load_state_dict({name: signed.state_dict()[name] for name in plain.state_dict()})
    x = normal(30, D).abs()
    assert torch.equal(signed.encode(x).dense(), plain.encode(x).dense())


@pytest.mark.parametrize("per", ["token", "batch"])
def test_a_latent_turned_round_changes_only_its_sign(per: str):
    sae = trained(AbsTopKConfig(d_sae=F, k=3, per=per), steps=30).sae.eval()
    turned, x = copy.deepcopy(sae), normal(64, D)
    latent = int(sae.encode(x).dense().abs().sum(0).argmax())
    with torch.no_grad():
        for part in (turned.W_enc[:, latent], turned.b_enc[latent], turned.W_dec[latent]):
            part.neg_()
    before, after = sae.encode(x).dense(), turned.encode(x).dense()
    before[:, latent].neg_()
    assert_close(after, before)
    assert_close(turned(x), sae(x))


def test_gradients_pass_where_a_latent_is_kept_whatever_its_sign_and_nowhere_else():
    sae, x = build(AbsTopKConfig(d_sae=F, k=3), D), normal(1, D)
    code = sae.encode(x)
    upstream = normal(F)
    (code.dense()[0] * upstream).sum().backward()
    kept = code.dense()[0] != 0
    assert (code.values < 0).any()
    assert_close(sae.b_enc.grad, torch.where(kept, upstream, 0.0))
    assert_close(sae.W_enc.grad, x.T * torch.where(kept, upstream, 0.0))


def test_a_latent_that_fires_only_negatively_is_alive():
    sae, x = build(AbsTopKConfig(d_sae=F, k=3), D), normal(40, D)
    with torch.no_grad():
        sae.b_enc[5] = -100.0
    loss = sae.loss(x, x, NONE_DEAD)
    assert loss.fired[5]
    assert loss.terms["l0"] == 3


def test_of_equal_sizes_exactly_k_are_kept_and_always_the_same():
    u = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0.5]]).repeat(3, 1)
    whole = kernels.project(u, torch.eye(5), torch.zeros(5))
    patterns = [whole.largest(3, by_size=True).indices.view(3, 3) for _ in range(2)]
    assert torch.equal(patterns[0], patterns[1])
    assert torch.equal(patterns[0][0], patterns[0][2])
    assert len(set(patterns[0][0].tolist())) == 3


def test_auxk_reaches_a_dead_latent_that_is_always_negative():
    sae, x = build(AbsTopKConfig(d_sae=F, k=2, aux_weight=1.0), D), normal(30, D)
    with torch.no_grad():
        sae.b_enc.fill_(100.0)
        sae.b_enc[3] = -20.0
    dead = torch.arange(F) == 3
    u = sae.pre_activations(x).dense[:, dead]
    assert u.max() < 0 and not sae.encode(x).fired()[3]
    assert_close(sae.activations_of(x, torch.tensor([3])), u)
    sae.loss(x, x, dead).total.backward()
    assert sae.W_enc.grad[:, 3].abs().sum() > 0


def test_per_batch_a_batch_keeps_exactly_k_times_its_rows_shared_out_by_size():
    sae, x = build(PER_BATCH, D), signed_mixtures(40, 0)
    u, z = sae.pre_activations(x).dense, sae.training_code(x).dense()
    assert (z != 0).sum() == 120
    assert u[z == 0].abs().max() <= z[z != 0].abs().min()
    assert (z != 0).sum(1).unique().numel() > 1
    alone = torch.cat([sae.training_code(row[None]).dense() for row in x])
    assert ((alone != 0).sum(1) == 3).all()


def test_per_batch_the_threshold_is_of_sizes_assigned_first_then_averaged_in_training_only():
    sae = build(AbsTopKConfig(d_sae=F, k=3, per="batch", threshold_rate=0.25), D).train()
    least = []
    for seed in (0, 1):
        x = signed_mixtures(64, seed)
        u = sae.pre_activations(x).dense.abs().flatten().sort(descending=True).values
        least.append(u[64 * 3 - 1])
        sae.loss(x, x, NONE_DEAD)
        if seed == 0:
            assert_close(sae.threshold, least[0])
    assert_close(sae.threshold, 0.75 * least[0] + 0.25 * least[1])
    before = sae.threshold.clone()
    sae.eval().loss(signed_mixtures(64, 2), signed_mixtures(64, 2), NONE_DEAD)
    assert torch.equal(sae.threshold, before)


def test_per_token_there_is_no_threshold():
    assert trained(AbsTopKConfig(d_sae=F, k=3), steps=3).sae.threshold == 0


def test_per_batch_in_use_both_signs_pass_the_threshold_and_rows_stand_alone():
    sae = trained(PER_BATCH).sae.eval()
    x = signed_mixtures(5000, seed=10**6)
    z = sae.encode(x).dense()
    assert_close(z[z != 0].abs().min(), sae.threshold, rtol=0.05, atol=0)
    assert 0.4 < (z > 0).sum() / (z != 0).sum() < 0.6
    assert abs((z != 0).sum(1).float().mean() - 3) < 0.3
    assert torch.equal(sae.encode(x[:16]).dense() != 0, z[:16] != 0)


def test_per_batch_folding_the_input_scale_gives_the_same_function():
    scale, x = 7.3, signed_mixtures(64, seed=9)
    sae = trained(PER_BATCH, steps=30, scale=scale).sae.eval()
    folded = copy.deepcopy(sae)
    folded.fold_input_scale(scale)
    assert_close(folded(x), sae(x * scale) / scale, rtol=1e-4, atol=1e-6)


def test_signed_features_need_half_the_latents():
    """D directions used with either sign: one latent each suffices for AbsTopK, TopK has half too few."""
    x = signed_mixtures(5000, seed=10**6)
    spread = (x - x.mean(0)).square().sum()
    fvu = {}
    for cfg in (AbsTopKConfig(d_sae=D, k=3), TopKConfig(d_sae=D, k=3)):
        sae = trained(cfg, steps=400).sae.eval()
        fvu[type(cfg)] = (sae(x) - x).square().sum() / spread
        z = sae.encode(x).dense()
        both = ((z > 0).any(0) & (z < 0).any(0)).float().mean()
        assert both == (1 if type(cfg) is AbsTopKConfig else 0)
    assert fvu[AbsTopKConfig] < 0.1 * fvu[TopKConfig]


def test_a_threshold_rate_out_of_range_is_named():
    with pytest.raises(ConfigError, match="threshold_rate = 0"):
        AbsTopKConfig(threshold_rate=0)
