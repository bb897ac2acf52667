"""Labels: what their sources give; and one number for each document, from a column, a formula or a function of the user's."""

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from activations import text
from activations.complexity import complexity
from activations.documents import Document, beginning
from activations.errors import LabelError
from activations.text import TextConfig
from activations.tokens import NOWHERE, Window

log = logging.getLogger(__name__)
NONE = math.nan  # the label of a document that has none
SURPRISE, NEEDED = "surprise", "needed:"  # sources of a label for each token
SAMPLE = "A plain sentence to try a function on."

Unit = Literal["score", "latents", "nats"]


def per_token(source: str | None) -> bool:
    """Whether a source gives each token a label of its own; the others give one number for a whole document."""
    return source is not None and (source == SURPRISE or source.startswith(NEEDED))


def unit_of(source: str) -> Unit:
    """Return what a source's labels count: nats of surprise, latents needed, or a score of the user's own scale."""
    if source == SURPRISE:
        return "nats"
    return "latents" if source.startswith(NEEDED) else "score"


Score = Callable[[str, dict[str, Any]], float]  # (text, the source's row) -> label


class Labels:
    """Documents as they pass by, and the label of each, found when it is first asked for.

    `source` is `builtin` (`complexity`), `column:NAME` or `module:function`; None gives no labels, nor does
    `surprise`, whose labels come from the model. A document of more
    than HEAD characters has the label of its first HEAD; a conversation that of what is said in it. They
    are asked for shard by shard: what an interrupted harvest has stored is not scored again, and no more
    text is kept than a shard's. Raises LabelError when the source is not there or gives no number."""

    def __init__(self, source: str | None, config: TextConfig):
        self._config = config
        self._score = _source(source) if source and source != SURPRISE else None
        self._waiting: dict[int, tuple[Document, dict[str, Any]]] = {}
        self._known: dict[int, float] = {}

    def documents(self) -> Iterator[Document]:
        """`text.documents`, each noted on its way."""
        for number, (document, row) in enumerate(text.rows(self._config)):
            if self._score:
                self._waiting[number] = document, row
                if number == 0:  # a mistake is to show before anything is made
                    self._known[0] = self._label(0)
            yield document

    def of(self, windows: Sequence[Window]) -> dict[int, float] | None:
        """Number -> label of the documents in a shard's windows; None without a source. Shards in order."""
        if not self._score:
            return None
        numbers = np.unique(np.stack([window.documents for window in windows]))
        found = {number: self._label(number) for number in numbers.tolist() if number != NOWHERE}
        self._known |= found
        self.skip(windows)
        return found

    def skip(self, windows: Sequence[Window]) -> None:
        """Forget the documents that end in these windows."""
        last = max(int(window.documents.max()) for window in windows)
        for kept in (self._waiting, self._known):
            for number in [number for number in list(kept) if number < last]:  # others may come in meanwhile
                del kept[number]

    def _label(self, number: int) -> float:
        if number in self._known:
            return self._known[number]
        assert self._score
        try:
            document, row = self._waiting[number]
            return self._score(beginning(document), row)
        except LabelError as error:
            raise LabelError(f"document {number} of {self._config.dataset}: {error}") from error


def _source(name: str) -> Score:
    if name == "builtin":
        return lambda document, row: complexity(document)
    kind, _, rest = name.partition(":")
    if not kind or not rest:
        raise LabelError(
            f"labels = {name!r}: needed is builtin, column:NAME or module:function for each document, "
            f"surprise or needed:RUN for each token"
        )
    if name.startswith(NEEDED):
        raise LabelError(
            f"labels = {name!r} are made on a store that is there: harvest without, then "
            f"`sae store label STORE --labels {name}`"
        )
    return _column(rest) if kind == "column" else _function(name)


def _column(name: str) -> Score:
    def score(document: str, row: dict[str, Any]) -> float:
        if name not in row:
            raise LabelError(f"there is no column {name!r} to take labels from: it has {', '.join(row)}")
        value = row[name]
        if value is None:
            return NONE
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LabelError(f"column {name!r} holds {type(value).__name__}, and a label is a number")
        return _finite(value)

    return score


def _function(name: str) -> Score:
    """A user's function, tried once. Later a call that fails, or gives no number, leaves that document out."""
    function = _import(name)
    try:
        float(function(SAMPLE))
    except Exception as error:  # whatever a stranger's code may raise
        raise LabelError(f"{name} fails on {SAMPLE!r}: {_said(error)}") from error

    def score(document: str, row: dict[str, Any]) -> float:
        try:
            return _finite(float(function(document)))
        except Exception as error:
            log.warning("%s fails on a document, which gets no label: %s", name, _said(error))
            return NONE

    return score


def _import(name: str) -> Callable[[str], float]:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look where it is started
        sys.path.append(os.getcwd())
    try:
        found: Callable[[str], float] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a stranger's module runs here
        raise LabelError(
            f"no function {name} for labels ({_said(error)}): needed is module:function, in a module that can "
            f"be imported from this folder"
        ) from error
    if not callable(found):
        raise LabelError(f"{name} is no function: needed is one that takes a text and gives a number")
    return found


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else NONE


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
