"""Labels of documents: one number each, from a column, from the user's function, or from the built-in score of complexity."""

import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import Literal

import numpy as np

from activations import text
from activations.documents import Document, Row, beginning
from activations.errors import LabelError, quoted
from activations.text import TextConfig
from activations.tokens import NOWHERE, Window

log = logging.getLogger(__name__)
UNLABELLED = math.nan  # the label of a document that has none
SURPRISE, NEEDED = "surprise", "needed:"  # sources that give each token its own label
MISSING = ("", "na", "n/a", "null", "none")  # what tables write where a number is missing, beside nan
SAMPLE = "A plain sentence to try a function on."
WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)|\n\s*\n")
INNER_MARK = re.compile(r"[,;:()\[\]]|\s[-–—]\s")  # separates the parts of a sentence
# Words. The ratio falls with text length, so it is measured over stretches of equal length.
STRETCH = 50
LONG = 7  # letters of a long word

Unit = Literal["score", "latents", "nats"]


def per_token(source: str | None) -> bool:
    """Return whether a source gives each token its own label. Other sources give each document one."""
    return source is not None and (source == SURPRISE or source.startswith(NEEDED))


def unit_of(source: str) -> Unit:
    """Return the unit of a source's labels: nats of surprise, the number of latents that a run spends
    on the token, or a score on the user's own scale."""
    if source == SURPRISE:
        return "nats"
    return "latents" if source.startswith(NEEDED) else "score"


Score = Callable[[str, Row], float]  # (text, the source's row) -> label


class Labels:
    """Passes documents on to a harvest and computes their labels when they are first needed.

    `source` is `builtin` (`complexity`), `column:NAME` or `module:function`. None gives no labels, and neither does
    `surprise`, whose labels come from the model. A document of more than HEAD characters gets the label of its first
    HEAD characters, a conversation that of its messages' contents.

    Labels are computed shard by shard, so that a resumed harvest does not score again what is stored, and no more
    text is held than that of a shard. Raises LabelError if the source does not exist, a user's function fails its
    trial call, or a column holds something other than a number. A user's function that fails later leaves that document
    unlabelled."""

    def __init__(self, source: str | None, config: TextConfig):
        self._config = config
        self._score = _scorer(source) if source and source != SURPRISE else None
        self._waiting: dict[int, tuple[Document, Row]] = {}
        self._known: dict[int, float] = {}

    def documents(self) -> Iterator[Document]:
        """Yield the documents of `text.documents`, and remember each until its label is computed or skipped."""
        for number, (document, row) in enumerate(text.rows(self._config)):
            if self._score:
                self._waiting[number] = document, row
                if number == 0:  # report a user's mistake before a folder is made
                    self._known[0] = self._label(0)
            yield document

    def of(self, windows: Sequence[Window]) -> dict[int, float] | None:
        """Return document number -> label for a shard's windows, None without a source. Call it on shards in order."""
        if not self._score:
            return None
        numbers = np.unique(np.stack([window.documents for window in windows]))
        labels = {number: self._label(number) for number in numbers.tolist() if number != NOWHERE}
        self._known |= labels  # the last document may go on in the next shard
        self.skip(windows)
        return labels

    def skip(self, windows: Sequence[Window]) -> None:
        """Forget the documents that end in these windows."""
        last = max(int(window.documents.max()) for window in windows)
        for documents in (self._waiting, self._known):
            # list() copies: the thread that reads ahead adds documents meanwhile
            for number in [number for number in list(documents) if number < last]:
                del documents[number]

    def _label(self, number: int) -> float:
        if number in self._known:
            return self._known[number]
        assert self._score
        try:
            document, row = self._waiting[number]
            return self._score(beginning(document), row)
        except LabelError as error:
            raise LabelError(
                f"document {number} of {self._config.dataset}: {error.message}", fix=error.fix
            ) from error


def _scorer(name: str) -> Score:
    """Return the function that gives a document its label. Raises LabelError for an unknown source."""
    if name == "builtin":
        return lambda document, row: complexity(document)
    kind, _, rest = name.partition(":")
    if not kind or not rest:
        raise LabelError(
            f"labels = {name!r}, must be builtin, column:NAME or module:function for each document, or surprise or "
            f"needed:RUN for each token"
        )
    if name.startswith(NEEDED):
        raise LabelError(
            f"labels = {name!r} can only be added to a finished store: harvest without --labels, then add them",
            fix=f"sae store label STORE --labels {quoted(name)}",
        )
    return _column(rest) if kind == "column" else _function(name)


def _column(name: str) -> Score:
    def score(document: str, row: Row) -> float:
        if name not in row:
            raise LabelError(f"no column {name!r} to take labels from: the columns are {', '.join(row)}")
        value = row[name]
        if isinstance(value, str):
            value = _number(value)
        if value is None:
            return UNLABELLED
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LabelError(f"column {name!r} holds {type(value).__name__}, a label must be a number")
        return _finite(value)

    return score


def _number(written: str) -> float | str | None:
    """Return the number that a CSV table has as text, None where it says that there is none, and any other text as it is."""
    try:
        return None if written.strip().lower() in MISSING else float(written)
    except ValueError:
        return written


def _function(name: str) -> Score:
    """Return a user's function as a score, after one trial call.

    Raises LabelError if the trial fails. A later call that fails or gives no number leaves that document unlabelled."""
    function = _import(name)
    try:
        float(function(SAMPLE))
    except Exception as error:  # the user's code may raise anything
        raise LabelError(f"{name} fails on {SAMPLE!r}: {_described(error)}") from error

    def score(document: str, row: Row) -> float:
        try:
            return _finite(float(function(document)))
        except Exception as error:
            log.warning("%s fails on a document, which gets no label: %s", name, _described(error))
            return UNLABELLED

    return score


def _import(name: str) -> Callable[[str], float]:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not search the current folder
        sys.path.append(os.getcwd())
    try:
        function: Callable[[str], float] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's code
        raise LabelError(
            f"no function {name} for labels ({_described(error)}), must be module:function of a module that can be "
            f"imported from this folder"
        ) from error
    if not callable(function):
        raise LabelError(f"{name} is not a function; expected one that takes a text and returns a number")
    return function


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else UNLABELLED


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]


def complexity(text: str) -> float:
    """Return how complex a text is, from 0 to 10: ten times the weighted mean of six measures. NaN if it has no word.

    The score needs no model and no word list, and is the same on every machine. Each measure is 0 at its low end or
    below, 1 at its high end or above, and linear in between:

    | weight | measure | low | high |
    | --- | --- | --- | --- |
    | 0.20 | type-token ratio (distinct words / words), mean over stretches of 50 words | 0.5 | 0.95 |
    | 0.20 | share of words of 7 letters or more | 0 | 0.45 |
    | 0.15 | mean length of a word, letters | 3.5 | 6 |
    | 0.20 | words / sentence | 5 | 35 |
    | 0.10 | commas, colons, brackets and dashes / word | 0 | 0.2 |
    | 0.15 | share of words with a digit, a hyphen, or a capital after their first letter | 0 | 0.15 |

    The first is lexical diversity, the next two are lexical difficulty, two more are syntax, the last is the density of
    terms. Weights and ends were set by hand: the score orders texts and is not a reading age. It expects scripts with
    spaces between words. It stands in for the language model that scores each text in arXiv:2508.17320."""
    words = WORD.findall(text)
    if not words:
        return math.nan
    sentences = sum(1 for part in SENTENCE_END.split(text) if WORD.search(part))
    n = len(words)
    measures = (
        (0.20, _type_token_ratio(words), 0.5, 0.95),
        (0.20, sum(len(word) >= LONG for word in words) / n, 0.0, 0.45),
        (0.15, sum(map(len, words)) / n, 3.5, 6.0),
        (0.20, n / sentences, 5.0, 35.0),
        (0.10, len(INNER_MARK.findall(text)) / n, 0.0, 0.2),
        (0.15, sum(map(_is_term, words)) / n, 0.0, 0.15),
    )
    return 10 * sum(weight * _between(value, low, high) for weight, value, low, high in measures)


def _type_token_ratio(words: list[str]) -> float:
    """Return the mean type-token ratio of the complete stretches, or that of a text shorter than one."""
    lower = iter([word.lower() for word in words])
    stretches = iter(lambda: list(islice(lower, STRETCH)), [])
    shares = [(len(stretch), len(set(stretch)) / len(stretch)) for stretch in stretches]
    complete = [share for length, share in shares if length == STRETCH]
    return fmean(complete or [shares[0][1]])


def _is_term(word: str) -> bool:
    return (
        any(letter.isdigit() or letter == "-" or letter.isupper() for letter in word[1:]) or word[0].isdigit()
    )


def _between(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
