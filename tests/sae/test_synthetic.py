"""Planted worlds have the properties they promise, and recovery is right for dictionaries of known quality."""

import dataclasses
import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import TopKConfig, build
from sae.config import TrainConfig
from sae.evaluation.recovery import cosines, recovery, recovery_rate, shrinkage
from sae.evaluation.structured import Structured
from sae.evaluation.synthetic import Gaussian, Heads, Independent, Tree, World, orthonormal
from sae.workflows.synthetic import train

WORLDS = [
    Independent(),
    Independent(least=0, most=6, signed=True),
    Independent(d_model=24, n_features=24, orthonormal=True),
    Heads(),
    Tree(),
    Gaussian(),
    Structured(),
]
every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: type(world).__name__)


def draw(world: World, rows: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return world.draw(rows, torch.Generator().manual_seed(seed))


def counts(world: World) -> torch.Tensor:
    return (draw(world)[1] != 0).sum(1)


@every_world
def test_rows_are_their_codes_times_the_features(world):
    x, codes = draw(world)
    assert_close(x, codes @ world.features)
    assert x.shape[1] == world.d_model


@every_world
def test_batches_follow_from_the_seed(world):
    first, again, other = (next(world.batches(8, seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one, two = itertools.islice(world.batches(8, 3), 2)
    assert not torch.equal(one[0], two[0])


@every_world
def test_the_worlds_seed_decides_the_features_alone(world):
    other = dataclasses.replace(world, seed=1)
    assert not torch.equal(other.features, world.features)


@pytest.mark.parametrize("world", WORLDS[:5], ids=lambda world: type(world).__name__)
def test_features_have_unit_norm_and_coefficients_their_range(world):
    assert_close(world.features.norm(dim=1), torch.ones(len(world.features)))
    sizes = draw(world)[1].abs()
    sizes = sizes[sizes > 0]
    assert world.low <= sizes.min()
    assert sizes.max() <= world.high


def test_as_many_features_fire_as_asked_for():
    assert set(counts(Independent(least=3, most=3)).tolist()) == {3}
    varying = counts(Independent(least=1, most=4))
    assert set(varying.tolist()) == {1, 2, 3, 4}
    assert abs(varying.float().mean() - 2.5) < 0.1
    assert set(counts(Gaussian(active=2)).tolist()) == {2}


def test_signed_features_have_either_sign_as_often():
    _, codes = draw(Independent(signed=True))
    assert abs((codes > 0).sum() / (codes != 0).sum() - 0.5) < 0.02


def test_orthonormal_features_are():
    rows = orthonormal(5, 9, torch.Generator().manual_seed(0))
    assert_close(rows @ rows.T, torch.eye(5), atol=1e-6, rtol=0)


def test_with_a_common_direction_the_number_of_active_features_is_a_linear_function_of_the_row():
    x, codes = draw(Independent(d_model=48, n_features=96, least=1, most=10, common=1.0, low=0.8, high=1.2))
    number = (codes != 0).sum(1).double()
    inputs = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    fitted = inputs @ torch.linalg.lstsq(inputs, number[:, None]).solution
    assert torch.corrcoef(torch.stack([fitted[:, 0], number]))[0, 1] > 0.95


def test_two_heads_have_one_feature_each_and_features_share_the_parts_of_their_head():
    world = Heads()
    heads = (draw(world)[1] != 0).view(-1, 6, 16).sum(2)
    assert heads.max() == 1
    assert set(heads.sum(1).tolist()) == {2}
    within = world.features.view(6, 4, 4, -1)
    cosine = within.flatten(1, 2) @ within.flatten(1, 2).transpose(1, 2)
    same_part = (torch.arange(16) // 4 == torch.arange(16)[:, None] // 4) & ~torch.eye(16, dtype=torch.bool)
    assert cosine[:, same_part].mean() > 0.3


def test_children_fire_beside_their_parent_only_and_one_at_a_time():
    _, codes = draw(Tree(), rows=20_000)
    on = codes != 0
    children = on[:, 1:5].sum(1)
    assert children.max() == 1
    assert (on[:, 0] | (children == 0)).all()
    assert abs(on[:, 0].float().mean() - 0.4) < 0.02
    assert abs(children[on[:, 0]].float().mean() - 0.8) < 0.02
    assert abs(on[:, 5:].float().mean() - 0.17) < 0.01


def test_gaussian_rows_have_unit_norm():
    x, _ = draw(Gaussian())
    assert_close(x.norm(dim=1), torch.ones(len(x)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Independent(least=4, most=3), "4 to 3"),
        (lambda: Independent(most=65), "3 to 65.*64"),
        (lambda: Independent(orthonormal=True), "n_features = 64.*d_model = 32"),
        (lambda: Tree(d_model=8), "9 features.*d_model = 8"),
        (lambda: Heads(active=7), "7 to 7.*6"),
        (lambda: Independent(low=2.0), "low = 2.0.*high = 1.5"),
    ],
)
def test_a_world_that_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def perfect(world: World, scale: float = 1.0):
    """Return a TopK SAE with the world's orthonormal features whose output is scaled by `scale`."""
    sae = build(TopKConfig(d_sae=len(world.features), k=6), world.d_model)
    with torch.no_grad():
        sae.W_enc.copy_(world.features.T * scale)
        sae.W_dec.copy_(world.features)
        sae.b_enc.fill_(-1e-3)
    return sae


def test_a_perfect_dictionary_scores_as_one():
    world = Independent(d_model=24, n_features=24, orthonormal=True, least=1, most=6)
    found = recovery(perfect(world), world, rows=2000)
    assert found.nmse < 1e-4
    assert found.l0 == pytest.approx(3.5, abs=0.1)
    assert found.dead == 0
    assert found.mmcs == pytest.approx(1)
    assert found.mmcs_matched == pytest.approx(1)
    assert (found.frr_80, found.frr_90) == (1, 1)
    assert found.gamma == pytest.approx(1, abs=2e-3)
    assert found.l0_correlation == pytest.approx(1)


def test_half_the_length_is_a_gamma_of_a_half():
    world = Independent(d_model=24, n_features=24, orthonormal=True)
    assert recovery(perfect(world, 0.5), world, rows=500).gamma == pytest.approx(0.5, abs=5e-3)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x_hat = 0.7 * x + 0.1
    lengths = torch.linspace(0.5, 1.5, 10_001, dtype=torch.float64)
    errors = [(x_hat.double() / length - x.double()).norm() for length in lengths]
    assert shrinkage(x, x_hat) == pytest.approx(lengths[torch.stack(errors).argmin()].item(), abs=2e-4)


def test_the_best_cosine_may_be_shared_and_the_matched_one_not():
    world = Independent(d_model=24, n_features=24, orthonormal=True)
    sae = perfect(world)
    with torch.no_grad():
        sae.W_dec[12:] = sae.W_dec[:12]  # half of the features are found twice, the others not at all
    found = recovery(sae, world, rows=500)
    assert found.mmcs == pytest.approx(0.5, abs=1e-5)
    assert found.mmcs_matched <= found.mmcs + 1e-6
    assert found.frr_90 == 0.5


def test_signed_worlds_take_either_sign_of_an_atom():
    features = torch.eye(3)
    assert cosines(features, -2 * features).diagonal().tolist() == [-1, -1, -1]
    assert cosines(features, -2 * features, signed=True).diagonal().tolist() == [1, 1, 1]
    assert cosines(features, torch.zeros(1, 3)).tolist() == [[0], [0], [0]]


def test_recovery_counts_cosines_above_its_threshold():
    found = torch.tensor([[0.95, 0.1], [0.9, 0.85], [0.2, 0.81], [0.3, 0.4]])
    assert recovery_rate(found, 0.9) == 0.25
    assert recovery_rate(found, 0.8) == 0.75


def test_a_constant_l0_has_no_correlation():
    assert math.isnan(recovery(build(TopKConfig(d_sae=32, k=3), 32), Independent(), rows=200).l0_correlation)


def test_a_parent_absorbed_by_a_child_is_recalled_beside_the_other_children_only():
    tree = Tree()
    sae = perfect(tree)
    assert recovery(sae, tree, rows=2000).parent_recall == 1
    with torch.no_grad():
        sae.W_enc[:, 0] -= 3 * tree.features[1]  # the parent's latent does not fire with child 1
    assert recovery(sae, tree, rows=8000).parent_recall == pytest.approx(0.75, abs=0.03)


def test_training_on_a_world_finds_its_features_and_reads_raw_rows():
    """The SAE that training returns has the input scale folded in, so that it reads rows in their own units."""
    world = Independent(d_model=16, n_features=16, least=1, most=1, low=50.0, high=150.0)
    settings = TrainConfig(steps=300, batch=64, lr=1e-2, warmup_steps=0)
    steps = []

    @contextmanager
    def progress(stage: str, total: int, unit: str, done: int = 0):
        yield lambda n, note="": steps.append(n)

    sae = train(world, TopKConfig(d_sae=24, k=1), settings, progress)
    assert sum(steps) == 300
    assert not sae.training
    found = recovery(sae, world, rows=2000)
    assert found.nmse < 0.1
    assert found.mmcs > 0.9
    assert found.gamma == pytest.approx(1, abs=0.05)
