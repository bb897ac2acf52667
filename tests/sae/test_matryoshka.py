"""Matryoshka: nested reconstructions from one code, and a parent feature that keeps firing beside its children."""

import json

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import BatchTopKConfig, Matryoshka, MatryoshkaConfig, build
from sae.config import RunConfig, TrainConfig, from_json, to_json
from sae.losses import fvu
from sae.training.trainer import Trainer

D, F = 8, 24
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> Matryoshka:
    sae = build(MatryoshkaConfig(d_sae=F, k=3, **{"prefixes": (0.25, 0.5, 1.0), **settings}), D)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-1, 1, D))
    return sae


def test_each_prefix_reconstructs_with_its_latents_alone_and_the_last_with_all():
    sae, x = made(), rows()
    code = sae.training_code(x)
    z, parts = code.dense(), torch.stack(sae.reconstructions(code))
    assert parts.shape == (3, 50, D)
    for end, part in zip((6, 12, 24), parts, strict=True):
        assert_close(part, z[:, :end] @ sae.W_dec[:end] + sae.b_dec)
    assert_close(parts[-1], sae.decode(code))


def test_the_total_is_the_sum_of_the_prefixes_and_auxk():
    sae, x, dead = made(), rows(), torch.arange(F) > 20
    z = sae.training_code(x).dense()
    loss = sae.loss(x, x, dead)
    parts = [fvu(x, z[:, :end] @ sae.W_dec[:end] + sae.b_dec) for end in (6, 12, 24)]
    assert_close(loss.total, sum(parts) + sae.cfg.aux_weight * loss.terms["auxk"])
    assert_close(torch.stack([loss.terms[name] for name in ("fvu_6", "fvu_12", "fvu")]), torch.stack(parts))


def test_a_prefixs_loss_teaches_its_own_rows_of_the_decoder_only():
    sae, x = made(), rows()
    for end, part in zip((6, 12, 24), sae.reconstructions(sae.training_code(x)), strict=True):
        gradient, by_encoder = torch.autograd.grad(fvu(x, part), [sae.W_dec, sae.W_enc], retain_graph=True)
        assert (gradient[end:] == 0).all()
        assert (by_encoder[:, end:] == 0).all()
        assert gradient[:end].abs().sum() > 0


def test_k_is_shared_by_the_whole_dictionary():
    sae, x = made(), rows(40)
    assert sae.training_code(x).l0().sum() == 120
    assert sae.loss(x, x, NONE_DEAD).terms["l0"] == 3


def test_one_prefix_is_batchtopk_to_the_bit():
    settings = TrainConfig(steps=20, batch=50, lr=1e-2, dead_after_tokens=200, warmup_steps=0)
    one = Trainer(build(MatryoshkaConfig(d_sae=F, k=3, prefixes=(1.0,)), D), settings)
    plain = Trainer(build(BatchTopKConfig(d_sae=F, k=3), D), settings)
    for seed in range(20):
        for trainer in (one, plain):
            trainer.train_step(rows(seed=seed), rows(seed=seed))
    for name, tensor in plain.sae.state_dict().items():
        assert torch.equal(one.sae.state_dict()[name], tensor), name


def test_prefixes_are_shares_counted_from_the_first_latent():
    assert MatryoshkaConfig(d_sae=64).ends == (4, 8, 16, 32, 64)
    with pytest.raises(ConfigError, match=r"as sizes of groups they would be prefixes \(0.25, 0.5, 1.0\)"):
        MatryoshkaConfig(prefixes=(0.25, 0.25, 0.5))
    for wrong in ((), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 2.0)):
        with pytest.raises(ConfigError, match="must rise to 1"):
            MatryoshkaConfig(prefixes=wrong)
    with pytest.raises(ConfigError, match="d_sae = 4"):
        MatryoshkaConfig(d_sae=4, k=1, prefixes=(0.01, 1.0))


def test_the_configuration_survives_json():
    cfg = RunConfig(store="s", arch=MatryoshkaConfig(d_sae=64, k=8))
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg
