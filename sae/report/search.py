"""Features that mention some words, sorted by where they do (label, tokens they fire on, rule, examples), or that are about them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sae.report.features import EXPLAINED, EXPLANATION, F1
from sae.report.render import visible

pc: Any = import_module("pyarrow.compute")  # see sae.report.features
LONGEST = 40  # characters of a rule on a button
MEANING, WORDS = (
    "meaning",
    "words",
)  # columns of how well a feature's words fit a search, and of the commonest of them
NEAREST = 50  # features that a search by meaning shows
FIRES, RAISES, WHERE = "fires most on", "raises", "found in"
PASSAGE, AROUND = "passage", 24  # column of a hit in an example, and characters of either side of it


def ranked(table: pa.Table, words: str, texts: pa.ChunkedArray | None) -> pa.Table:
    """Return the table, whose features all mention the words, with the likeliest first and a column that says where they do.

    A label that has the words comes first; then a token that the feature fires most on and that is the words; then a rule that
    holds well, the better its F1 (they may be its least alternative); then the more of its strongest examples have them; then
    tokens of which they are a part, those that fire it before those that it raises; then the larger maximum. `texts` holds the text around each latent's strongest peaks, one a line (texts.parquet)."""
    words = words.strip().lower()
    labelled, ruled = (_has(table, name, words) for name in ("label", EXPLANATION))
    f1 = pc.fill_null(table[F1], 0).to_numpy() if F1 in table.column_names else np.zeros(len(table))
    well_ruled = f1 * (ruled & (f1 >= EXPLAINED))
    fires, fires_in = _mentions(table[FIRES], words)
    _, raises_in = (
        _mentions(table[RAISES], words) if RAISES in table.column_names else (None, np.zeros(len(table), int))
    )
    examples, having = np.zeros(len(table), int), np.zeros(len(table), int)
    if texts is not None:
        lines = pc.split_pattern(texts.take(table["feature"]), "\n")
        examples = pc.list_value_length(lines).to_numpy()
        _, having = _mentions(lines, words)
    share = having / np.maximum(examples, 1)
    largest = pc.fill_null(table["max"], 0).to_numpy()
    # the last key is the first to be sorted by
    order = np.lexsort((-largest, raises_in == 0, fires_in == 0, -share, -well_ruled, fires == 0, ~labelled))
    places = [
        ", ".join(
            [
                *["label"] * bool(named),
                *["rule"] * bool(rule),
                *["fires on"] * bool(on),
                *([f"{some} of {all_} examples"] if some else []),
                *["raises"] * bool(up),
            ]
        )
        for named, rule, on, some, all_, up in zip(
            labelled, ruled, fires_in, having, examples, raises_in, strict=True
        )
    ]
    found = table.add_column(1, WHERE, pa.array(places, pa.string()))
    if texts is not None:
        lines = texts.take(table["feature"]).to_pylist()
        found = found.add_column(
            2, PASSAGE, pa.array([passage(text or "", words) for text in lines], pa.string())
        )
    return found.take(pa.array(order))


def by_meaning(table: pa.Table, scores: NDArray[np.float32], words: Callable[[int], list[str]]) -> pa.Table:
    """Return the features of the table that fit a search best, NEAREST at most, with columns of how well and of their words.

    `scores` [F] say how well the features fit what is searched for, -inf for those that have no words, which are left out;
    `words` returns the commonest words that a feature fires on."""
    own = scores[table["feature"].to_numpy()]
    best = np.argsort(-own, kind="stable")[:NEAREST]
    best = best[np.isfinite(own[best])]
    found = table.take(pa.array(best))
    listed = [list(map(visible, words(latent))) for latent in found["feature"].to_pylist()]
    column = pa.array(listed, pa.list_(pa.string()))
    return found.add_column(1, WORDS, column).add_column(1, MEANING, pa.array(own[best]))


def passage(text: str, words: str) -> str | None:
    """Return the first hit of the words in the text with its surroundings, the hit between ▸ and ◂; None where there is none."""
    place = text.lower().find(words) if words else -1
    if place < 0 or len(text.lower()) != len(text):  # few letters, such as İ, have a longer lower case
        return None
    end = place + len(words)
    start, stop = text.rfind("\n", 0, place) + 1, text.find("\n", end)
    before = text[max(start, place - AROUND) : place]
    after = text[end : min(stop if stop >= 0 else len(text), end + AROUND)]
    return visible(f"{before}▸{text[place:end]}◂{after}")


def best_word(row: dict[str, Any], words: str) -> str:
    """Return what a button calls the feature in a row of `ranked`: its label, or a rule that holds well, or the token it fires on
    that has the words, or else the first token it fires on. Empty for a feature with none of them."""
    tokens: list[str] = row[FIRES]
    mentioning = [token for token in tokens if words.strip().lower() in token.lower()]
    rule = row.get(EXPLANATION) if (row.get(F1) or 0.0) >= EXPLAINED else None
    return row.get("label") or shortened(rule or "") or next(iter([*mentioning, *tokens]), "").strip()


def shortened(text: str) -> str:
    """Return a text of at most LONGEST characters, with an ellipsis where something is cut off."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"


def _has(table: pa.Table, name: str, words: str) -> NDArray[np.bool_]:
    """Return which rows' text in a column contains the words; none where there is no such column."""
    if name not in table.column_names:
        return np.zeros(len(table), bool)
    return pc.fill_null(pc.match_substring(pc.utf8_lower(table[name]), words), False).to_numpy(
        zero_copy_only=False
    )


def _mentions(lists: pa.ChunkedArray, words: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each list of texts, how many of them are the words, in any case, and how many contain them."""
    column = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lower = pc.utf8_lower(pc.list_flatten(column))
    owner = pc.list_parent_indices(column).to_numpy()
    are, contain = pc.equal(pc.utf8_trim_whitespace(lower), words), pc.match_substring(lower, words)
    are, contain = (
        np.bincount(owner, hits.to_numpy(zero_copy_only=False), len(column)).astype(int)
        for hits in (are, contain)
    )
    return are, contain
