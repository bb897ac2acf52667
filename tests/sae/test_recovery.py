"""F1, MCC, uniqueness and what becomes of parents: by formulas written out, and for SAEs whose absorption is planted."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae.architectures import TopKConfig, build
from sae.evaluation.recovery import (
    classified,
    cosines,
    mean_matched_cosine,
    most_like,
    parents,
    recovery,
    uniqueness,
)
from sae.evaluation.synthetic import Independent, Tree
from sae.trust.planted import judge
from tests.sae.test_synthetic import perfect


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_latents_f1_is_that_of_a_classifier_of_the_feature_it_is_most_like():
    features, atoms = drawn(7, 5), drawn(10, 5, seed=1)
    fires, on = drawn(300, 10, seed=2) > 0.8, drawn(300, 7, seed=3) > 0.5
    fires[:, 3] = False  # a dead latent has 0
    found = classified(fires, on, most_like(cosines(features, atoms)))
    a, b = features.double().numpy(), atoms.double().numpy()
    sizes = np.abs(a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    for latent in range(10):
        wanted, said = on[:, int(sizes[:, latent].argmax())].tolist(), fires[:, latent].tolist()
        tp = sum(w and s for w, s in zip(wanted, said, strict=True))
        precision = tp / sum(said) if sum(said) else 0.0
        recall = tp / sum(wanted)
        f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
        assert [values[latent].item() for values in found] == pytest.approx(
            [precision, recall, f1], abs=1e-12
        )


@pytest.mark.parametrize(("n", "latents"), [(6, 9), (9, 6), (8, 8)])
def test_mcc_and_uniqueness_are_their_formulas(n: int, latents: int):
    sizes = cosines(drawn(n, 4), drawn(latents, 4, seed=1))
    rows, columns = linear_sum_assignment(-sizes.abs().numpy())
    wanted = sizes.abs().double().numpy()[rows, columns].mean()
    assert mean_matched_cosine(sizes) == pytest.approx(wanted, abs=1e-6)
    nearest = {int(np.abs(sizes[:, latent].numpy()).argmax()) for latent in range(latents)}
    assert uniqueness(sizes) == len(nearest) / latents


def test_a_perfect_dictionary_has_all_and_a_world_without_a_hierarchy_no_parents():
    world = Independent(d_model=24, n_features=24, orthonormal=True, least=1, most=6)
    found = recovery(perfect(world), world, rows=2000)
    assert (found.mcc, found.uniqueness) == (pytest.approx(1), 1)
    assert min(found.f1, found.precision, found.recall) > 0.99
    assert all(map(math.isnan, (found.parents_found, found.parent_recall, found.absorption)))
    assert len(parents(perfect(world), world, rows=100).found) == 0


def test_a_parent_that_two_of_four_children_absorb_is_absorbed():
    """Its latent is found by its direction and fires whenever it is alone, but beside half of its children only."""
    tree = Tree(p_child=0.5)
    whole = recovery(perfect(tree), tree, rows=4000)
    assert (whole.parents_found, whole.parent_recall) == (1, 1)
    assert whole.absorption == pytest.approx(0, abs=1e-6)
    sae = perfect(tree)
    with torch.no_grad():
        sae.W_enc[:, 0] -= 3 * (tree.features[1] + tree.features[2])
    half = recovery(sae, tree, rows=8000)
    assert half.parents_found == 1
    assert half.parent_recall == pytest.approx(0.5, abs=0.03)
    assert half.absorption == pytest.approx(0.5, abs=0.03)
    assert judge(sae, {}, tree).hierarchy == "absorbed"


def test_verdicts_on_a_hierarchy_whose_answer_is_known():
    tree = Tree()
    judged = judge(perfect(tree), {}, tree)
    assert (judged.verdict, judged.hierarchy, judged.kept) == ("recovered", "recovered", (1.0, 1.0, 1.0))
    untrained = build(TopKConfig(d_sae=9, k=2), 16)
    assert judge(untrained, {}, tree).hierarchy == "not recovered"
    flat = Independent(d_model=24, n_features=24, orthonormal=True)
    assert judge(perfect(flat), {}, flat).hierarchy is None
