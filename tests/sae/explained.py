"""A text of made-up words with planted latents: each fires on exactly the tokens of a known rule, others fire at random."""

import random
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activations.token_text import TokenText
from sae.rules.corpus import Corpus, corpus
from sae.rules.explaining import explain_targets
from sae.rules.families import families
from sae.rules.targets import Target

CONTEXT, WINDOWS, PER_DOCUMENT = 32, 600, 5
STEMS = "walk talk jump sing read paint build count dance climb".split()
ENDINGS = ("", "ing", "ed", "er", "s")
LINKS = "of to in on at by for with from the".split()
NAMES = "Anna Berlin Carl Dublin Emma".split()
NUMBERS = [*map(str, range(1890, 1990, 7)), "12", "345", "6", "70000"]
VOCABULARY = [
    *(f" {stem}{ending}" for stem in STEMS for ending in ENDINGS),
    *(f" {word}" for word in (*LINKS, *NAMES, *NUMBERS)),
    ".",
    ",",
    "\n",
    " (",
    ")",
]


class Planted(NamedTuple):
    """A latent with the kind of rule that it should get and the rows [N] on which it fires."""

    kind: str
    text: str
    rows: NDArray[np.int64]


@cache
def text() -> Corpus:
    """Words drawn with unequal frequencies, in windows of several documents' length."""
    rng = random.Random(0)
    weights = [1 / (1 + place % 17) for place in range(len(VOCABULARY))]
    ids = np.array(rng.choices(range(len(VOCABULARY)), weights, k=WINDOWS * CONTEXT), np.int32)
    tokens = ids.reshape(WINDOWS, CONTEXT)
    documents = np.repeat(np.arange(WINDOWS, dtype=np.int32) // PER_DOCUMENT, CONTEXT)
    positions = np.arange(WINDOWS * CONTEXT, dtype=np.int32) % (PER_DOCUMENT * CONTEXT)
    read = np.ones(tokens.shape, bool)
    read[:, 0] = False
    spelled = TokenText([word.encode() for word in VOCABULARY])
    return corpus(tokens, documents.reshape(tokens.shape), positions.reshape(tokens.shape), read, spelled)


def counted() -> NDArray[np.bool_]:
    """Return the rows [N] that count."""
    return text().choosing | text().scoring


def planted() -> list[Planted]:
    """Return a latent for each of many rules."""
    tokens = text().tokens
    names = np.array(VOCABULARY, object)[tokens]
    before = np.full(names.shape, "", object)
    before[:, 1:] = names[:, :-1]
    two_before = np.full(names.shape, "", object)
    two_before[:, 2:] = names[:, :-2]
    columns = np.broadcast_to(np.arange(CONTEXT), tokens.shape)
    made = []

    def plant(kind: str, described: str, fires: NDArray[np.bool_]) -> None:
        made.append(Planted(kind, described, np.flatnonzero(fires.ravel() & counted())))

    for word in VOCABULARY[:50:2]:
        plant("token", f"token “{word}”", names == word)
    for one, other in zip(VOCABULARY[1:40:3], VOCABULARY[20:60:3], strict=False):
        plant("token", "tokens", (names == one) | (names == other))
    frequent = VOCABULARY[0 : len(VOCABULARY) : 17]
    for first in frequent:
        for second in frequent[:3]:
            if first != second:
                plant("bigram", f"“{first}” “{second}”", (before == first) & (names == second))
                plant("skip-gram", f"“{first}” * “{second}”", (two_before == first) & (names == second))
        plant("previous", f"after “{first}”", before == first)
    for ending in ("ing", "ed", "er"):
        plant("ending", f"word ending in -{ending}", np.char.endswith(names.astype(str), ending))
    stripped = np.char.strip(names.astype(str))
    plant("property", "digits", np.char.isdigit(stripped))
    plant("property", "a year", np.char.isdigit(stripped) & (np.char.str_len(stripped) == 4))
    plant("property", "capitalised", np.char.istitle(stripped))
    for column in (1, 2, 7, 20):
        plant("position", f"position {column} of the window", columns == column)
    plant("property", "the first 5 tokens of a document", text().positions < 5)
    plant("dense", "every token", np.ones(tokens.shape, bool))
    return made


def fires_at_random(n: int, seed: int = 1) -> list[NDArray[np.int64]]:
    """Return the rows of n latents that fire anywhere, each with a probability of its own."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(counted())
    return [rows[rng.random(len(rows)) < rng.uniform(0.003, 0.05)] for _ in range(n)]


def explained(
    rows: list[NDArray[np.int64]],
    nearest: Any = lambda target: [],
    embeddings: NDArray[np.float32] | None = None,
) -> list[dict[str, Any]]:
    """Explain latents that fire on these rows, and return the rows of the table."""
    targets = [Target("latent", latent, 1) for latent in range(len(rows))]
    table = explain_targets(
        targets,
        lambda target, strong=False: rows[target.latent],
        nearest,
        text(),
        families(text()),
        embeddings,
    )
    return table.to_pylist()
