"""Parents by coverage and reconstruction: a plain float64 reference, planted trees, dense latents, shuffled firings."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import normalize

from activations.errors import ConfigError
from sae.evaluation.structured import Structured
from sae.features.firings import Firings, by_latent
from sae.features.parents import (
    MOST_TIMES,
    Rules,
    effective_windows,
    parents,
    shuffled,
    similar_frequency,
    tail,
)

ROWS = 20_000
EACH = np.arange(ROWS)  # rows that are windows of their own
SEEDS = range(10)
THREE_LEVELS = {"depth": 2, "n_features": 56, "p_most": 0.45, "p_least": 0.3, "keep_frequencies": False}


def blocks(rows: int, window: int) -> np.ndarray:
    """Return the number of each row's window where each has so many rows."""
    return np.arange(rows) // window


def firings_of(costs: Tensor, fires: Tensor) -> Firings:
    rows, latents = fires.nonzero(as_tuple=True)
    return by_latent(rows, latents, costs[rows, latents], fires.shape[1])


def reference(
    costs: np.ndarray, fires: np.ndarray, window: int, rules: Rules
) -> dict[int, tuple[int, float, float]]:
    """Return each child's parent with coverage and share, straight from the words of docs/feature-families.md."""
    n_latents = fires.shape[1]
    rate, cost = fires.mean(0), np.where(fires, costs, 0.0)
    counts = [Counter((np.flatnonzero(fires[:, j]) // window).tolist()) for j in range(n_latents)]
    windows = [one.total() ** 2 / max(sum(n * n for n in one.values()), 1) for one in counts]
    by_rate = sorted(range(n_latents), key=lambda j: (fires[:, j].sum(), j))

    def wilson(share: float, trials: float) -> float:
        z = 1.959963984540054
        middle = share + z * z / (2 * trials)
        half = z * (share * (1 - share) / trials + z * z / (4 * trials**2)) ** 0.5
        return (middle - half) / (1 + z * z / trials)

    judged = [c for c in range(n_latents) if windows[c] and wilson(1.0, windows[c]) >= rules.coverage]
    pairs = len(judged) * (int(fires.any(0).sum()) - 1)
    found = {}
    for c in judged:
        rows, accepted = fires[:, c], []
        for p in range(n_latents):
            coverage = fires[rows, p].mean()
            if p == c or wilson(coverage, windows[c]) < rules.coverage:
                continue
            if fires[fires[:, p], c].mean() >= rules.coverage:
                continue
            successes = coverage * windows[c]
            # the binomial tail between whole numbers, as an integral of the beta density
            grid = (np.arange(200_000) + 0.5) / 200_000
            with np.errstate(divide="ignore"):
                density = np.exp((successes - 1) * np.log(grid) + (windows[c] - successes) * np.log1p(-grid))
            if density[grid < rate[p]].sum() / density.sum() * pairs > rules.level:
                continue
            place = by_rate.index(p)
            n_like = min(rules.matched, n_latents - 1)
            start = min(max(place - rules.matched // 2, 0), n_latents - 1 - n_like)
            alike = [by_rate[i] for i in range(start, start + n_like + 1) if i != place][:n_like]
            here = cost[rows].mean(0)
            by_chance = max(cost[:, p].mean(), float(np.median(here[alike])))
            share = (here[p] - by_chance) / here[c]
            if here[p] >= rules.times * by_chance and share >= rules.share:
                accepted.append((rate[p], -coverage, p, share))
        if accepted:
            _, coverage, p, share = min(accepted)
            found[c] = (p, -coverage, share)
    return found


def planted(seed: int, dense: str = "", **settings) -> tuple[Firings, Tensor, Tensor, np.ndarray]:
    """Return the firings of a planted world's own dictionary with their costs, both dense, and the true parents.

    With `dense`, one latent more fires on `half` of all rows, on `most`, or on those `where` any feature fires, and on few others."""
    usual = {"roots": 8, "branching": 2, "depth": 1, "p_most": 0.4, "p_least": 0.02}
    world = Structured(seed=seed, **{**usual, **settings})
    generator = torch.Generator().manual_seed(1000 + seed)
    _, codes = world.draw(ROWS, generator)
    rows = world.features
    if dense:
        busy = codes[:, :8].ne(0).any(1)
        rate = {"half": torch.tensor(0.5), "most": torch.tensor(0.9), "where": torch.where(busy, 0.97, 0.3)}[
            dense
        ]
        values = (torch.rand(ROWS, generator=generator) < rate) * (8 + torch.randn(ROWS, generator=generator))
        codes = torch.cat([codes, values[:, None]], 1)
        rows = torch.cat([rows, normalize(torch.randn(1, rows.shape[1], generator=generator))])
    error = 0.3 * torch.randn(ROWS, rows.shape[1], generator=generator)
    costs = codes * (codes * rows.square().sum(1) + 2 * error @ rows.T)
    fires = codes != 0
    true = np.full(codes.shape[1], -1)
    true[: world.n_features] = world.parents.numpy()
    return firings_of(costs, fires), costs, fires, true


@pytest.mark.parametrize("window", [1, 7])
def test_parents_are_those_of_a_plain_reference(window: int):
    _, costs, fires, _ = planted(0, "where", n_features=30)
    costs, fires, rules = costs[:1500], fires[:1500], Rules(matched=6)
    forest = parents(firings_of(costs, fires), blocks(1500, window), rules)
    expected = reference(costs.double().numpy(), fires.numpy(), window, rules)
    assert expected, "the toy has families"
    assert {c: int(p) for c, p in enumerate(forest.parent) if p >= 0} == {
        c: p for c, (p, *_) in expected.items()
    }
    for child, (parent, coverage, share) in expected.items():
        assert forest.coverage[child] == pytest.approx(coverage, abs=1e-12)
        assert forest.share[child] == pytest.approx(share, rel=1e-5)
        assert forest.chance[child] == pytest.approx(fires[:, parent].double().mean().item())


@pytest.mark.parametrize("dense", ["", "half", "most", "where"])
@pytest.mark.parametrize("settings", [{}, THREE_LEVELS], ids=["two levels", "three levels"])
def test_planted_trees_are_found_and_no_other_edges(settings: dict, dense: str):
    right = wrong = edges = 0
    for seed in SEEDS:
        firings, _, _, true = planted(seed, dense, **settings)
        found = parents(firings, EACH).parent
        right += int(((found == true) & (true >= 0)).sum())
        wrong += int(((found != true) & (found >= 0)).sum())
        edges += int((true >= 0).sum())
    assert right >= 0.9 * edges
    assert wrong <= 0.05 * (right + wrong)


@pytest.mark.parametrize("dense", ["", "half", "most", "where"])
def test_independent_features_have_no_families(dense: str):
    covered = 0
    for seed in SEEDS:
        forest = parents(planted(seed, dense, roots=0, correlation="none")[0], EACH)
        assert forest.edges == 0
        assert dense == "where" or forest.beyond_chance == 0
        covered += forest.covered
    if dense in ("most", "where"):
        assert covered > 0, "coverage alone takes the dense latent for a parent"


def test_the_reconstruction_condition_refuses_what_coverage_and_its_test_let_pass():
    firings, _, _, true = planted(3, "where")
    forest = parents(firings, EACH)
    assert forest.beyond_chance > forest.reconstructed == (true >= 0).sum()
    assert not (forest.parent == len(true) - 1).any(), "the dense latent is nobody's parent"
    free = parents(firings, EACH, Rules(times=1.0, share=1e-9))
    assert free.reconstructed > forest.reconstructed


def test_what_costs_nothing_by_chance_costs_a_finite_number_of_times_that(recwarn: pytest.WarningsRecorder):
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(2000, 30, generator=generator) < 0.2
    fires[:, 0] = fires[:, 1] & (torch.rand(2000, generator=generator) < 0.3)
    costs = torch.ones(2000, 30)
    costs[~fires[:, 0], 1] = -1.0  # so that over all rows taking latent 1 away costs less than nothing
    costs[:, 2:] = -1.0
    forest = parents(firings_of(costs, fires), np.arange(2000))
    assert forest.parent[0] == 1 and forest.times[0] == MOST_TIMES
    assert not len(recwarn)


def test_a_parent_that_reconstructs_nothing_is_none():
    firings, costs, fires, true = planted(0)
    child = int(np.flatnonzero(true >= 0)[0])
    parent = int(true[child])
    costs[:, parent] *= 1e-3
    assert parents(firings, EACH).parent[child] == parent
    assert parents(firings_of(costs, fires), EACH).parent[child] == -1


def test_features_that_cover_each_other_are_no_family():
    _, costs, fires, _ = planted(0, roots=0)
    twin = fires[:, :1] & (torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(0)) < 0.95)
    both = torch.cat([fires, twin], 1), torch.cat([costs, costs[:, :1]], 1)
    assert parents(firings_of(both[1], both[0]), EACH).edges == 0


def test_neighbouring_rows_count_as_one_window():
    _, costs, fires, true = planted(1)
    child = int(np.flatnonzero(true >= 0)[0])
    few = torch.zeros(ROWS, dtype=torch.bool)
    few[:600] = True  # six windows of 100 rows say too little, however many rows they have
    fires[:, child] &= few
    firings = firings_of(costs, fires)
    assert effective_windows(firings, blocks(ROWS, 100))[child] <= 6
    assert parents(firings, EACH).parent[child] == true[child]
    assert parents(firings, blocks(ROWS, 100)).parent[child] == -1


def test_windows_count_by_how_evenly_they_share_the_firings():
    fires = torch.rand(90, 9, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 0.4, 9)
    fires[:, 4] = False
    fires[:, 8] = torch.arange(90) % 10 == 0
    windows = np.sort(np.random.default_rng(1).integers(0, 12, 90))
    for numbers in (blocks(90, 10), windows):
        weights = [[fires[numbers == window, j].sum().item() for window in set(numbers)] for j in range(9)]
        expected = [sum(some) ** 2 / max(sum(w * w for w in some), 1) for some in weights]
        assert effective_windows(firings_of(torch.ones(90, 9), fires), numbers) == pytest.approx(expected)
    assert effective_windows(firings_of(torch.ones(90, 9), fires), blocks(90, 10))[8] == 9


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_bursts_are_no_evidence_of_their_every_token(share: float):
    """Children fire in some whole windows and on single rows of others, parents in whole windows, all of them independently."""
    window, n_windows, n_children, n_contexts = 128, 400, 100, 100
    generator = torch.Generator().manual_seed(round(100 * share))
    fires = torch.zeros(n_windows, window, n_children + n_contexts, dtype=torch.bool)
    for child in range(n_children):
        some = torch.randperm(n_windows, generator=generator)
        whole = (4, 8, 16, 24)[child % 4]
        fires[some[:whole], :, child] = True
        fires[some[whole : whole + 25], int(some[0]) % window, child] = True
    fires[:, :, n_children:] = (torch.rand(n_windows, 1, n_contexts, generator=generator) < share).expand(
        -1, window, -1
    )
    fires = fires.flatten(0, 1)
    forest = parents(firings_of(torch.ones(fires.shape), fires), blocks(len(fires), window))
    assert (forest.beyond_chance, forest.edges) == (0, 0)
    assert n_children / 4 <= forest.children, "some fire evenly enough to be asked"


def test_tails_are_scipy_s():
    for successes, trials in ((0, 5), (3, 20), (20, 20), (90, 100)):
        above = tail(np.array([successes / trials]), np.array([float(trials)]), np.array([0.3]))[0]
        assert above == pytest.approx(binom.sf(successes - 1, trials, 0.3), rel=1e-9)


def test_latents_alike_in_frequency_are_the_nearest_by_rank():
    fired = np.array([5, 100, 7, 6, 0, 50])
    alike = similar_frequency(fired, 2)
    assert {*alike[3].tolist()} == {0, 2}
    assert {*alike[1].tolist()} == {5, 2}
    assert all(latent not in row for latent, row in enumerate(alike.tolist()))


def test_shuffled_firings_keep_their_frequencies_and_lose_their_families():
    firings, _, _, true = planted(0)
    moved = shuffled(firings, blocks(ROWS, 16), seed=1)
    assert moved.starts.equal(firings.starts)
    counted = [effective_windows(some, blocks(ROWS, 16)).tolist() for some in (moved, firings)]
    assert counted[0] == counted[1]
    for latent in range(len(true)):
        here = slice(int(firings.starts[latent]), int(firings.starts[latent + 1]))
        rows, places = moved.rows[here], firings.rows[here] % 16
        assert (rows.diff() > 0).all() and rows[0] >= 0 and rows[-1] < ROWS
        assert (rows % 16).sort().values.equal(places.sort().values)
        assert moved.values[here].sort().values.equal(firings.values[here].sort().values)
    assert parents(moved, EACH).edges == 0
    assert parents(firings, EACH).edges == (true >= 0).sum()


def test_latents_are_shuffled_each_on_its_own_though_there_are_few_windows():
    fires = torch.zeros(30 + 4, 100, dtype=torch.bool)
    fires[:10], fires[-4:] = True, True
    moved = shuffled(firings_of(torch.ones(34, 100), fires), blocks(34, 10), seed=0)
    first = {tuple(moved.rows[start : start + 14].tolist()) for start in moved.starts[:-1].tolist()}
    assert len(first) > 6, "both windows went to different places"


def test_windows_of_different_lengths_are_shuffled_and_keep_the_places():
    lengths = torch.tensor([10, 3, 7, 10, 1, 10, 5])
    windows = torch.arange(7).repeat_interleave(lengths).numpy()
    place = np.concatenate([np.arange(length) for length in lengths.tolist()])
    fires = torch.rand(46, 200, generator=torch.Generator().manual_seed(3)) < 0.5
    fires[:, 0], fires[:, 1:50] = True, torch.from_numpy(windows == 0)[:, None]
    firings = firings_of(torch.arange(46.0)[:, None].expand(46, 200) + 1, fires)
    moved = shuffled(firings, windows, seed=0)
    for latent in range(200):
        here = slice(int(firings.starts[latent]), int(firings.starts[latent + 1]))
        rows, before = moved.rows[here].numpy(), firings.rows[here].numpy()
        came_from = moved.values[here].numpy().astype(int) - 1
        assert (np.diff(rows) > 0).all() and sorted(came_from) == before.tolist()
        assert (place[rows] == place[came_from]).all()
    of_first = [set(windows[moved.rows[moved.starts[n] : moved.starts[n + 1]].numpy()]) for n in range(1, 50)]
    assert {frozenset({0}), frozenset({3}), frozenset({5})} <= {frozenset(some) for some in of_first}


@pytest.mark.parametrize(
    "wrong", [{"coverage": 1.0}, {"level": 0.0}, {"share": 2.0}, {"times": 0.5}, {"matched": 0}]
)
def test_rules_out_of_range_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Rules(**wrong)


def test_silent_latents_and_short_texts_have_no_parents():
    silent = firings_of(torch.zeros(50, 4), torch.zeros(50, 4, dtype=torch.bool))
    few = firings_of(torch.ones(10, 4), torch.ones(10, 4, dtype=torch.bool))
    for firings, rows in ((silent, 50), (few, 10)):
        forest = parents(firings, np.arange(rows))
        assert (forest.children, forest.pairs, forest.edges) == (0, 0, 0)
        assert np.isnan(forest.coverage).all()
