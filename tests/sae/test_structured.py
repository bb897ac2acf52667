"""Structured worlds have the frequencies, correlations and hierarchy that they promise, by references in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.evaluation.structured import Structured, one_of, zipf_frequencies

FOREST = {"n_features": 40, "roots": 4, "branching": 2, "depth": 2, "p_most": 0.4, "p_least": 0.002}
ROWS = 60_000


def both_above(p: float, q: float, rho: float) -> float:
    """Return how often two normal variables of correlation rho exceed the thresholds that each exceeds with p and with q."""
    cuts = [norm.ppf(p), norm.ppf(q)]  # P(Z > t) is P(Z < -t)
    return float(multivariate_normal(np.zeros(2), np.array([[1, rho], [rho, 1]])).cdf(cuts))  # type: ignore[arg-type]


def active(world: Structured, rows: int = ROWS) -> torch.Tensor:
    return world.draw(rows, torch.Generator().manual_seed(7))[1] != 0


def kept(firing: list[float], who: int) -> float:
    """Return how often sibling `who` fires and is drawn among those that fire, by counting over all 2^b outcomes."""
    total = 0.0
    for fires in itertools.product([False, True], repeat=len(firing)):
        if fires[who]:
            chance = math.prod(p if on else 1 - p for p, on in zip(firing, fires, strict=True))
            total += chance / sum(fires)
    return total


def test_frequencies_follow_zipfs_law_between_the_two_ends():
    n, exponent, most, least = 30, 0.7, 0.4, 0.01
    powers = [rank**-exponent for rank in range(1, n + 1)]
    wanted = [least + (most - least) * (p - powers[-1]) / (powers[0] - powers[-1]) for p in powers]
    assert_close(zipf_frequencies(n, exponent, most, least), torch.tensor(wanted, dtype=torch.float64))
    assert zipf_frequencies(1, exponent, most, least).tolist() == [most]


def test_one_of_several_siblings_is_kept_as_often_as_counting_all_outcomes_says():
    firing = [0.05, 0.3, 0.9, 1.0, 0.5]
    wanted = [kept(firing, who) for who in range(5)]
    found = one_of(torch.tensor([firing], dtype=torch.float64))[0]
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_features_are_as_frequent_as_promised(exclusive: bool, keep: bool):
    world = Structured(**FOREST, exclusive=exclusive, keep_frequencies=keep, correlation="none")
    if keep:
        zipf = zipf_frequencies(40, 1.0, 0.4, 0.002)
        assert_close(world.frequencies, zipf, rtol=1e-9, atol=0)
    spread = (world.frequencies * (1 - world.frequencies) / ROWS).sqrt()
    assert ((active(world).double().mean(0) - world.frequencies).abs() < 5 * spread).all()


@pytest.mark.parametrize("correlation", ["none", "low-rank", "blocks"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_no_child_is_active_without_its_parent_and_exclusive_ones_come_alone(
    correlation: str, exclusive: bool
):
    world = Structured(**FOREST, exclusive=exclusive, correlation=correlation, strength=0.3)  # type: ignore[arg-type]
    on, parents = active(world), world.parents
    assert parents[:4].tolist() == [-1] * 4
    assert parents[4:12].tolist() == [0, 0, 1, 1, 2, 2, 3, 3], "level by level"
    assert parents[12:28].tolist() == [4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11]
    assert (parents[28:] == -1).all()
    children = (parents >= 0).nonzero()[:, 0]
    assert not (on[:, children] & ~on[:, parents[children]]).any()
    families = on[:, children].view(ROWS, -1, 2).sum(2)
    assert families.max() == (1 if exclusive else 2)


def test_features_of_a_block_are_active_together_as_two_correlated_normals_are():
    world = Structured(
        n_features=6, roots=0, p_most=0.3, p_least=0.1, correlation="blocks", rank=2, strength=0.6
    )
    on, p = active(world).double(), world.frequencies.numpy()
    for i, j in itertools.combinations(range(6), 2):
        rho = 0.6 if i % 2 == j % 2 else 0.0
        wanted = both_above(p[i], p[j], rho)
        both = (on[:, i] * on[:, j]).mean().item()
        assert both == pytest.approx(wanted, abs=5 * math.sqrt(wanted / ROWS)), (i, j)


def test_low_rank_factors_leave_every_variance_at_one_and_correlate_what_they_share():
    world = Structured(n_features=12, roots=0, p_most=0.3, p_least=0.1, rank=3, strength=0.6)
    weights, own = world._copula.weights.double(), world._copula.own.double()
    covariance = weights @ weights.T + torch.diag(own)
    assert_close(covariance.diagonal(), torch.ones(12, dtype=torch.float64), atol=1e-6, rtol=0)
    assert own.min() >= 0.01 - 1e-6, "factors never take all of a feature's variance"
    on, p = active(world).double(), world.frequencies.numpy()
    pairs = [*itertools.combinations(range(12), 2)]
    strongest = max(pairs, key=lambda pair: covariance[pair].item())
    for i, j in (strongest, min(pairs, key=lambda pair: covariance[pair].item())):
        wanted = both_above(p[i], p[j], covariance[i, j].item())
        assert (on[:, i] * on[:, j]).mean().item() == pytest.approx(wanted, abs=5 * math.sqrt(wanted / ROWS))


def test_coefficients_fall_with_rank_around_their_means():
    world = Structured(n_features=20, roots=0, p_most=0.4, p_least=0.2, size_spread=0.0)
    codes = world.draw(2000, torch.Generator().manual_seed(0))[1]
    assert_close(codes.max(0).values, torch.linspace(5.0, 4.0, 20))
    spread = Structured(n_features=20, roots=0, p_most=0.4, p_least=0.2)
    codes = spread.draw(20_000, torch.Generator().manual_seed(0))[1]
    own = torch.stack([column[column > 0].std() for column in codes.T])
    assert_close(own, spread._size_spreads, rtol=0.1, atol=0.01)
    assert (codes >= 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roots": 20, "branching": 2}, "20 trees of 1 levels of 2 children need 60 features, there are 48"),
        ({"p_least": 0.1, "branching": 4}, "children of feature"),
        ({"p_least": 0.6}, "p_least = 0.6 and p_most = 0.5"),
        ({"rank": 0}, "rank = 0"),
        ({"correlation": "blocks", "strength": 1.5}, "strength = 1.5"),
        ({"exponent": 0.0}, "above 0"),
        ({"branching": 0}, "at least 1"),
        *(
            ({name: value}, f"{name} = {value} must be a finite number")
            for name in (
                "p_most",
                "p_least",
                "exponent",
                "strength",
                "size_most",
                "size_least",
                "size_spread",
            )
            for value in (math.nan, math.inf)
        ),
    ],
)
def test_a_structure_that_cannot_be_is_refused(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        Structured(**settings)
