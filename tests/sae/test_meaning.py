"""Search by meaning: scores written out in NumPy, labels, a planted concept, what is kept, and damage."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from activations import embeddings
from activations.disk import files
from activations.errors import BusyError, ModelError, RunError
from sae.cli.explain import main as explain_main
from sae.cli.features import main as features_main
from sae.cli.search import main as search_main
from sae.features import meaning
from sae.features.feature import FeatureStore
from sae.features.meaning import Meanings, kept_meanings, meanings_of, search
from sae.features.peak_words import WORDS
from tests import letters, tiny


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    letters.in_place_of_words(monkeypatch)


@pytest.fixture
def features(world: Path, tmp_path: Path) -> FeatureStore:
    shutil.copytree(world / "runs" / "toy", tmp_path / "toy")
    return FeatureStore(tmp_path / "toy" / "features")


def test_a_score_is_halfway_between_the_median_and_the_mean_of_the_upper_half_of_the_cosines():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(30, 8)).astype(np.float32)
    of_latent = np.full((40, 6), -1, np.int32)
    for row in of_latent[1:]:
        count = random.integers(1, 7)
        row[:count] = random.integers(0, 30, count)
    query = random.normal(size=8).astype(np.float32)
    scores = Meanings([str(n) for n in range(30)], vectors, of_latent).scores(query)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    cosines = np.minimum(cosines.astype(np.float64), meaning.ALIKE)  # more than that says no more
    own = [np.sort(cosines[row[row >= 0]].astype(np.float64)) for row in of_latent[1:]]
    expected = [(np.median(one) + one[len(one) // 2 :].mean()) / 2 for one in own]
    assert scores[0] == -np.inf
    np.testing.assert_allclose(scores[1:], expected, atol=1e-6)


@pytest.mark.parametrize("error", [ModelError("the embeddings are damaged"), BusyError("another process")])
def test_features_are_told_of_where_their_words_cannot_be_collected(
    features: FeatureStore,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(meaning, "meanings_of", failing)
    assert features_main([str(features.path.parent)]) == 0
    assert str(error) in caplog.text
    assert f"{features.path}: 32 features; next: sae app" in capsys.readouterr().out


def test_the_command_prints_a_line_for_each_latent_below_the_names_of_the_columns(
    features: FeatureStore, capsys: pytest.CaptureFixture[str]
):
    assert search_main([str(features.path.parent), "looked", "--limit", "3"]) == 0
    names, *lines = capsys.readouterr().out.splitlines()
    assert names.split()[:2] == ["meaning", "latent"]
    found = search(features, meanings_of(features), "looked", most=3)
    assert [line.split()[:2] for line in lines] == [[f"{m.score:.2f}", str(m.latent)] for m in found]
    ends = names.index("meaning") + len("meaning"), names.index("latent") + len("latent")
    assert all(line[: ends[0]].strip() == line.split()[0] for line in lines)
    assert all(line[: ends[1]].split()[1] == line.split()[1] for line in lines)


def test_a_query_finds_latents_by_their_words_and_by_labels(features: FeatureStore):
    meanings = meanings_of(features)
    latent = int(np.argmax((meanings.of_latent >= 0).sum(1)))
    own = [meanings.words[n] for n in meanings.of_latent[latent] if n >= 0]
    word = meanings.commonest(latent, 1)[0]
    assert own.count(word) == max(map(own.count, own))
    best = search(features, meanings, word, most=32)
    assert [match.score for match in best] == sorted((match.score for match in best), reverse=True)
    alone = meanings.scores(embeddings.of_texts([word])[0])
    assert {match.latent: match.score for match in best}[latent] == pytest.approx(float(alone[latent]))
    features.labels.set(9, "zzqq", "")
    assert search(features, meanings, "qqzz", most=1)[0].latent == 9
    with pytest.raises(RunError, match="no words"):
        search(features, meanings, "…")


def test_words_are_kept_for_these_features_and_damage_is_one_line(
    features: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    told = tiny.Told()
    first = meanings_of(features, told)
    assert sum(told.steps["words"]) == len(features)
    again = tiny.Told()
    kept = meanings_of(features, again)
    assert not again.totals and kept.words == first.words
    np.testing.assert_array_equal(kept.scores(np.ones(26, np.float32)), first.scores(np.ones(26, np.float32)))
    index = features.path / "features.json"
    whole = index.read_text()
    index.write_text(json.dumps(json.loads(whole) | {"tokens": 1}))
    changed = tiny.Told()
    meanings_of(FeatureStore(features.path), changed)
    assert changed.totals, "other features, other words"
    with monkeypatch.context() as patch:
        patch.setattr(meaning, "FORMAT", 0)
        older = tiny.Told()
        meanings_of(FeatureStore(features.path), older)
        assert older.totals, "another format, other words"
    path = features.path / meaning.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"meaning\.safetensors") as caught:
        meanings_of(FeatureStore(features.path))
    assert caught.value.fix and "rm" in caught.value.fix


def test_a_query_takes_milliseconds_at_65_536_latents():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50_000, 256)).astype(np.float32)
    meanings = Meanings([""] * 50_000, vectors, random.integers(0, 50_000, (65_536, WORDS)).astype(np.int32))
    query = random.normal(size=256).astype(np.float32)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        meanings.scores(query)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.5


def test_neighbours_by_meaning_are_those_of_planted_words_and_cosines_are_those_written_out():
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 16)) + 3  # all have a direction in common, which tells nothing
    vectors = (np.repeat(centres, 10, 0) + 0.2 * random.normal(size=(40, 16))).astype(np.float32)
    of_latent = np.full((21, 6), -1, np.int32)
    for latent, row in enumerate(of_latent[1:], 1):
        row[: 2 + latent % 5] = random.integers(0, 10, 2 + latent % 5) + 10 * (latent % 4)
    meanings = Meanings([str(n) for n in range(40)], vectors, of_latent)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.array([unit[row[row >= 0]].mean(0) for row in of_latent[1:]])
    means -= means.mean(0)
    cosines = means @ means.T / np.outer(*[np.linalg.norm(means, axis=1)] * 2)
    for latent in range(1, 21):
        found = meanings.neighbours(latent, 4)
        assert {other % 4 for other, _ in found} == {latent % 4} and len(found) == 4
        assert [cosine for _, cosine in found] == pytest.approx(
            [cosines[latent - 1, other - 1] for other, _ in found], abs=1e-6
        )
        assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)
    assert len(meanings.neighbours(3, 99)) == 19, "neither itself nor a latent without words"
    assert meanings.neighbours(0, 4) == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("vectors", lambda tensor: tensor * float("nan")),
        ("vectors", lambda tensor: tensor[1:]),
        ("vectors", lambda tensor: tensor[:, 0]),
        ("lengths", lambda tensor: tensor * -1),
        ("lengths", lambda tensor: tensor + 1000),
        ("lengths", lambda tensor: tensor.float()),
        ("of_latent", lambda tensor: tensor + 10**6),
        ("of_latent", lambda tensor: tensor - 10**6),
        ("of_latent", lambda tensor: tensor.double()),
        ("of_latent", lambda tensor: tensor[:, 1:]),
        ("bytes", lambda tensor: tensor * 0 + 255),
        ("bytes", lambda tensor: tensor.int() + 300),
        ("identity", lambda tensor: tensor.float()),
        ("identity", lambda tensor: None),
    ],
)
def test_tensors_that_do_not_fit_together_are_one_line(features: FeatureStore, name: str, changed):
    meanings_of(features)
    path = features.path / meaning.FILE
    tensors = load_file(path)
    tensors[name] = changed(tensors[name])
    files.write_tensors(path, {key: one.contiguous() for key, one in tensors.items() if one is not None}, "x")
    with pytest.raises(RunError, match=r"meaning\.safetensors is damaged") as caught:
        kept_meanings(features)
    assert "\n" not in str(caught.value) and caught.value.fix == f"rm {path}"


def test_embeddings_of_another_width_are_one_line(features: FeatureStore):
    made = meanings_of(features)
    narrow = Meanings(made.words, made.vectors[:, :9], made.of_latent)
    with pytest.raises(RunError, match="another width"):
        search(features, narrow, "cat")


def test_explaining_collects_the_words_too(features: FeatureStore, capsys: pytest.CaptureFixture[str]):
    assert kept_meanings(features) is None
    assert explain_main([str(features.path.parent), "--least-firings=3", "--controls=4", "--show=0"]) == 0
    assert kept_meanings(features) is not None
