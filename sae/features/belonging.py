"""Which words belong to what a query names: "months of the year" names June, "places in Scotland" Edinburgh, by WordNet.

A word belongs to a phrase of the query when one of its senses lies beneath one of the phrase's (`activations.wordnet`). It counts the
less, the rarer either sense is and the more lies beneath the phrase's: what is beneath "place" says little, beneath "Scotland" much.
Where a query has several phrases, their own words count half: who asks for months of the year means June, not "month" and "year"."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from activations.wordnet import Sense, WordNet

LONGEST = 3  # words of a phrase that WordNet may know as one, such as "compass point"
PHRASE_SENSES, PHRASE_RARER = (
    4,
    0.7,
)  # senses of a phrase that count, and what each counts of the one before it
WORD_SENSES, WORD_RARER = 5, 0.8  # of a word that a latent fires on
BROAD = 3000  # synsets beneath a sense that make it count half
OWN = 0.5  # share that the senses of a phrase count themselves, beside others of the query, of what lies beneath them
# Words that only join others, most of which WordNet knows in another meaning ("in" as the inch, "as" as arsenic), or that name what is
# searched for anyway ("words about money")
JOINING = frozenset(
    "a an the of in on at to by for from with without about into over under between as and or nor but than that this these those is are "
    "word words token tokens thing things".split()
)


class Belonging:
    """The senses of words, to find those that belong to a query."""

    def __init__(self, wordnet: WordNet, words: Sequence[str]):
        self._wordnet = wordnet
        senses = [wordnet.senses(re.sub(r"[^\w-]", "", word), WORD_SENSES) for word in words]
        self._count = np.array([len(own) for own in senses])
        every = [sense for own in senses for sense in own]
        self._synsets = np.array([sense.synset for sense in every], np.int64)
        self._shares = WORD_RARER ** np.array([sense.rank for sense in every], np.float32)

    def __call__(self, query: str) -> NDArray[np.float32]:
        """Return how much each word belongs to what a query names [W], from 0 to 1. The more of its phrases a word belongs to, the more."""
        apart = np.ones(len(self._count), np.float32)
        phrases = list(_phrases(self._wordnet, query))
        for senses in phrases:
            apart *= 1 - self._to_one(senses, OWN if len(phrases) > 1 else 1.0)
        return 1 - apart

    def _to_one(self, phrase: Sequence[Sense], own: float = 1.0) -> NDArray[np.float32]:
        """Return how much each word belongs to a phrase of these senses [W], which count `own` of what lies beneath them."""
        weights = np.zeros(len(self._wordnet), np.float32)
        for sense in phrase:
            beneath = self._wordnet.beneath(sense.synset)
            weight = PHRASE_RARER**sense.rank / (1 + len(beneath) / BROAD)
            weights[beneath] = np.maximum(weights[beneath], weight)
        weights[[sense.synset for sense in phrase]] *= own
        found = np.zeros(len(self._count), np.float32)
        if known := np.flatnonzero(self._count).tolist():
            starts = np.cumsum(self._count)[known] - self._count[known]
            found[known] = np.maximum.reduceat(weights[self._synsets] * self._shares, starts)
        return found


def _phrases(wordnet: WordNet, query: str) -> Iterator[list[Sense]]:
    """Yield the senses of the longest phrases of a query that WordNet knows, from left to right, without overlap."""
    words = re.findall(r"[\w'-]+", query.lower())
    while words:
        length, senses = _longest(wordnet, words)
        if senses:
            yield senses
        del words[:length]


def _longest(wordnet: WordNet, words: Sequence[str]) -> tuple[int, list[Sense]]:
    """Return how many of the first words are the longest phrase that WordNet knows, and its senses; 1 and none where it knows none."""
    for length in range(min(LONGEST, len(words)), 0, -1):
        joins = words[0] in JOINING or words[length - 1] in JOINING
        if not joins and (senses := wordnet.senses("_".join(words[:length]), PHRASE_SENSES)):
            return length, senses
    return 1, []
