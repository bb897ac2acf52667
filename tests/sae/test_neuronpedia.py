"""Features in Neuronpedia's import layout: files and keys, and values that agree with the features folder."""

import gzip
import json

import numpy as np
import pytest

from activations.errors import ConfigError
from sae.cli.main import main
from sae.features.feature import FeatureStore
from sae.features.folder import Histogram
from sae.foreign import neuronpedia
from sae.foreign.neuronpedia import Listing, write_listing
from tests import tiny

LISTING = Listing("gpt2-small", "res-mine-8k", "mine", "A. Person")
# what SAEDashboard's exporter writes and Neuronpedia's tables have; a file's columns are its first line's keys
COLUMNS = {
    "release": "name description descriptionShort urls creatorName creatorId createdAt",
    "model": "id instruct displayNameShort displayName creatorId createdAt updatedAt",
    "sourceset": "modelId name creatorId createdAt creatorName releaseName description visibility type urls",
    "source": "modelId setName visibility id creatorId createdAt hasDashboards notes",
    "features": "modelId layer index sourceSetName creatorId createdAt hookName maxActApprox frac_nonzero pos_str "
    "pos_values neg_str neg_values topkCosSimIndices topkCosSimValues freq_hist_data_bar_heights freq_hist_data_bar_values",
    "activations": "id modelId layer index creatorId createdAt tokens values maxValue maxValueTokenIndex minValue binMin "
    "binMax binContains qualifyingTokenIndex",
}


def lines(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def written(world, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "AT_ONCE", 20)
    features = FeatureStore(world / "runs/toy/features")
    place = write_listing(features, tiny.HOOK, "toy", LISTING, tmp_path)
    parts = {name: lines(place / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")}
    for kind in ("features", "activations"):
        assert [path.name for path in sorted((place / kind).iterdir())] == [
            "batch-0.jsonl.gz",
            "batch-1.jsonl.gz",
        ]
        parts[kind] = [row for path in sorted((place / kind).iterdir()) for row in lines(path)]
    return features, place, parts


def test_every_row_has_the_columns_and_names_what_it_belongs_to(written):
    _, place, parts = written
    assert place.parts[-2:] == ("gpt2-small", "1-res-mine-8k")
    for name, columns in COLUMNS.items():
        assert all(row.keys() == set(columns.split()) for row in parts[name]), name
    (release,), (model,), (group,), (source,) = (
        parts[n] for n in ("release", "model", "sourceset", "source")
    )
    assert (group["releaseName"], group["modelId"]) == (release["name"], model["id"])
    assert (source["setName"], source["modelId"], source["id"]) == (group["name"], model["id"], place.name)
    for row in parts["features"] + parts["activations"]:
        assert (row["layer"], row["modelId"]) == (source["id"], model["id"])


def test_features_say_what_the_folder_says(written):
    features, _, parts = written
    rows = parts["features"]
    assert [row["index"] for row in rows] == [str(latent) for latent in range(len(features))]
    for latent, row in enumerate(rows):
        known, histogram = features.row(latent), features.histogram(latent)
        assert (row["frac_nonzero"], row["pos_str"]) == (known["density"], known["raised_tokens"])
        assert (row["neg_values"], row["topkCosSimIndices"]) == (known["lowered_logits"], known["neighbours"])
        assert sum(row["freq_hist_data_bar_heights"]) == histogram.counts[histogram.edges[:-1] >= 0].sum()
        assert row["maxActApprox"] == pytest.approx(max(known["max"] or 0, 0))


def test_examples_are_the_folders_strongest_first_and_each_once(written):
    features, _, parts = written
    ids = [row["id"] for row in parts["activations"]]
    assert len({*ids}) == len(ids) > len(features)
    assert all(len(key) == 25 and key[0] == "c" for key in ids)
    for latent in range(len(features)):
        rows = [row for row in parts["activations"] if row["index"] == str(latent)]
        strongest = features.strongest(latent)
        top = [row for row in rows if row["binContains"] == -1]
        assert [row["tokens"] for row in top] == [example.tokens for example in strongest]
        assert [row["values"] for row in top] == [example.values.tolist() for example in strongest]
        for row in rows:
            assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"]) > 0
            assert len(row["values"]) == len(row["tokens"])
            assert row["binMin"] <= row["maxValue"] <= row["binMax"] + 1e-6


def test_of_signed_latents_the_positive_side_is_written(world, tmp_path, monkeypatch):
    signed = Histogram(np.array([-4.0, -2.0, 0.0, 2.0, 4.0]), np.array([7, 5, 0, 3]))
    monkeypatch.setattr(FeatureStore, "histogram", lambda self, latent: signed)
    features = FeatureStore(world / "runs/toy/features")
    place = write_listing(features, tiny.HOOK, "toy", LISTING, tmp_path)
    first = lines(place / "features/batch-0.jsonl.gz")[0]
    assert (first["freq_hist_data_bar_heights"], first["freq_hist_data_bar_values"]) == ([3], [3.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_set": "a/b"}, "source_set = 'a/b' must consist of letters"),
        ({"model_id": ".."}, "model_id = '..' must consist of letters"),
        ({"release": ""}, "release = '' must consist of letters"),
    ],
)
def test_names_cannot_leave_the_folder(changes, said):
    with pytest.raises(ConfigError, match=said):
        Listing(**{"model_id": "gpt2", "source_set": "res", "release": "mine", "creator": "me", **changes})


def test_the_command_writes_it_once(world, tmp_path, capsys):
    names = ["--model-id", "gpt2", "--source-set", "res", "--release", "mine", "--creator", "me"]
    command = ["export", "neuronpedia", str(world / "runs/toy"), "--out", str(tmp_path), *names]
    assert main(command) == 0
    assert "32 features" in capsys.readouterr().out
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert "already taken" in error and "\n" not in error
    assert [path.name for path in (tmp_path / "gpt2").iterdir()] == ["1-res"]


def test_a_hook_outside_of_blocks_needs_a_layer(world, tmp_path):
    features = FeatureStore(world / "runs/toy/features")
    with pytest.raises(ConfigError, match="hook_embed is not in a block.* --layer"):
        write_listing(features, "hook_embed", "toy", LISTING, tmp_path)
    assert not any(tmp_path.iterdir())
