"""Names and colours of the map's clusters: planted words are found, scores are those written out, neighbours differ, names keep apart."""

import math
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from sae.features.cluster_names import cluster_names, cluster_tokens
from sae.features.feature import FeatureStore
from sae.features.meaning import Meanings
from sae.features.peak_words import WORDS
from sae.report import feature_map
from sae.report.feature_map import APART, CHARACTER, COLOURS, HEIGHT, LINE, NAMED, NONE, WIDTHS
from sae.rules.explaining import ExplainConfig
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.workflows.explain import explain


def test_a_cluster_is_called_by_what_its_latents_share_and_others_have_not():
    tokens = [
        [" Glasgow", "the"],
        ["GLASGOW ", "the"],
        ["the", "a"],
        ["the", " tea"],
        ["tea", "the"],
        ["the"],
        [],
    ]
    assert cluster_tokens([0, 0, 0, 1, 1, None, 1], tokens) == [["glasgow"], ["tea"]]
    assert cluster_tokens([None, None], tokens[:2]) == []
    assert cluster_tokens([0, 1], [["x"], [" ", ""]]) == [[], []], "a single latent shares nothing"


def test_scores_are_those_of_the_formula():
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(40)]
    clusters = random.integers(0, 5, 300).tolist()
    tokens = [[words[min(int(n), 39)] for n in random.exponential(8, 6)] for _ in clusters]
    expected = []
    every = Counter(word for own in tokens for word in set(own))
    for cluster in range(5):
        members = [set(own) for own, its in zip(tokens, clusters, strict=True) if its == cluster]
        counts = Counter(word for own in members for word in own)
        scores = {
            word: count / len(members) * math.log(count / len(members) / (every[word] / len(tokens)))
            for word, count in counts.items()
            if count > 1
        }
        expected.append(
            sorted((word for word in scores if scores[word] > 0), key=lambda word: (-scores[word], word))[:3]
        )
    assert cluster_tokens(clusters, tokens) == expected


def test_words_that_latents_fire_on_often_and_rules_that_are_no_tokens_name_clusters(world, tmp_path):
    shutil.copytree(world / "runs/toy", tmp_path / "toy")
    explained = explain(Run(tmp_path / "toy"), ExplainConfig(least_firings=3, controls=2))
    features = FeatureStore(tmp_path / "toy" / "features")
    place = features.table.column_names.index("cluster")
    clusters: list[int | None] = [None if n % 4 == 3 else n % 4 + 7 for n in range(len(features))]
    features.table = features.table.set_column(place, "cluster", pa.array(clusters, pa.int64()))
    of_latent = np.full((len(features), WORDS), -1, np.int32)
    for latent, cluster in enumerate(clusters):
        of_latent[latent, :9] = [1] * 8 + [2]
        of_latent[latent, 8] = 2 if cluster == 8 else 1  # once among nine words: too seldom
        if cluster == 7:
            of_latent[latent, :3] = 0
    meanings = Meanings(["planted", "everywhere", "once"], np.eye(3, dtype=np.float32), of_latent)
    assert cluster_names(features, meanings, None) == {7: ["planted"], 8: [], 9: []}
    ninth = [latent for latent, cluster in enumerate(clusters) if cluster == 9]
    explained.by_latent = {
        latent: [
            replace(explained.of(latent)[0], rule_kind=kind, text="in capitals", f1=Estimate(0.8, 0.7, 0.9))
        ]
        for latent, kind in zip(ninth[:4], ("property", "property", "token", "property"), strict=True)
    }
    assert cluster_names(features, meanings, explained) == {7: ["planted"], 8: [], 9: ["in capitals"]}
    assert cluster_names(features, None, None).keys() == {7, 8, 9}


def grid(side: int, each: int) -> tuple[tuple[np.ndarray, np.ndarray], list[int | None]]:
    """Clusters in a square, with points without a cluster and without a place among them."""
    random = np.random.default_rng(0)
    clusters = np.arange(side * side).repeat(each)
    x, y = (
        clusters % side + random.uniform(-0.4, 0.4, len(clusters)),
        clusters // side + random.uniform(-0.4, 0.4, len(clusters)),
    )
    x[0] = y[0] = np.nan
    return (x, y), [None if n == 1 else cluster for n, cluster in enumerate(clusters.tolist())]


def test_clusters_beside_each_other_have_colours_that_differ():
    places, clusters = grid(15, 20)
    numbers = feature_map.cluster_colours(places, clusters)
    colours = [feature_map.DRAWN[number] for number in numbers]
    of = {cluster: colour for cluster, colour in zip(clusters, colours, strict=True) if cluster is not None}
    assert colours[1] == NONE and len(of) == 225 and {*of.values()} <= {*COLOURS}
    apart = feature_map._distances(COLOURS)
    for cluster in of:
        for other in (cluster + 1, cluster + 15):
            if other in of and (other % 15 or other != cluster + 1):
                assert apart[COLOURS.index(of[cluster]), COLOURS.index(of[other])] >= APART
    counts = Counter(of.values())
    assert len(counts) == len(COLOURS) and max(counts.values()) < 3 * min(counts.values())
    assert feature_map.cluster_colours((np.array([np.nan]), np.array([np.nan])), [None]).tolist() == [
        feature_map.DRAWN.index(NONE)
    ]


def test_the_map_draws_each_number_of_a_colour_as_that_colour():
    numbers = np.arange(len(feature_map.DRAWN))
    places = numbers.astype(float), numbers.astype(float)
    (points,) = cast(Any, feature_map.directions(places, numbers, ["t"] * len(numbers), [2])).data
    marker = points.marker
    assert marker.showscale is False and points.text[0] == "t"
    for number, colour in enumerate(feature_map.DRAWN):
        at = (marker.color[number] - marker.cmin) / (marker.cmax - marker.cmin)
        (drawn,) = {
            low[1]
            for low, high in zip(marker.colorscale, marker.colorscale[1:], strict=False)
            if low[0] < at < high[0]
        }
        assert drawn == colour


def test_distances_of_colours_are_those_of_oklab():
    assert feature_map._distances(["#000000", "#ffffff"])[0, 1] == pytest.approx(1, abs=1e-6)
    red, green = (
        np.array([0.62796, 0.22486, 0.12585]),
        np.array([0.86644, -0.23389, 0.17950]),
    )  # Ottosson's table
    assert feature_map._distances(["#ff0000", "#00ff00"])[0, 1] == pytest.approx(
        np.linalg.norm(red - green), abs=1e-4
    )


def test_names_on_the_map_are_of_the_largest_clusters_and_do_not_lie_over_one_another():
    places, clusters = grid(15, 20)
    names = {cluster: ["a name", f"number {cluster}", "third"] for cluster in range(225)} | {3: []}
    labels = feature_map.labels(places, clusters, names)
    assert len(labels) <= NAMED[1] and len(labels) > NAMED[0]
    x, y = places
    for width, some in ((WIDTHS[0], labels[: NAMED[0]]), (WIDTHS[1], labels)):
        across, down = width / (np.nanmax(x) - np.nanmin(x)), HEIGHT / (np.nanmax(y) - np.nanmin(y))
        for place, (one_x, one_y, one) in enumerate(some):
            assert one.startswith("a name, number ") and "third" not in one
            for other_x, other_y, other in some[:place]:
                assert (
                    abs(one_x - other_x) * across > CHARACTER * (len(one) + len(other)) / 2
                    or abs(one_y - other_y) * down > LINE
                )
    figure = feature_map.directions(
        places, np.zeros(len(clusters), int), ["t"] * len(clusters), [2], [(0, 0, "<b>%{x}")]
    )
    assert cast(Any, figure.layout).annotations[0].text == "&lt;b&gt;%{x}"
    assert feature_map.labels(places, [None] * len(clusters), {}) == []
