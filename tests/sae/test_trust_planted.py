"""`sae trust` where the truth is known: what a recovered world, its frozen-decoder twin and a merged hierarchy are called."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sae.architectures import TopKConfig
from sae.config import TrainConfig
from sae.evaluation.recovery import Parents, recovery
from sae.evaluation.synthetic import Independent, Tree
from sae.trust.planted import hierarchy, judge
from sae.workflows import synthetic

SETTINGS = TrainConfig(steps=300, batch=256, lr=1e-2, warmup_steps=0)
WORLD = Independent(d_model=16, n_features=24, least=2, most=2)
ARCH = TopKConfig(d_sae=32, k=2)
HIERARCHY = Tree(d_model=24, children=15, others=2, p_parent=0.4, p_child=0.95, p_other=0.05)
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]


@pytest.mark.parametrize("seed", SEEDS)
def test_topk_recovers_a_planted_world_and_its_frozen_decoder_twin_does_not(seed: int):
    settings = replace(SETTINGS, seed=seed)
    sae = synthetic.train(WORLD, ARCH, settings)
    controls = synthetic.train_controls(WORLD, ARCH, settings)
    judged = judge(sae, controls, WORLD)
    assert judged.verdict == "recovered", judged
    assert judged.better_by["random-dictionary"].value > 0.9, (
        "it must not hold the planted features themselves"
    )
    twin = controls.pop("frozen-decoder")
    assert judge(twin, controls, WORLD).verdict == "not recovered"


@pytest.mark.parametrize(
    ("k", "hierarchy"), [(1, "not recovered"), pytest.param(2, "absorbed", marks=pytest.mark.slow)]
)
def test_a_hierarchy_that_is_merged_at_a_low_l0_is_not_recovered_however_much_variance_it_explains(
    k: int, hierarchy: str
):
    arch = TopKConfig(d_sae=24, k=k)
    sae = synthetic.train(HIERARCHY, arch, SETTINGS)
    measured = recovery(sae, HIERARCHY)
    assert measured.nmse < 0.35, "variance is high"
    judged = judge(sae, synthetic.train_controls(HIERARCHY, arch, SETTINGS), HIERARCHY)
    assert judged.found.value < 0.4
    assert (judged.verdict, judged.hierarchy) == ("not recovered", hierarchy)


def test_features_are_found_by_the_planted_direction_alone():
    """An SAE whose decoder rows are the planted features has found all, whatever it reconstructs."""
    sae = synthetic.train(WORLD, TopKConfig(d_sae=24, k=2), replace(SETTINGS, steps=1))
    sae.W_dec.copy_(WORLD.features)
    assert judge(sae, {}, WORLD).found == (1.0, 1.0, 1.0)
    sae.W_dec[:12] = sae.W_dec[12:]
    assert judge(sae, {}, WORLD).found.value == pytest.approx(0.5)
    assert judge(sae, {}, WORLD).verdict == "not recovered"


@pytest.mark.parametrize(
    ("alone", "beside", "expected"),
    [
        (0.9, 0.3, "absorbed"),
        (0.5, 0.5, "not recovered"),  # rarely firing everywhere is not absorption
        (0.0, 0.6, "not recovered"),
        (float("nan"), 0.3, "not recovered"),
        (0.9, float("nan"), "not recovered"),
        (0.9, 0.9, "not recovered"),
    ],
)
def test_absorbed_is_a_parent_s_latent_that_fires_more_rarely_beside_a_child(alone, beside, expected):
    found = torch.ones(8, dtype=torch.bool)
    spread = torch.linspace(-0.05, 0.05, 8, dtype=torch.float64)
    measured = Parents(found, alone + spread, beside + spread.flip(0))
    assert hierarchy(measured, "not recovered")[0] == expected
    assert hierarchy(measured._replace(found=~found), "not recovered")[0] == "not recovered"


def test_parents_without_a_row_beside_a_child_count_for_nothing():
    def measured(beside: Tensor) -> Parents:
        return Parents(torch.ones(len(beside), dtype=torch.bool), torch.full_like(beside, 0.9), beside)

    kept = torch.tensor([0.9, 0.9, 0.9, 0.1], dtype=torch.float64)
    unknown = torch.full((4,), float("nan"), dtype=torch.float64)
    for beside in (kept, torch.cat([kept, unknown])):
        share = hierarchy(measured(beside), "recovered")[1]
        assert share is not None and share.value == 0.75
    assert hierarchy(measured(torch.cat([kept[:3], unknown])), "recovered")[0] == "recovered"
    assert hierarchy(measured(unknown), "recovered") == ("not recovered", None)
