"""Word embeddings that are made up, in the place of fetched ones: texts with the same letters mean the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from activations import embeddings, wordnet


def of_texts(texts: Sequence[str]) -> np.ndarray:
    """Return how often each letter stands in each text [n, 26]."""
    vectors = np.zeros((len(texts), 26), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for letter in text.lower():
            if "a" <= letter <= "z":
                row[ord(letter) - ord("a")] += 1
    return vectors


def in_place_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these embeddings stand for the fetched ones."""
    monkeypatch.setattr(embeddings, "of_texts", of_texts)
    monkeypatch.setattr(embeddings, "fetched", lambda: True)
    monkeypatch.setattr(embeddings, "folder", Path)
    monkeypatch.setattr(wordnet, "fetch", lambda: None)
