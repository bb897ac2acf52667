"""Search by meaning: words at peaks, medians written out in NumPy, labels, a planted concept, what is kept, and damage."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from activations import embeddings
from activations.errors import RunError
from sae.features import meaning
from sae.features.feature import FeatureStore
from sae.features.folder import Example
from sae.features.meaning import Meanings, meanings_of, search, word_at, words_of
from tests import tiny


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each letter a direction of its own, in place of fetched embeddings: texts with the same letters mean the same."""

    def of_texts(texts) -> np.ndarray:
        vectors = np.zeros((len(texts), 26), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for letter in text.lower():
                if "a" <= letter <= "z":
                    row[ord(letter) - ord("a")] += 1
        return vectors

    monkeypatch.setattr(embeddings, "of_texts", of_texts)


@pytest.fixture
def features(world: Path, tmp_path: Path) -> FeatureStore:
    shutil.copytree(world / "runs" / "toy", tmp_path / "toy")
    return FeatureStore(tmp_path / "toy" / "features")


def example(tokens: list[str], peak: int) -> Example:
    none = np.zeros(len(tokens), np.int32)
    return Example(0, peak, peak, tokens, none.astype(np.float32), none, none)


@pytest.mark.parametrize(
    ("tokens", "peak", "word"),
    [
        ([" in", " Ed", "in", "burgh", ","], 2, "edinburgh"),
        (["Ed", "in", " town"], 0, "edin"),
        ([" a", ",", " b"], 1, ","),
        ([" the", " cat", "s", "."], 1, "cats"),
        (["\n", " x"], 0, ""),
        ([" 19", "84"], 1, "1984"),
    ],
)
def test_the_word_at_a_peak_is_whole(tokens: list[str], peak: int, word: str):
    assert word_at(example(tokens, peak)) == word


def test_a_score_is_the_median_cosine_of_a_latent_s_words():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(30, 8)).astype(np.float32)
    of_latent = np.full((40, 6), -1, np.int32)
    for row in of_latent[1:]:
        count = random.integers(1, 7)
        row[:count] = random.integers(0, 30, count)
    query = random.normal(size=8).astype(np.float32)
    scores = Meanings([str(n) for n in range(30)], vectors, of_latent).scores(query)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    expected = [np.median(cosines[row[row >= 0]]) for row in of_latent[1:]]
    assert scores[0] == -np.inf
    np.testing.assert_allclose(scores[1:], expected, atol=1e-6)


def test_a_query_finds_latents_by_their_words_and_by_labels(features: FeatureStore):
    meanings = meanings_of(features)
    latent = int(np.argmax((meanings.of_latent >= 0).sum(1)))
    own = words_of(features, latent)
    assert [meanings.words[n] for n in meanings.of_latent[latent] if n >= 0] == own
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
    meanings = Meanings(
        [""] * 50_000, vectors, random.integers(0, 50_000, (65_536, meaning.WORDS)).astype(np.int32)
    )
    query = random.normal(size=256).astype(np.float32)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        meanings.scores(query)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.5
