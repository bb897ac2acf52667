"""Which words belong to what a query names: by the words' senses, how rare they are, and how much lies beneath the query's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from activations import embeddings, wordnet
from activations.errors import ModelError
from sae.features import belonging, meaning
from sae.features.meaning import ALIKE, Meanings
from tests import letters, small_wordnet

WORDS = ["June", "march", "marches", "Edinburgh", "scarlet", "red", "unknown"]


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(belonging, "BROAD", 6)  # few lie beneath a sense here
    with small_wordnet.served(monkeypatch):
        yield


def found(query: str) -> dict[str, float]:
    wordnet.fetch()
    known = wordnet.kept()
    assert known is not None
    return dict(zip(WORDS, belonging.Belonging(known, WORDS)(query).tolist(), strict=True))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # three synsets beneath month of BROAD 6: 1 / (1 + 3 / 6)
        ("months of the year", {"June": 2 / 3, "march": 2 / 3, "marches": 2 / 3}),
        ("places in Scotland", {"Edinburgh": 2 / 3}),
        # the word's second sense as a noun and its first as a verb, each the only one beneath itself
        ("marching", {"march": 6 / 7, "marches": 6 / 7}),
        ("calendar month", {"June": 2 / 3, "march": 2 / 3, "marches": 2 / 3}),
        ("colours like red", {"red": 3 / 4, "scarlet": 3 / 4}),
        ("the Royal Mile", {}),
        ("nothing that is known", {}),
        ("words about months", {"June": 2 / 3, "march": 2 / 3, "marches": 2 / 3}),
        # by either phrase, of which June itself counts half: 1 - (1 - 2/3) (1 - 6/7 / 2)
        ("month, June", {"June": 1 - (1 / 3) * (4 / 7), "march": 2 / 3, "marches": 2 / 3}),
    ],
)
def test_a_word_belongs_by_its_senses_beneath_those_of_the_querys_phrases(
    query: str, expected: dict[str, float]
):
    assert found(query) == pytest.approx(dict.fromkeys(WORDS, 0.0) | expected, abs=1e-6)


def test_rarer_senses_of_the_phrase_and_of_the_word_count_less():
    """A word's second sense counts .8 of its first, a phrase's .7: that of the walk, where the month is not asked for."""
    wordnet.fetch()
    net = wordnet.kept()
    assert net is not None
    by = belonging.Belonging(net, ["march"])
    walk = [sense for sense in net.senses("march", 4) if sense.synset == 6]
    assert by._to_one(walk).tolist() == pytest.approx([0.8 * 0.7 * 6 / 7])


def test_a_word_is_about_a_query_up_to_a_cosine_and_by_what_belongs_to_it():
    vectors = np.array([[1, 0], [0.6, 0.8], [0.2, np.sqrt(0.96)], [0, 1]], np.float32)
    meanings = Meanings(["a", "b", "c", "d"], vectors, np.array([[0], [1], [2], [3], [-1]]))
    query, belongs = np.array([2, 0], np.float32), np.array([0, 0.5, 1, 1], np.float32)
    np.testing.assert_allclose(
        meanings.scores(query, belongs), [ALIKE, 1.5 * ALIKE, 0.2 + ALIKE, ALIKE, -np.inf], atol=1e-6
    )


def test_without_wordnet_the_search_says_so_and_goes_by_embeddings_alone(monkeypatch, caplog):
    monkeypatch.setattr(embeddings, "of_texts", letters.of_texts)
    monkeypatch.setattr(embeddings, "folder", Path)
    meanings = Meanings(WORDS, letters.of_texts(WORDS), np.arange(len(WORDS))[:, None])
    with monkeypatch.context() as patch:
        patch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
        meaning.fetch_what_is_needed()
    assert "by word embeddings alone" in caplog.text
    assert not meanings.belonging("months").any()
    meaning.fetch_what_is_needed()
    assert meanings.belonging("months")[0] > 0, "fetched later, it counts from then on"


def test_without_word_embeddings_nothing_can_be_searched(monkeypatch):
    def unreachable() -> Path:
        raise ModelError("word embeddings could not be fetched")

    monkeypatch.setattr(embeddings, "folder", unreachable)
    with pytest.raises(ModelError):
        meaning.fetch_what_is_needed()
