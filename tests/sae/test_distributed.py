"""Two real processes train one SAE as one process would: sharing batches, or sharing latents; killed, they go on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from activations.parallel import ranks
from activations.shuffle import Batch
from sae.architectures import (
    AbsTopKConfig,
    AdaptiveKConfig,
    ArchConfig,
    BatchTopKConfig,
    KronConfig,
    MatryoshkaConfig,
    TopKConfig,
    build,
)
from sae.cli.main import main
from sae.config import TrainConfig
from sae.runs.run import Run
from sae.training import distributed
from sae.training.trainer import Trainer, fit, fitting
from sae.workflows import training as workflow
from tests.ranks import together
from tests.sae.small import SMALL, D, F

STEPS, ROWS = 12, 32
SETTINGS = TrainConfig(
    steps=STEPS,
    batch=ROWS,
    lr=1e-2,
    warmup_steps=2,
    dead_after_tokens=2 * ROWS,
    clip_norm=0.3,
    log_every=4,
    held_out_every=4,
)
SHARED = {
    **SMALL,
    "adaptivek": AdaptiveKConfig(d_sae=F, k_min=1, k_max=6, joint_share=0.5),
    "batchtopk": BatchTopKConfig(d_sae=F, k=2.6),
    "abstopk per batch": AbsTopKConfig(d_sae=F, k=3, per="batch"),
    "kron per batch": KronConfig(d_sae=F, k=3, select="batchtopk"),
}
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


def here(cfg, trainer: Trainer):
    """What this rank sees of the batches, as a reader that is shared gives it."""
    mine = (
        slice(ranks.rank(), None, ranks.world())
        if isinstance(trainer.ranks, distributed.DataParallel)
        else slice(None)
    )
    for batch in batches(cfg):
        x = batch.x[mine]
        yield Batch(x, x, None if batch.labels is None else batch.labels[mine])


def begun(cfg) -> Trainer:
    """A trainer of which the first latents, all of one rank, hardly fire: dead soon, and AuxK has work to do."""
    sae = build(cfg, D, seed=1)
    with torch.no_grad():
        if "W_enc" in dict(sae.named_parameters()):
            sae.W_enc[:, :10] *= 0.02
    trainer = Trainer(sae, SETTINGS)
    trainer.held_out_rows = torch.randn(19, D, generator=torch.Generator().manual_seed(7))
    return trainer


@contextmanager
def in_float64() -> Iterator[None]:
    """Rounding in float32, which differs with the number of rows, is enough to change whom top-AFA chooses."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def job(table: dict, parallel: str, out: Path) -> None:
    """What each rank does: train every configuration; rank 0 writes down what came of it."""
    torch.set_num_threads(1)
    with ranks.group(), in_float64():
        for name, cfg in table.items():
            trainer = distributed.share(begun(cfg), parallel, torch.device("cpu"))
            result(trainer, cfg, out / name)


def result(trainer: Trainer, cfg, path: Path) -> None:
    log: list[dict[str, float]] = []
    fit(trainer, here(cfg, trainer), log=log.append, save=lambda: None)
    whole = distributed.unsharded(trainer)
    terms = {name: torch.tensor(value) for name, value in log[-1].items() if "second" not in name}
    if whole:
        tensors = {f"log.{name}": value for name, value in terms.items()}
        tensors |= {f"sae.{name}": value for name, value in whole.sae.state_dict().items()}
        torch.save({name: value.clone() for name, value in (tensors | whole.tensors()).items()}, path)


@pytest.mark.parametrize(("parallel", "table"), [("data", SHARED), ("latents", SPLIT)])
def test_ranks_come_to_what_one_rank_does(parallel: str, table: dict, tmp_path: Path):
    assert together(2, job, table, parallel, tmp_path) == [0, 0]
    for name, cfg in table.items():
        with in_float64():
            result(begun(cfg), cfg, tmp_path / "one")
        one, several = torch.load(tmp_path / "one"), torch.load(tmp_path / name)
        assert_close(several, one, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert 0 < one["log.held_out_fvu"] < 2, name
        if hasattr(cfg, "aux_k") and "W_enc" in one:
            assert one["log.auxk"] > 0
            assert 0 < one["log.dead"] < F


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    settings = "--arch.d-sae 32 --arch.k 4 --train.steps 20 --train.batch 64 --train.lr 3e-3 --train.checkpoint-minutes 0.1"
    return ["train", "topk", "--store", str(world / "store"), "--out", str(out), *settings.split(), *more]


def rank_that_dies(args: list[str], step: int | None) -> None:
    """Run the command; rank 1 is killed once it has taken `step` steps. A step takes a second by the clock of rank 0, and two
    by that of rank 1."""

    def fit_some(trainer, batches, **others):
        def dying():
            for batch in batches:
                if trainer.step == step and ranks.rank() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        return fitting(trainer, dying(), clock=lambda: trainer.step * (1.0 + ranks.rank()), **others)

    workflow.fitting = fit_some
    os._exit(main(args))


def files_of(run: Path) -> dict[str, bytes]:
    """Everything but what tells times and the random id."""
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return {name: b"" if name in ("run.json", "log.jsonl") else content for name, content in found.items()}


@pytest.mark.parametrize("parallel", ["data", "latents"])
def test_ranks_of_which_one_is_killed_go_on_to_the_same_bytes(
    parallel: str, world: Path, tmp_path: Path, capfd
):
    undisturbed = arguments(world, tmp_path / "undisturbed", "--parallel", parallel)
    assert together(2, rank_that_dies, undisturbed, None) == [0, 0]
    said = capfd.readouterr()
    assert said.out.count("trained") == said.err.count("20 of 20 steps") == 1
    args = arguments(world, tmp_path / "killed", "--parallel", parallel, "--resume")
    assert together(2, rank_that_dies, args, 15) == [2, -signal.SIGKILL]
    assert "lost the others" in capfd.readouterr().err
    assert [path.name for path in Run(tmp_path / "killed").checkpoints] == ["step-00000006", "step-00000012"]
    assert together(2, rank_that_dies, args, None) == [0, 0]
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")


def test_a_run_begun_by_two_ranks_is_ended_by_one_with_the_same_files(world: Path, tmp_path: Path):
    args = arguments(world, tmp_path / "two", "--parallel", "latents", "--resume")
    assert together(2, rank_that_dies, args, 15)[1] == -signal.SIGKILL
    assert main(args) == 0
    assert main(arguments(world, tmp_path / "one")) == 0
    two, one = Run(tmp_path / "two"), Run(tmp_path / "one")
    assert files_of(two.path).keys() == files_of(one.path).keys()
    assert_close(two.sae().state_dict(), one.sae().state_dict(), rtol=1e-5, atol=1e-5)
    assert_close(two.history, one.history)
    assert_close([row["loss"] for row in two.log], [row["loss"] for row in one.log], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("parallel", "cfg", "batch", "message"),
    [
        ("data", TopKConfig(), 7, "train.batch = 7 is not a multiple of the 2 ranks"),
        ("latents", TopKConfig(d_sae=33), 8, "d_sae = 33 is not a multiple of the 2 ranks"),
        ("latents", MatryoshkaConfig(), 8, "matryoshka learns.*--parallel data"),
    ],
)
def test_what_ranks_cannot_share_is_refused(parallel, cfg, batch: int, message: str, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=message):
        distributed.chosen(parallel, cfg, 16, batch)


@pytest.mark.parametrize(
    ("cfg", "batch", "best"),
    [
        (TopKConfig(d_sae=2**16), 2048, "latents"),
        (TopKConfig(d_sae=2**10), 2**15, "data"),
        (replace(TopKConfig(), d_sae=2**16 + 1), 2048, "data"),
        (MatryoshkaConfig(d_sae=2**16), 2048, "data"),
    ],
)
def test_auto_moves_fewer_bytes_where_it_can_choose(cfg: ArchConfig, batch: int, best: str, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.chosen("auto", cfg, 576, batch) == best


def ties(k: int) -> None:
    """The best of equal keys are the first of rank 0, and no more than k are kept."""
    with ranks.group():
        keys = torch.tensor(
            [[1.0, 2.0, 2.0], [2.0, 2.0, 2.0]] if ranks.rank() == 0 else [[2.0, 2.0], [3.0, -1.0]]
        )
        kept = distributed.largest_of_ranks(keys, k).tolist()
        first = [[[False, True, True], [True, True, False]], [[True, False], [True, False]]]
        assert kept == first[ranks.rank()], kept


def test_of_equal_keys_the_first_are_kept_and_exactly_k():
    assert together(2, ties, 3) == [0, 0]
