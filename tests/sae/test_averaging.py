"""Averaged weights (train.ema): what is saved is the mean, without bias, and resuming goes on with the same bits."""

import copy

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import MFR, TopKConfig, build
from sae.config import TrainConfig
from sae.training.trainer import Trainer
from tests.sae.small import SMALL, D, F
from tests.sae.test_laws import rows

SETTINGS = TrainConfig(steps=9, batch=64, lr=1e-2, warmup_steps=0, dead_after_tokens=10**9, ema=0.7)
CFG = TopKConfig(d_sae=F, k=3)


def step(trainer: Trainer) -> None:
    x = rows(seed=trainer.step)
    trainer.train_step(x, x)


@pytest.mark.parametrize("name", ["topk", "relu", "mfr", "gba-untied", "jumprelu-tanh"])
def test_what_is_saved_is_the_weighted_mean_of_the_steps_so_far(name):
    trainer, passed = Trainer(build(SMALL[name], D), SETTINGS), []
    for _ in range(5):
        step(trainer)
        passed.append({n: p.detach().double().clone() for n, p in trainer.sae.named_parameters()})
    saved, last = trainer.folded(), copy.deepcopy(trainer.sae)
    shares = torch.tensor([0.7 ** (4 - s) for s in range(5)], dtype=torch.float64)
    with torch.no_grad():
        for n, p in last.named_parameters():
            p.copy_(
                sum(share * weights[n] for share, weights in zip(shares / shares.sum(), passed, strict=True))
            )
        if last.unit_norm_decoder:
            last.W_dec.div_(last.W_dec.norm(dim=1, keepdim=True))
        last.refresh()
        last.fold_decoder_norms()
    for n, tensor in last.state_dict().items():
        assert_close(saved.state_dict()[n], tensor, rtol=1e-4, atol=1e-6, msg=n)
    assert_close(saved.W_dec.norm(dim=1), torch.ones(F))
    if isinstance(saved, MFR):
        assert_close(saved.W_dec, torch.nn.functional.normalize(saved.weights[0], dim=1))


def test_before_the_first_step_and_with_one_step_it_is_the_weights_themselves():
    trainer = Trainer(build(CFG, D), SETTINGS)
    assert torch.equal(trainer.folded().W_enc, trainer.sae.W_enc)
    step(trainer)
    assert_close(trainer.folded().W_enc, trainer.sae.W_enc)


def test_training_itself_is_not_changed():
    averaged, plain = (
        Trainer(build(CFG, D), SETTINGS),
        Trainer(build(CFG, D), TrainConfig(**{**vars(SETTINGS), "ema": None})),
    )
    for _ in range(5):
        step(averaged)
        step(plain)
    assert torch.equal(averaged.sae.W_enc, plain.sae.W_enc)
    assert not torch.equal(averaged.folded().W_enc, plain.folded().W_enc)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "mfr", "gba", "relu"])
def test_a_run_taken_up_from_a_checkpoint_goes_on_with_the_same_bits(name):
    whole = Trainer(build(SMALL[name], D), SETTINGS, scale=7.3)
    for _ in range(4):
        step(whole)
    resumed = Trainer(build(SMALL[name], D, seed=5), SETTINGS, scale=7.3)
    resumed.sae.load_state_dict(whole.folded().state_dict())  # a checkpoint's SAE is the averaged one
    resumed.restore(4, copy.deepcopy(whole.tensors()))
    for _ in range(3):
        step(whole)
        step(resumed)
    for ours, theirs in ((whole.sae, resumed.sae), (whole.folded(), resumed.folded())):
        assert all(torch.equal(theirs.state_dict()[n], tensor) for n, tensor in ours.state_dict().items())


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5, 2.0])
def test_a_rate_out_of_range_is_named(ema):
    with pytest.raises(ConfigError, match=f"train.ema = {ema}"):
        TrainConfig(ema=ema)
