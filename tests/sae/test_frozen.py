"""Parts of an SAE that training keeps as they started: the controls of `sae trust`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from activations.errors import ConfigError
from sae.architectures import ARCHITECTURES, TopKConfig, build
from sae.config import RunConfig, TrainConfig, from_json, to_json
from sae.evaluation.synthetic import Independent
from sae.training.frozen import Frozen, refuse, within_cone
from sae.workflows import synthetic
from sae.workflows.train import train
from tests import tiny

SETTINGS = TrainConfig(steps=40, batch=64, lr=1e-2, warmup_steps=0, seed=3)
WORLD = Independent(d_model=8, n_features=12, least=1, most=3)
UNTIED = [name for name in ARCHITECTURES if name not in ("mfr", "gba")]


def trained(arch: str, part: str | None):
    """Return an SAE's parameters before and after training on a small planted world."""
    config = ARCHITECTURES[arch].config
    cfg = config(**config.small(16, 2))
    trainer = synthetic.begin(WORLD, cfg, replace(SETTINGS, frozen=part))
    before = {name: p.detach().clone() for name, p in trainer.sae.named_parameters()}
    synthetic.finish(trainer, WORLD)
    return before, dict(trainer.sae.named_parameters())


@pytest.mark.parametrize("arch", UNTIED)
def test_a_frozen_decoder_keeps_its_bits_while_the_encoder_learns(arch: str):
    before, after = trained(arch, "decoder")
    assert torch.equal(after["W_dec"], before["W_dec"])
    assert any(not torch.equal(after[name], before[name]) for name in after if name != "W_dec")


@pytest.mark.parametrize("arch", UNTIED)
def test_a_frozen_encoder_keeps_its_matrices_while_decoder_and_biases_learn(arch: str):
    before, after = trained(arch, "encoder")
    matrices = [name for name, p in after.items() if p.dim() > 1 and name != "W_dec"]
    assert matrices
    assert all(torch.equal(after[name], before[name]) for name in matrices)
    assert not torch.equal(after["W_dec"], before["W_dec"])


def test_a_soft_frozen_decoder_stays_within_a_cosine_of_its_start():
    free_start, free = trained("topk", None)
    start, soft = trained("topk", "soft-decoder")
    cosines = cosine_similarity(soft["W_dec"], start["W_dec"], dim=1)
    assert cosines.min() >= 0.8 - 1e-5
    assert (cosines < 0.81).any(), "some rows reach the edge of the cone"
    assert cosine_similarity(free["W_dec"], free_start["W_dec"], dim=1).min() < 0.8, "without it they leave"
    assert torch.allclose(soft["W_dec"].norm(dim=1), torch.ones(16), atol=1e-5)


def test_a_row_outside_the_cone_is_moved_to_the_nearest_row_on_its_edge():
    start = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 2.0, 0]])
    rows = torch.tensor([[0.0, 3, 0], [0.9, 0.1, 0], [0.0, -1, 0]])
    moved = within_cone(rows, start)
    assert torch.allclose(moved[0], 3 * torch.tensor([0.8, 0.6, 0]), atol=1e-6)
    assert torch.equal(moved[1], rows[1])
    assert torch.allclose(moved[2], torch.tensor([0.0, 1, 0]), atol=1e-6), (
        "an exact opposite turns to its start"
    )


@pytest.mark.parametrize("arch", ["mfr", "gba"])
def test_tied_weights_are_refused(arch: str):
    sae = build(ARCHITECTURES[arch].config(**ARCHITECTURES[arch].config.small(16, 2)), 8)
    with pytest.raises(ConfigError, match=f"train.frozen = encoder: encoder and decoder of {arch} are tied"):
        refuse(sae, "encoder")


def test_a_run_with_a_soft_frozen_decoder_resumes_to_the_same_bits(world: Path, tmp_path: Path):
    cfg = RunConfig(
        store=str(world / "store"),
        arch=TopKConfig(d_sae=32, k=4),
        train=TrainConfig(
            steps=30, batch=64, lr=1e-2, log_every=5, checkpoint_minutes=1 / 6, frozen="soft-decoder"
        ),
    )
    whole = train(cfg, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(cfg, tmp_path / "halves", progress=tiny.Told(end_at=0.5))
    halves = train(cfg, tmp_path / "halves", resume=True)
    for name, tensor in whole.sae().state_dict().items():
        assert torch.equal(tensor, halves.sae().state_dict()[name]), name


def test_the_setting_is_in_run_json_only_where_it_is_set():
    assert "frozen" not in to_json(RunConfig())["train"]
    changed = RunConfig(train=TrainConfig(frozen="decoder"))
    assert from_json(json.loads(json.dumps(to_json(changed)))) == changed


def test_a_frozen_part_needs_no_gradient():
    sae = build(TopKConfig(d_sae=16, k=2), 8)
    Frozen(sae, "encoder")
    assert [name for name, p in sae.named_parameters() if not p.requires_grad] == ["W_enc"]
