"""A text tokenised in chunks gets the ids of the whole text, for every kind of tokenizer and script."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from activations.chunks import ids_of, plain_ids
from tests.tokenizers import CORPUS, KINDS, tokenizer

RUNS = [
    "a",
    "ab",
    "ha",
    " ",
    "\n",
    "\t ",
    " \n",
    "人",
    "é",
    "e\u0301",
    "👩‍👩‍👧‍👦",
    "\x00\x1b",
    "12",
    ".",
    "</s>",
    "a b ",
    "م",
]


def mixed(rng: random.Random, length: int) -> str:
    """Return a random text of words of every script, repeated pieces, and what tokenizers take for special."""
    words = [word for line in CORPUS for word in line.split(" ")]
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        kind = rng.random()
        if kind < 0.9:
            parts.append(" ".join(rng.choices(words, k=20)))
        elif kind < 0.95:
            parts.append(rng.choice(RUNS) * rng.randint(1, 900))
        else:
            parts.append(rng.choice(["<s>", "\n\n", "▁", "ﬁ ½ Å", "\ufeff", "\u200d\u200d", "(1,234.5)"]))
        parts.append(rng.choice([" ", "", "\n", "  "]))
    return "".join(parts)


def pieces(text: str, rng: random.Random) -> Iterator[str]:
    place = 0
    while place < len(text):
        step = rng.randint(1, 700)
        yield text[place : place + step]
        place += step


def differ(text: str, made, **settings: int) -> str:
    """Describe where the ids of the chunks differ from those of the whole text; return "" if they agree."""
    rng = random.Random(0)
    chunks = [*ids_of(pieces(text, rng), made, **settings)]
    ids, whole = np.concatenate(chunks).tolist(), plain_ids(made, text)
    if ids == whole:
        return ""
    place = next((n for n, pair in enumerate(zip(ids, whole, strict=False)) if pair[0] != pair[1]), -1)
    return f"{len(ids)} ids, {len(whole)} of the whole; first at {place}: {ids[place : place + 5]}, {whole[place : place + 5]}"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_the_ids_of_the_whole_text(kind: str, seed: int):
    rng = random.Random(seed)
    text = mixed(rng, 20_000)
    assert not differ(
        text, tokenizer(kind), whole=500, chunk=rng.randint(900, 2500), overlap=rng.randint(150, 400)
    )


@pytest.mark.parametrize("run", RUNS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_one_thing_over_and_over_gives_the_ids_of_the_whole_text(kind: str, run: str):
    for prefix, suffix in (("", ""), ("The cat ", "b sat."), (" ", "\n"), ("aab", "")):
        text = prefix + run * (6007 // len(run)) + suffix
        assert not differ(text, tokenizer(kind), whole=500, chunk=1000, overlap=200)


@pytest.mark.parametrize("seed", range(3))
def test_a_tokenizer_that_does_not_say_where_its_tokens_lie_gives_them_too(seed: int):
    made = ByT5Tokenizer()
    assert not made.is_fast
    assert not differ(mixed(random.Random(seed), 9000), made, whole=500, chunk=1000, overlap=200)
