"""Features that mention some words, sorted by where they do: in the label, among the tokens they fire on, in their examples."""

from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

pc: Any = import_module("pyarrow.compute")  # see sae.report.features
FIRES, RAISES, WHERE = "fires most on", "raises", "found in"


def ranked(table: pa.Table, words: str, texts: pa.ChunkedArray | None) -> pa.Table:
    """Return the table, whose features all mention the words, with the likeliest first and a column that says where they do.

    A label that has the words comes first; then a token that the feature fires most on and that is the words; then the more of
    its strongest examples have them; then tokens of which they are a part, those that fire it before those that it raises;
    then the larger maximum. `texts` holds the text around each latent's strongest peaks, one a line (texts.parquet)."""
    words = words.strip().lower()
    labels = (
        table["label"]
        if "label" in table.column_names
        else pa.chunked_array([[None] * len(table)], pa.string())
    )
    labelled = pc.fill_null(pc.match_substring(pc.utf8_lower(labels), words), False).to_numpy()
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
    order = np.lexsort((-largest, raises_in == 0, fires_in == 0, -share, fires == 0, ~labelled))
    places = [
        ", ".join(
            [
                *["label"] * bool(named),
                *["fires on"] * bool(on),
                *([f"{some} of {all_} examples"] if some else []),
                *["raises"] * bool(up),
            ]
        )
        for named, on, some, all_, up in zip(labelled, fires_in, having, examples, raises_in, strict=True)
    ]
    return table.add_column(1, WHERE, pa.array(places, pa.string())).take(pa.array(order))


def best_word(row: dict[str, Any], words: str) -> str:
    """Return what a button calls the feature in a row of `ranked`: its label, or the token it fires on that has the words, or
    else the first token it fires on. Empty for a feature with none of them."""
    tokens: list[str] = row[FIRES]
    mentioning = [token for token in tokens if words.strip().lower() in token.lower()]
    return row.get("label") or next(iter([*mentioning, *tokens]), "").strip()


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
