"""Batches without a variance: refused where every one would be so, trained on where one happens to be."""

import pytest
import torch

from activations.errors import ConfigError, DivergedError
from sae.architectures import BatchTopKConfig, TopKConfig, build
from sae.config import TrainConfig
from sae.training.trainer import Trainer
from tests.sae.small import D, F, every_architecture

TOPK = TopKConfig(d_sae=F, k=3)
CONFIG = TrainConfig(steps=12, batch=8, lr=1e-2, warmup_steps=0, dead_after_tokens=16)


def trainer(cfg, scale: float = 1.0, training: TrainConfig = CONFIG) -> Trainer:
    sae = build(cfg, D, seed=1)
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(0)) * scale
    sae.initialise(x, x.mean(0), torch.Generator().manual_seed(1))
    return Trainer(sae, training)


@every_architecture
@pytest.mark.parametrize("rows", ["one", "equal", "two alike", "zero"])
def test_a_batch_without_a_variance_is_trained_on_like_any_other(cfg, rows):
    generator = torch.Generator().manual_seed(2)
    made = trainer(cfg)
    for step in range(12):
        row = torch.randn(1, D, generator=generator)
        x = {"one": row, "equal": row.expand(8, D), "two alike": row.expand(2, D), "zero": torch.zeros(8, D)}[
            rows
        ]
        if step % 2:
            x = torch.randn(8, D, generator=generator)  # an ordinary one between them
        loss, extra = made.train_step(x.contiguous(), x.contiguous())
        assert loss.total.isfinite() and 0 <= loss.terms["fvu"] < 1e3, (step, loss.terms)
        assert extra["grad_norm"] < 1e4
    assert all(
        tensor.isfinite().all() for name, tensor in made.sae.named_parameters() if name != "log_threshold"
    )


@pytest.mark.parametrize("batch", [1, 0, -3])
def test_batches_that_can_have_no_variance_are_refused(batch):
    with pytest.raises(ConfigError, match=f"train.batch = {batch} must be at least"):
        TrainConfig(batch=batch)


def test_a_loss_that_is_infinite_before_any_step_is_not_blamed_on_the_learning_rate():
    made = trainer(TOPK)
    x = torch.full((8, D), 1e30) * torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DivergedError) as caught:
        made.train_step(x, x)
    assert "at step 0" in str(caught.value) and "train.lr" not in str(caught.value)
    fast = trainer(
        TOPK, training=TrainConfig(steps=50, batch=8, lr=1e30, warmup_steps=0, dead_after_tokens=16)
    )
    rows = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DivergedError, match=r"lower --train.lr \(it is 1e\+30\)"):
        all(fast.train_step(rows, rows) for _ in range(50))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TopKConfig(aux_weight=float("nan")), "aux_weight = nan"),
        (lambda: TopKConfig(aux_weight=-5.0), "aux_weight = -5"),
        (lambda: TopKConfig(aux_k=-3), "aux_k = -3"),
        (lambda: build(TopKConfig(d_sae=10**15), D), "d_sae = 1000000000000000"),
        (lambda: TrainConfig(seed=2**64), "train.seed = 18446744073709551616"),
        (lambda: TrainConfig(seed=-1), "train.seed = -1"),
        (
            lambda: TrainConfig(batch=2).resolved(1000, BatchTopKConfig(d_sae=F, k=0.4)),
            "0.4 latents a row keep none in a batch of train.batch = 2",
        ),
        (
            lambda: TrainConfig(steps=5, warmup_steps=6).resolved(1000, TopKConfig(d_sae=F, k=1)),
            "train.warmup_steps = 6",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_can_only_go_wrong_are_refused(make, said):
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
