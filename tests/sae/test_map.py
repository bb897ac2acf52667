"""The map of decoder directions finds planted groups, is the same each time, and exists for small and dead dictionaries."""

import json
import logging

import numpy as np
import pytest
import torch

from activations.language_model import load
from sae.features import map as maps
from sae.features.collect import FeaturesConfig
from sae.features.feature import FeatureStore
from sae.features.map import make_map
from sae.runs.run import Run
from sae.workflows.features import describe


def planted(groups: int, each: int, spread: float = 0.25, width: int = 32) -> tuple[torch.Tensor, np.ndarray]:
    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(groups, width, generator=g), dim=1)
    rows = centres.repeat_interleave(each, 0) + spread / width**0.5 * torch.randn(
        groups * each, width, generator=g
    )
    return rows, np.repeat(np.arange(groups), each)


def everyone(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


@pytest.mark.parametrize(("groups", "each"), [(5, 40), (3, 12)], ids=["umap", "principal components"])
def test_planted_groups_of_directions_are_found(groups, each):
    rows, truth = planted(groups, each)
    made = make_map(rows, everyone(rows))
    owners = [set(truth[made.clusters == cluster]) for cluster in range(made.clusters.max() + 1)]
    assert all(len(owner) == 1 for owner in owners), "no cluster mixes groups"
    assert set().union(*owners) == set(range(groups)), "each group has a cluster"
    distances = torch.cdist(made.places, made.places)
    same = torch.from_numpy(truth[:, None] == truth)
    assert distances[same].mean() < 0.3 * distances[~same].mean()


def test_the_map_is_the_same_each_time():
    rows, _ = planted(4, 30)
    one, two = make_map(rows, everyone(rows)), make_map(rows, everyone(rows))
    assert torch.equal(one.places, two.places)
    np.testing.assert_array_equal(one.clusters, two.clusters)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 14, 20])
def test_small_dictionaries_have_a_map_or_none(n):
    rows = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    made = make_map(rows, everyone(rows))
    assert made.places.isfinite().all() == (n >= maps.FEWEST)
    assert made.places.shape == (n, 2)


@pytest.mark.parametrize("n", [20, 100], ids=["principal components", "umap"])
def test_rows_of_width_one_lie_on_a_line(n, monkeypatch):
    """They have one principal component; the compiled layout would write the second coordinate behind its array."""
    rows = torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    assert maps._start(rows, torch.arange(n)).shape == (n, 2)
    monkeypatch.setattr(maps, "MANY", 0)  # nothing can be triangulated on a line
    made = make_map(rows, everyone(rows))
    assert made.places.isfinite().all() and (made.places[:, 1] == 0).all()


def test_dead_latents_are_left_out():
    rows, _ = planted(4, 30)
    alive = everyone(rows)
    alive[::7] = False
    made = make_map(rows, alive)
    assert torch.equal(made.places.isnan().any(1), ~alive)
    assert (made.clusters[~alive.numpy()] == -1).all()


def test_the_folder_holds_places_and_clusters(world):
    features = FeatureStore(world / "runs/toy/features")
    table = features.table
    alive = table["fired"].to_numpy() > 0
    assert np.isfinite(table["map_x"].to_numpy()).tolist() == alive.tolist()
    numbers = {c for c in table["cluster"].to_pylist() if c is not None}
    assert len(features.clusters) == len(numbers)


def test_without_scikit_learn_features_go_on_say_so_and_are_completed_later(
    world, tmp_path, monkeypatch, caplog
):
    run, model = Run(world / "runs/toy"), load(str(world / "model"))
    cfg = FeaturesConfig(strongest=2, sampled=2, neighbours=2, logits=2, batch=64)
    args = (run.sae(), run.store, run.hook, model, tmp_path / "f", cfg, "x")
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        bare = describe(*args)
    assert "it needs scikit-learn" in caplog.text
    assert not {"map_x", "map_y", "cluster"} & set(bare.table.column_names)
    assert bare.clusters == []
    monkeypatch.undo()
    assert "map_x" in describe(*args).table.column_names
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    assert "map_x" in describe(*args).table.column_names, "what is there stays"
    assert json.loads((tmp_path / "f" / "features.json").read_text())["map"]


def test_clusters_from_a_triangulation_are_those_of_all_distances(monkeypatch):
    generator = np.random.default_rng(0)
    centres = generator.uniform(-10, 10, (12, 2))
    clumps = [centre + generator.normal(0, 0.3, (100, 2)) for centre in centres]
    places = np.concatenate([*clumps, generator.uniform(-10, 10, (300, 2))]).astype(np.float32)
    places = np.concatenate([places, places[:40]])  # some coincide
    of_all = maps._clusters(places)
    assert of_all.max() >= 11 and (of_all == -1).any()
    monkeypatch.setattr(maps, "MANY", 0)
    assert maps._clusters(places).tolist() == of_all.tolist()
