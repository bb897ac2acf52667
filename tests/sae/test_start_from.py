"""A run that starts from another SAE begins as that SAE, whatever the method and the scale of its inputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from activations.progress import no_progress
from activations.store import Store
from sae.architectures import ArchConfig, JumpReLU, JumpReLUConfig, TopKConfig
from sae.config import RunConfig, TrainConfig, from_json, to_json
from sae.foreign import Origin, saelens
from sae.runs.run import Run
from sae.workflows.import_sae import import_sae
from sae.workflows.train import train
from sae.workflows.training import Training, begin
from tests import tiny
from tests.cli.commands import Server
from tests.sae.small import every_architecture

SETTINGS = TrainConfig(steps=20, batch=64, lr=3e-3, log_every=5, checkpoint_minutes=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny.store(tmp_path_factory.mktemp("labelled"), labels="builtin")


def begun(cfg: RunConfig, out: Path) -> Training:
    training = begin(cfg, out, False, "auto", no_progress, Store(cfg.store), lambda: None)
    assert isinstance(training, Training)
    return training


@every_architecture
@pytest.mark.parametrize("scaled", [True, False])
def test_at_step_0_it_is_the_other_sae(store: Store, tmp_path: Path, cfg: ArchConfig, scaled: bool):
    first = train(RunConfig(str(store.path), arch=cfg, train=SETTINGS), tmp_path / "first")
    again = RunConfig(
        str(store.path),
        arch=cfg,
        train=replace(SETTINGS, scale_inputs=scaled, seed=5),
        start_from=str(first.path),
    )
    training = begun(again, tmp_path / "again")
    assert (training.trainer.scale == 1) is not scaled
    ours, other = training.trainer.folded().state_dict(), first.sae().state_dict()
    assert ours.keys() == other.keys()
    for name, tensor in other.items():
        assert_close(ours[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_training_goes_on_where_the_other_run_ended(world: Path, tmp_path: Path):
    cfg = RunConfig(str(world / "store"), arch=TopKConfig(d_sae=32, k=4), train=SETTINGS)
    first = train(cfg, tmp_path / "first")
    again = train(replace(cfg, start_from=str(first.path)), tmp_path / "again")
    assert first.log[0]["fvu"] > again.log[0]["fvu"]
    assert again.log[-1]["fvu"] < first.log[-1]["fvu"]
    assert Run(again.path).config.start_from == str(first.path)
    assert from_json(json.loads(json.dumps(to_json(again.config)))) == again.config
    assert "start_from" not in to_json(first.config)


def test_thresholds_of_zero_as_other_tools_have_are_trained_further(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = replace(SETTINGS, ema=0.9, checkpoint_minutes=1 / 600)
    cfg = RunConfig(str(world / "store"), arch=JumpReLUConfig(d_sae=32), train=settings)
    made = train(cfg, tmp_path / "first").sae()
    assert isinstance(made, JumpReLU)
    made.log_threshold.data[:3] = -torch.inf
    saelens.write(made, Origin("tiny", Store(cfg.store).only_hook()), tmp_path / "theirs")
    first = import_sae(tmp_path / "theirs", tmp_path / "imported", store=world / "store")
    assert (first.sae().thresholds() == 0).sum() == 3
    again = train(replace(cfg, start_from=str(first.path)), tmp_path / "again")
    assert "3 thresholds of 0" in caplog.text
    assert all(tensor.isfinite().all() for tensor in again.sae().state_dict().values())


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"arch.d-sae": 64}, ["topk of 32 latents", "topk of 64"]),
        ({"start-from": "nowhere"}, ["no run at nowhere"]),
    ],
)
def test_another_size_or_a_missing_run_is_one_line_and_nothing_is_written(
    sae: Server, world: Path, tmp_path: Path, changes: dict, facts: list[str]
):
    settings = {
        "store": world / "store",
        "out": tmp_path / "b",
        "arch.d-sae": 32,
        "start-from": world / "runs/toy",
        **changes,
    }
    line = sae(
        "train", "topk", *(part for name, value in settings.items() for part in (f"--{name}", value))
    ).complaint
    assert all(fact in line for fact in facts)
    assert not (tmp_path / "b" / "run.json").exists()
