"""Planted features beside SAELens' SynthSAEBench: the same F1, MCC and uniqueness of the same SAEs, the same laws of the data."""

from typing import Any

import pytest
import torch

from sae.architectures import ARCHITECTURES, build
from sae.evaluation.recovery import recovery
from sae.evaluation.structured import Structured, thresholds, zipf_frequencies
from sae.evaluation.synthetic import World
from sae.workflows.synthetic_table import method

bench = pytest.importorskip("sae_lens.synthetic", reason="SAELens is not installed here: make test-peers")
evals = pytest.importorskip("sae_lens.synthetic.evals")

pytestmark = pytest.mark.peers
SEED, ROWS = 5, 3000
WORLD = Structured(d_model=24, n_features=48)


def theirs(sae: Any, world: World, rows: int = ROWS) -> tuple[Any, float, float]:
    """Return SAELens' classification, MCC and uniqueness of our SAE on the rows that `recovery` draws."""
    x, codes = world.draw(rows, torch.Generator().manual_seed(SEED))
    classes = evals.compute_classification_metrics(sae.encode(x).dense(), codes, sae.W_dec, world.features)
    return (
        classes,
        evals.mean_correlation_coefficient(sae.W_dec, world.features),
        evals.feature_uniqueness(sae.W_dec, world.features),
    )


@pytest.mark.parametrize("d_sae", [16, 48, 96])
@pytest.mark.parametrize("name", ["topk", "abstopk", "relu", "jumprelu", "gated"])
def test_f1_mcc_and_uniqueness_are_theirs(name: str, d_sae: int):
    assert name in ARCHITECTURES
    sae = build(method(name, d_sae, 4), WORLD.d_model, seed=1).eval().requires_grad_(False)
    with torch.no_grad():  # halfway to the features, so that no score is trivial
        n = min(d_sae, 48)
        sae.W_dec[:n] = torch.nn.functional.normalize(sae.W_dec[:n] + WORLD.features[:n], dim=1)
        sae.W_enc[:, :n] = sae.W_dec[:n].T
    ours = recovery(sae, WORLD, rows=ROWS, seed=SEED)
    classes, mcc, uniqueness = theirs(sae, WORLD)
    assert 0.05 < ours.f1 < 0.95
    assert ours.f1 == pytest.approx(classes.f1_score, abs=1e-6)
    assert ours.precision == pytest.approx(classes.precision, abs=1e-6)
    assert ours.recall == pytest.approx(classes.recall, abs=1e-6)
    assert ours.mcc == pytest.approx(mcc, abs=1e-6)
    assert ours.uniqueness == pytest.approx(uniqueness, abs=1e-6)


def test_zipf_frequencies_and_thresholds_are_theirs():
    wanted = bench.zipfian_firing_probabilities(200, exponent=0.5, max_prob=0.4, min_prob=5e-4)
    ours = zipf_frequencies(200, 0.5, 0.4, 5e-4)
    assert ours.float().numpy() == pytest.approx(wanted.numpy(), abs=1e-6)
    made = bench.ActivationGenerator(200, wanted, correlation_matrix=torch.eye(200))
    assert thresholds(ours).float().numpy() == pytest.approx(made.correlation_thresholds.numpy(), abs=1e-4)


def test_a_hierarchy_without_exclusion_takes_the_same_firings_away():
    """Their forest of the same shape leaves the rows of our world as they are, which it would not if a child stood alone."""
    world = Structured(exclusive=False, depth=2, roots=4, n_features=40)
    config = bench.HierarchyConfig(total_root_nodes=4, branching_factor=2, max_depth=2)
    forest = bench.generate_hierarchy(40, config, seed=0)
    _, codes = world.draw(2000, torch.Generator().manual_seed(1))
    alone = torch.rand(2000, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(forest.modifier(codes), codes)
    gated = forest.modifier(alone * (alone > 0.7)) != 0
    children = (world.parents >= 0).nonzero()[:, 0]
    assert not (gated[:, children] & ~gated[:, world.parents[children]]).any()


@pytest.mark.parametrize("exclusive", [False, True])
def test_where_frequencies_are_not_kept_both_are_active_as_often(exclusive: bool):
    """The two draw from the same distribution: Zipf's law, a hierarchy, exclusion; each feature within five standard errors."""
    rows = 40_000
    world = Structured(exclusive=exclusive, keep_frequencies=False, correlation="none")
    portion = {"mutually_exclusive_portion": float(exclusive)}
    forest = bench.generate_hierarchy(
        48, bench.HierarchyConfig(total_root_nodes=8, branching_factor=2, max_depth=1, **portion), seed=0
    )
    probabilities = bench.zipfian_firing_probabilities(48, exponent=1.0, max_prob=0.5, min_prob=0.005)
    torch.manual_seed(0)
    generator = bench.ActivationGenerator(48, probabilities, modify_activations=forest.modifier)
    measured = (generator.sample(rows) != 0).double().mean(0)
    spread = (world.frequencies * (1 - world.frequencies) / rows).sqrt()
    assert ((measured - world.frequencies).abs() < 5 * spread).all()
