"""The words that latents fire on, collected for all latents at once, beside the plain way: one example after the other."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from activations.errors import RunError
from activations.token_text import TokenText
from sae.features import peak_words
from sae.features.feature import FeatureStore
from sae.features.folder import Example, FeaturesFolder
from sae.features.peak_words import STRONGEST, WORDS, word_at, words_of_latents

SPELLINGS = [
    *(b" cat", b"cat", b"s", b" the", b".", b"\n", b" Ed", b"in", b"burgh", b" 19", b"84", b"", b"<|end|>"),
    *(b" na", b"\xc3", b"\xaf", b"ve", b"\xe2\x82", b"\xac5", b" ", b"_x"),
]
LATENTS, PAIRS, WINDOWS, CONTEXT = 40, 900, 300, 24


@pytest.mark.parametrize(
    ("tokens", "peak", "word"),
    [
        ([" in", " Ed", "in", "burgh", ","], 2, "edinburgh"),
        (["Ed", "in", " town"], 0, "edin"),
        ([" a", ",", " b"], 1, ","),
        ([" the", " cat", "s", "."], 1, "cats"),
        (["\n", " x"], 0, ""),
        ([" 19", "84"], 1, "1984"),
        ([*"abcdefghijklmnopqrstuvwxyz"], 13, "hijklmnopqrst"),
    ],
)
def test_the_word_at_a_peak_is_whole(tokens: list[str], peak: int, word: str):
    assert word_at(tokens, peak) == word


def plainly(features: FeaturesFolder, latent: int) -> list[str]:
    """Return a latent's words from its examples, read one after the other."""

    def height(side: list[Example]) -> float:
        return abs(side[0].values[side[0].peak]) if side else 0.0

    strongest = max((features.strongest(latent), features.strongest(latent, -1)), key=height)
    sampled = features.sampled(latent)
    places = np.linspace(0, len(sampled) - 1, min(len(sampled), WORDS - STRONGEST)).round().astype(int)
    examples = [*strongest[:STRONGEST], *(sampled[place] for place in places)]
    return [word for example in examples if (word := word_at(example.tokens, example.peak))]


@pytest.fixture
def features(world: Path) -> FeatureStore:
    return FeatureStore(world / "runs" / "toy" / "features")


def planted(features: FeaturesFolder, leading_space) -> FeaturesFolder:
    """Replace what is read of a folder by random examples of both signs over tokens that share characters, ids that no
    tokenizer has among them. Some latents have many examples, some few and some none."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 6, PAIRS)
    offsets = np.append(0, sizes.cumsum())
    places = np.concatenate([np.sort(random.permutation(CONTEXT)[:size]) for size in sizes])
    signs = random.choice([-1, 1], len(places))
    values = (signs * random.integers(1, 9, len(places))).astype(np.float32)  # many equal ones
    highest = np.array([values[start:stop].max() for start, stop in pairwise(offsets)])
    lowest = np.array([values[start:stop].min() for start, stop in pairwise(offsets)])

    def drawn(among: np.ndarray, most: int) -> np.ndarray:
        rows = np.full((LATENTS, most), -1)
        for latent, row in enumerate(rows):
            count = (0, 1, most // 2, most)[latent % 4]
            row[:count] = random.choice(among, count, replace=False)
        return rows

    positive, negative = drawn(np.flatnonzero(highest > 0), 12), drawn(np.flatnonzero(lowest < 0), 12)
    for rows, by in ((positive, -highest), (negative, lowest)):
        for row in rows:
            row[row >= 0] = sorted(row[row >= 0], key=lambda pair: by[pair])
    positive[5] = -1
    tensors = {
        "window_of_pair": random.integers(0, WINDOWS, PAIRS),
        "offsets": offsets,
        "value_positions": places.astype(np.int16),
        "values": values,
        "tokens": random.integers(0, len(SPELLINGS) + 2, (WINDOWS, CONTEXT)).astype(np.int32),
        "positions": random.integers(0, 8, (WINDOWS, CONTEXT)),
        "documents": np.zeros((WINDOWS, CONTEXT), np.int32),
        "positive": positive,
        "negative": negative,
        "sampled": drawn(np.arange(PAIRS), 60),
    }
    features.record = dataclasses.replace(features.record, d_sae=LATENTS)
    features.example_tensors = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    features.token_text = TokenText([*SPELLINGS, None], special=[12], leading_space=leading_space)
    return features


@pytest.mark.parametrize("leading_space", ["never", "always", "if absent"])
def test_all_latents_at_once_have_the_words_that_each_has_alone(
    features: FeatureStore, leading_space, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peak_words, "AT_ONCE", 7)
    made = planted(features, leading_space)
    words, of_latent = words_of_latents(made)
    own = [[words[number] for number in row if number >= 0] for row in of_latent]
    expected = [plainly(made, latent) for latent in range(LATENTS)]
    assert own == expected
    assert {len(row) for row in expected} >= {0} and max(map(len, expected)) > 40
    assert len(set(words)) == len(words) > 100


def test_the_toy_run_s_words_are_those_of_its_examples(features: FeatureStore):
    words, of_latent = words_of_latents(features)
    assert of_latent.shape == (len(features), WORDS)
    for latent in range(len(features)):
        assert [words[number] for number in of_latent[latent] if number >= 0] == plainly(features, latent)


@pytest.mark.parametrize("name", ["offsets", "values", "window_of_pair", "sampled"])
def test_examples_that_do_not_fit_together_are_one_line(features: FeatureStore, name: str):
    damaged = planted(features, "never").example_tensors
    damaged[name] = damaged[name] * 0 + (float("nan") if name == "values" else 10**6)
    with pytest.raises(RunError, match=r"examples\.safetensors is damaged"):
        words_of_latents(features)
