"""The decoder's proxies of the right L0 are their formulas, and on planted features c_dec is smallest at the true L0."""

import numpy as np
import pytest
import torch

from sae.architectures import BatchTopKConfig, TopKConfig, build
from sae.config import TrainConfig
from sae.evaluation import l0_proxies
from sae.evaluation.held_out import reconstruction
from sae.evaluation.synthetic import Independent
from sae.runs.run import Run
from sae.workflows.compare import Result, which_l0
from sae.workflows.synthetic import train

SETTINGS = TrainConfig(steps=3000, batch=256, lr=5e-3, warmup_steps=0)


def test_both_proxies_are_their_formulas_in_float64():
    sae = build(TopKConfig(d_sae=10, k=2), 6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(10, 6, generator=generator))
        sae.b_dec.copy_(torch.randn(6, generator=generator))
    x = torch.randn(300, 6, generator=generator)
    rows = sae.W_dec.detach().double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = [abs(unit[i] @ unit[j]) for i in range(10) for j in range(10) if i != j]
    projections = (x.double().numpy() - sae.b_dec.detach().double().numpy()) @ unit.T
    fifth = [sorted(row, reverse=True)[4] for row in projections]
    found = l0_proxies.proxies(sae, x)
    assert found["decoder_cosine"] == pytest.approx(np.mean(cosines), rel=1e-6)
    assert found["decoder_projection"] == pytest.approx(np.mean(fifth), rel=1e-5)
    assert (found["rows"], found["latents"]) == (300, 10)


@pytest.fixture(scope="module")
def run(world) -> Run:
    return Run(world / "runs" / "toy")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "true"), [(TopKConfig, 5), (BatchTopKConfig, 3)])
def test_decoder_rows_overlap_least_at_the_true_l0(arch: type, true: int):
    """Orthonormal features, as in the paper's toy models; after a tenth of these steps the smallest overlap lies anywhere from 3 to 6."""
    world = Independent(d_model=24, n_features=24, least=true, most=true, orthonormal=True)
    saes = {k: train(world, arch(d_sae=24, k=k), SETTINGS) for k in (true - 1, true, true + 1)}
    overlap = {k: l0_proxies.decoder_cosine(sae.W_dec) for k, sae in saes.items()}
    assert min(overlap, key=lambda k: overlap[k]) == true, overlap
    results = [Result(str(k), "topk", 24, float(k), 0.1, None, None, 0.0, c) for k, c in overlap.items()]
    (said,) = which_l0(results)
    assert f"at L0 {true}, a sign that the right L0 lies between {true - 1} and {true + 1}" in said


def test_a_minimum_at_an_end_of_the_sweep_is_no_answer():
    falling = [Result(str(k), "topk", 64, float(k), 0.1, None, None, 0.0, 1 / k) for k in (2, 4, 8)]
    (said,) = which_l0(falling)
    assert "largest L0 of the sweep, 8" in said and "does not tell" in said
    assert which_l0(falling[:2]) == []  # two points have no minimum in between
    seeds = [falling[0]._replace(l0=l0) for l0 in (31.997, 31.998, 31.999)]
    assert which_l0(seeds) == []
    other_hook = [line._replace(hook="blocks.1.hook_resid_post") for line in falling[1:]]
    assert which_l0([falling[0], *other_hook]) == []  # a level of another hook point belongs to another sweep
    other = [line._replace(width=128) for line in falling]
    assert len(which_l0([*falling, *other])) == 2
    assert which_l0([line._replace(decoder_cosine=None) for line in falling]) == []


def test_an_evaluation_has_the_proxies_whatever_the_batch(run):
    sae, store = run.sae(), run.store
    found = reconstruction(sae, store, run.hook)["l0_proxies"]
    smaller = reconstruction(sae, store, run.hook, batch=7)["l0_proxies"]
    assert found["decoder_cosine"] == smaller["decoder_cosine"]
    assert found["decoder_projection"] == pytest.approx(smaller["decoder_projection"], rel=1e-6)
    assert run.evaluation.l0_proxies.decoder_cosine == pytest.approx(found["decoder_cosine"])
