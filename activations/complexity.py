"""How complex a text is, from 0 to 10, by counting: no model, no word list, the same on every machine."""

import math
import re
from itertools import islice
from statistics import fmean

WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)|\n\s*\n")
INNER_MARK = re.compile(r"[,;:()\[\]]|\s[-–—]\s")  # between the parts of a sentence
STRETCH = 50  # words; the share of different words falls with length, so it is taken over equal stretches
LONG = 7  # letters


def complexity(text: str) -> float:
    """A score from 0 to 10: ten times the weighted mean of six measures; NaN for a text without a word.

    Each measure is 0 at its low end or below, 1 at its high end or above, linear between:

    | weight | measure | low | high |
    | --- | --- | --- | --- |
    | 0.20 | different words / words, mean over stretches of 50 words | 0.5 | 0.95 |
    | 0.20 | share of words of 7 letters or more | 0 | 0.45 |
    | 0.15 | mean length of a word, letters | 3.5 | 6 |
    | 0.20 | words / sentence | 5 | 35 |
    | 0.10 | commas, colons, brackets and dashes / word | 0 | 0.2 |
    | 0.15 | share of words with a digit, a hyphen, or a capital after their first letter | 0 | 0.15 |

    The first is lexical variety, the next two lexical difficulty, then two of syntax, the last density of
    terms. Weights and ends were set by hand: the score orders texts, it is no reading age. Made for scripts
    with spaces between words. It stands in for the language model that scores each text in arXiv:2508.17320."""
    words = WORD.findall(text)
    if not words:
        return math.nan
    sentences = sum(1 for part in SENTENCE_END.split(text) if WORD.search(part))
    n = len(words)
    measures = (
        (0.20, _variety(words), 0.5, 0.95),
        (0.20, sum(len(word) >= LONG for word in words) / n, 0.0, 0.45),
        (0.15, sum(map(len, words)) / n, 3.5, 6.0),
        (0.20, n / sentences, 5.0, 35.0),
        (0.10, len(INNER_MARK.findall(text)) / n, 0.0, 0.2),
        (0.15, sum(map(_is_term, words)) / n, 0.0, 0.15),
    )
    return 10 * sum(weight * _between(value, low, high) for weight, value, low, high in measures)


def _variety(words: list[str]) -> float:
    """Mean over whole stretches; of a text shorter than one, over what there is."""
    lower = iter([word.lower() for word in words])
    stretches = iter(lambda: list(islice(lower, STRETCH)), [])
    shares = [(len(stretch), len(set(stretch)) / len(stretch)) for stretch in stretches]
    whole = [share for length, share in shares if length == STRETCH]
    return fmean(whole or [shares[0][1]])


def _is_term(word: str) -> bool:
    return (
        any(letter.isdigit() or letter == "-" or letter.isupper() for letter in word[1:]) or word[0].isdigit()
    )


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
