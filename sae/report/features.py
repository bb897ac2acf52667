"""The table of all features of a run: its columns, the search in it, its filters, and the table as CSV."""

import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sae.evaluation.measures import DENSE
from sae.report import render
from sae.report.render import visible
from sae.runs.trust import STABLE

pc: Any = import_module(
    "pyarrow.compute"
)  # creates its functions on import, where type checkers do not see them
DENSITIES = (0.0, *(m * 10.0**d for d in range(-6, 0) for m in (1, 2, 5)), 1.0)  # stops of the density filter
PERCENTAGES = ("density", "positive")  # columns that the table of all features shows in per cent
STABILITY = "stability"  # column of the largest |cosine| over the other seeds
RAISED = 5  # tokens of a lens that the table of all features shows
EXPLANATION, F1 = "explanation", "F1"  # columns of the rule that explains a feature, and of how well it does
EXPLAINED = 0.5
"""From this F1 on, a feature counts as explained."""
STATES = ("all", "live", "dead", "dense", "stable", "explained")
COUNTED = (
    "**dead**: fires on none of the tokens that the features were measured on, and **dense** on more than a tenth of them. The page "
    "Dead latents counts on more and other text (training text, held-out text, special positions), and an evaluation on its own "
    "held-out text, so their counts may differ: a latent that is dead here may fire there."
)
"""What the states dead and dense mean, and why other pages may count differently."""
NEEDS = {"stable": STABILITY, "explained": F1}
"""States that are known only with a column."""


def features(table: pa.Table, raised: pa.ChunkedArray | None = None) -> pa.Table:
    """Return the table of all features as the page shows it, from a features folder's table. Texts are made visible.

    `raised` are the tokens that each feature raises, the most raised first; when left out, they are those of the logit lens. Columns
    that would say nothing are left out: the share of positive values where none is negative, raised tokens where there is no lens,
    neighbours where there are none. Densities and shares are percentages."""
    has_negative = pc.min(table["positive_share"]).as_py() not in (None, 1.0)
    columns = {
        "feature": table["latent"],
        "density": pc.multiply(table["density"], 100.0),
        "firings": table["fired"],
        "max": table["max"],
        **(
            {"min": table["min"], "positive": pc.multiply(table["positive_share"], 100.0)}
            if has_negative
            else {}
        ),
        "mean": table["mean"],
        "fires most on": _distinct(_token_lists(table["peak_tokens"])),
    }
    if raised is None and "raised_tokens" in table.column_names:
        raised = table["raised_tokens"]
    if raised is not None:
        columns["raises"] = _token_lists(pc.list_slice(raised, 0, RAISED))
    columns["enc·dec"] = table["enc_dec_cosine"]
    if len(table) and pc.min(pc.list_value_length(table["neighbour_cosines"])).as_py():
        columns["nearest"] = pc.list_element(table["neighbour_cosines"], 0)
    first = table["first_row"]
    columns["first fired"] = pc.if_else(pc.greater_equal(first, 0), first, pa.scalar(None, first.type))
    return pa.table(columns)


def counts(table: pa.Table) -> dict[str, int]:
    """Count the features in each of STATES that the table has the column for. `table` is the result of `features`."""
    known = [state for state in STATES if NEEDS.get(state, "density") in table.column_names]
    return {state: pc.sum(_in_state(table, state)).as_py() or 0 for state in known}


@dataclass(frozen=True)
class Wanted:
    """Conditions for the features to show; a feature has to meet all of them."""

    words: str = ""
    """Searched, in any case, in the tokens they fire on or raise, their label, their rule, and the text of their strongest examples."""
    state: str = "all"
    density: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest density as shares of 1, both included."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Column -> lowest and highest value, both included; a feature without a value is in no range."""
    among: Collection[int] | None = None
    """Only these features, marked on the map; None for all."""
    listed: Collection[int] | None = None
    """Only the features of this list; None for all."""
    ruled: Collection[int] | None = None
    """Only these features, whose rules are of one kind; None for all."""


class Haystack:
    """The text that is searched of each feature, in lower case.

    All of it is one string: searching that takes a tenth of the time of searching one string per feature."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.lower().encode() for text in texts]
        self._all = b"\n".join(encoded)
        self._starts = [0, *accumulate(len(text) + 1 for text in encoded)]

    def having(self, words: str) -> NDArray[np.bool_]:
        """Return which features' texts contain these words, in any case."""
        needle = words.lower().encode("utf-8", "replace")
        contains = np.zeros(len(self._starts) - 1, bool)
        place = self._all.find(needle)
        while place >= 0:
            row = bisect_right(self._starts, place) - 1
            within = place + len(needle) < self._starts[row + 1]
            contains[row] |= within
            place = self._all.find(needle, self._starts[row + 1] if within else place + 1)
        return contains


def haystack(table: pa.Table, texts: pa.ChunkedArray | None) -> Haystack:
    """Return what is searched of each feature: its tokens, and `texts` of its examples where there are any."""
    tokens = [table[name] for name in ("fires most on", "raises") if name in table.column_names]
    columns = [pc.binary_join(column, "\n").to_pylist() for column in tokens]
    columns += [texts.to_pylist()] if texts is not None else []
    return Haystack(map("\n".join, zip(*columns, strict=True)))


def with_labels(table: pa.Table, labels: Mapping[int, str]) -> pa.Table:
    """Insert a column of labels after the number; without labels, return the table unchanged."""
    if not labels:
        return table
    column = [visible(labels.get(latent, "")) or None for latent in table["feature"].to_pylist()]
    return table.add_column(1, "label", pa.array(column, pa.string()))


def with_notes(table: pa.Table, notes: Mapping[int, str] | None) -> pa.Table:
    """Insert a column of the notes of a list after the number; where there are none, return the table unchanged."""
    if not notes or not any(notes.values()):
        return table
    column = [visible(notes.get(latent, "")) or None for latent in table["feature"].to_pylist()]
    return table.add_column(1, "note", pa.array(column, pa.string()))


def with_stability(table: pa.Table, stability: NDArray[np.float64] | None) -> pa.Table:
    """Append a column of stability over seeds (`sae trust`); where none is known, return the table unchanged."""
    return table if stability is None else table.append_column(STABILITY, pa.array(stability))


def with_explanations(table: pa.Table, texts: Mapping[int, str], f1: NDArray[np.float64] | None) -> pa.Table:
    """Insert a column of rules (`sae explain`) after the number, and one of their F1; where F1 is None, return the table unchanged.

    A feature without a rule has null in both."""
    if f1 is None:
        return table
    column = [visible(texts[latent]) if latent in texts else None for latent in table["feature"].to_pylist()]
    scores = pa.array(f1, from_pandas=True)  # nan becomes null
    with_f1 = table.add_column(1, F1, scores)
    return with_f1.add_column(1, EXPLANATION, pa.array(column, pa.string()))


def filtered(table: pa.Table, wanted: Wanted, haystack: Haystack) -> pa.Table:
    """Return the wanted rows of the table; `haystack` belongs to the table."""
    low, high = wanted.density
    # 100 * density is rounded, and a density that equals an end of the range must still lie in it
    keep = _between(table["density"], 100 * low * (1 - 1e-9), 100 * high * (1 + 1e-9))
    keep = pc.and_(keep, _in_state(table, wanted.state))
    for name, ends in wanted.ranges.items():
        if name in table.column_names:
            keep = pc.and_(keep, _between(table[name], *ends))
    for only in (wanted.among, wanted.listed, wanted.ruled):
        if only is not None:
            keep = pc.and_(keep, pc.is_in(table["feature"], pa.array(only, table["feature"].type)))
    if wanted.words:
        keep = pc.and_(keep, _mentions(table, wanted.words, haystack))
    return table.filter(keep)


def shares(table: pa.Table) -> NDArray[np.float64]:
    """Return the table's densities as shares of 1."""
    return table["density"].to_numpy() / 100


def labelled(table: pa.Table) -> pa.Table:
    """Turn the numbers of features into texts of equal length, which sort as the numbers do."""
    numbers = table["feature"].to_pylist()
    width = len(str(max(numbers, default=0)))
    return table.set_column(0, "feature", [[f"{number:>{width}}" for number in numbers]])


def places(table: pa.Table, latents: Collection[int]) -> list[int]:
    """Return the rows of the table that hold these features."""
    return pc.indices_nonzero(
        pc.is_in(table["feature"], pa.array(latents, table["feature"].type))
    ).to_pylist()


def csv(table: pa.Table, percentages: Collection[str] = ()) -> bytes:
    """Return the table as CSV in UTF-8, with the columns of `percentages` as shares of 1, which they are in all other files.

    No cell begins as a spreadsheet's formula would: lists of tokens become JSON, and a text that would gets an apostrophe
    (`render.cell`)."""
    from pyarrow import csv as writer

    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in percentages:
            column = pc.divide(column, 100.0)
        if pa.types.is_list(column.type):
            column = pa.array([json.dumps(tokens, ensure_ascii=False) for tokens in column.to_pylist()])
        elif pa.types.is_string(column.type):
            column = pa.array([render.cell(text) for text in column.to_pylist()], pa.string())
        columns[name] = column
    sink = pa.BufferOutputStream()
    writer.write_csv(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _in_state(table: pa.Table, state: str) -> pa.ChunkedArray:
    density = table["density"]
    if state == "live":
        return pc.greater(density, 0)
    if state == "dead":
        return pc.equal(density, 0)
    if state == "stable" and STABILITY in table.column_names:
        return pc.greater_equal(table[STABILITY], STABLE)
    if state == "explained" and F1 in table.column_names:
        return pc.fill_null(pc.greater_equal(table[F1], EXPLAINED), False)
    return pc.greater(density, 100 * DENSE) if state == "dense" else pc.is_valid(density)


def _mentions(table: pa.Table, words: str, haystack: Haystack) -> pa.ChunkedArray:
    mentions = pa.array(haystack.having(words))
    for name in ("label", EXPLANATION):
        if name in table.column_names:
            having = pc.match_substring(pc.utf8_lower(table[name]), words.lower())
            mentions = pc.or_(mentions, pc.fill_null(having, False))
    return mentions


def _between(column: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    inside = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
    return pc.fill_null(inside, False)


def _token_lists(column: pa.ChunkedArray) -> pa.ListArray:
    """Return the lists with their texts made visible; each distinct text is converted once."""
    lists = column.combine_chunks()
    encoded = lists.flatten().dictionary_encode()
    texts = pa.array(map(visible, encoded.dictionary.to_pylist()), pa.string())
    return pa.ListArray.from_arrays(lists.offsets, texts.take(encoded.indices))


def _distinct(lists: pa.ListArray) -> pa.Array:
    return pa.array([list(dict.fromkeys(texts)) for texts in lists.to_pylist()], lists.type)
