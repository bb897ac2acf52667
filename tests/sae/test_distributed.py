"""Two real processes train one SAE as one process would: sharing batches, or sharing latents; killed, they go on."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from activations import ranks
from activations.errors import RankError
from activations.shuffle import Batch
from sae import kernels
from sae.architectures import AbsTopKConfig, BatchTopKConfig, MatryoshkaConfig, TopKConfig, build
from sae.cli import train as command
from sae.cli.train import train
from sae.config import RunConfig
from sae.errors import ConfigError
from sae.runs import Run, load_sae
from sae.training import distributed, sharing
from sae.training.trainer import TrainConfig, Trainer, fit
from tests.ranks import together
from tests.sae.small import SMALL, D, F

STEPS, ROWS = 12, 32
SETTINGS = TrainConfig(
    steps=STEPS, batch=ROWS, lr=1e-2, warmup_steps=2, dead_after_tokens=2 * ROWS, clip_norm=0.3, log_every=4
)
SPLIT = {
    "topk": TopKConfig(d_sae=F, k=3),
    "more than one rank's": TopKConfig(d_sae=F, k=F // 2 + 3),
    "few auxiliary": TopKConfig(d_sae=F, k=3, aux_k=1),
    "abstopk": AbsTopKConfig(d_sae=F, k=3),
    "abstopk per batch": AbsTopKConfig(d_sae=F, k=3, per="batch"),
    "batchtopk": BatchTopKConfig(d_sae=F, k=2.6),
}


def batches(cfg):
    """Rows whose variance, size and labels differ between those of an even and of an odd number; some have no label."""
    for seed in range(STEPS):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(ROWS, D, generator=generator) @ torch.randn(
            D, D, generator=torch.Generator().manual_seed(99)
        )
        x[1::2] = 3 * x[1::2] + 1
        labels = torch.rand(ROWS, generator=generator) * 10
        labels[seed % 3 :: 4] = torch.nan
        yield Batch(x, x, labels if cfg.reads_labels else None)


def begun(cfg) -> Trainer:
    """A trainer of which the first latents, all of one rank, hardly fire: dead soon, and AuxK has work to do."""
    sae = build(cfg, D, seed=1)
    with torch.no_grad():
        if "W_enc" in dict(sae.named_parameters()):
            sae.W_enc[:, :10] *= 0.02
    return Trainer(sae, SETTINGS)


def job(table: dict, parallel: str, out: Path) -> None:
    """What each rank does: train every configuration; rank 0 writes down what came of it."""
    torch.set_num_threads(1)
    with ranks.group():
        for name, cfg in table.items():
            trainer = sharing.share(begun(cfg), parallel, torch.device("cpu"))
            result(trainer, cfg, out / name)


def result(trainer: Trainer, cfg, path: Path) -> None:
    log: list[dict[str, float]] = []
    stream = (sharing.rows_here(batch, trainer) for batch in batches(cfg))
    fit(trainer, stream, log=log.append, save=lambda: None)
    whole = sharing.whole(trainer)
    terms = {name: torch.tensor(value) for name, value in log[-1].items() if "second" not in name}
    if whole:
        tensors = {f"log.{name}": value for name, value in terms.items()}
        tensors |= {f"sae.{name}": value for name, value in whole.sae.state_dict().items()}
        torch.save({name: value.clone() for name, value in (tensors | whole.tensors()).items()}, path)


@pytest.mark.parametrize(("parallel", "table"), [("data", SMALL), ("latents", SPLIT)])
def test_ranks_come_to_what_one_rank_does(parallel: str, table: dict, tmp_path: Path):
    assert together(2, job, table, parallel, tmp_path) == [0, 0]
    for name, cfg in table.items():
        result(begun(cfg), cfg, tmp_path / "one")
        one, several = torch.load(tmp_path / "one"), torch.load(tmp_path / name)
        assert_close(several, one, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        if hasattr(cfg, "aux_k") and "W_enc" in one:
            assert one["log.auxk"] > 0
            assert 0 < one["log.dead"] < F
