"""Pure: a comparison of two runs (FORMAT.md, compare-NAME.json) -> counts, numbers, a figure and the table of matched latents."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

from sae.report.charts import GREY, PALETTE, plain
from sae.report.numbers import number, percent
from sae.report.render import visible
from sae.runs.records import Comparison, Levels, MatchedLatents

COLORS = {
    "shared": PALETTE[2],
    "merged": PALETTE[3],
    "lost": f"rgba({GREY}, 0.75)",
    "split": PALETTE[1],
    "new": PALETTE[0],
}


def similarities(
    edges: NDArray[np.float64], counts: Mapping[str, Mapping[str, NDArray[np.int64]]], near: float
) -> go.Figure:
    """Features by their similarity to the nearest of the other run, stacked by kind; a line where `near` begins.

    The first run's stand above the axis, the second's hang below it."""
    figure, named = go.Figure(), set()
    for up, whose, columns in ((1, "this run", counts["first"]), (-1, "the other run", counts["second"])):
        for kind, column in columns.items():
            figure.add_bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=up * column,
                width=np.diff(edges) * 0.94,
                name=kind,
                legendgroup=kind,
                showlegend=kind not in named,
                marker={"color": COLORS[kind], "line": {"width": 0}},
                customdata=[
                    f"{low:.2f} to {high:.2f}: {n:,}"
                    for (low, high), n in zip(pairwise(edges), column, strict=True)
                ],
                hovertemplate="%{customdata} " + f"{kind}, {whose}<extra></extra>",
            )
            named.add(kind)
    figure.add_vline(x=near, line={"color": f"rgb({GREY})", "width": 1, "dash": "dot"})
    figure.update_layout(
        barmode="relative", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(range=[float(edges[0]), 1.0], showgrid=False, title="similarity to the nearest")
    figure.update_yaxes(nticks=5, showticklabels=False)
    return plain(figure, height=220, top=28, bottom=40, legend=True)


MEASURES = {
    "cosine": ("decoder cosine", "How alike two features point: the cosine of what they write."),
    "activation": ("activation correlation", "How alike two features fire: the correlation of their values over "
                   "the same held-out tokens."),
}  # fmt: skip
KINDS = {
    "shared": ("first", "Each is the other's nearest, and they are near."),
    "merged": ("first", "Near to one of the other run's, which is nearer still to another of this run's."),
    "lost": ("first", "Nothing in the other run is near."),
    "split": (
        "second",
        "Of the other run: near to one of this run's, which is nearer to another of the other's.",
    ),
    "new": ("second", "Of the other run: nothing in this run is near."),
}
BINS = 40
OTHER = {"first": "second", "second": "first"}


def counts(comparison: Comparison, measure: str) -> dict[str, int]:
    """How many latents there are of each of KINDS; shared ones are counted in the first run."""
    tally = {side: Counter(comparison.by(measure).latents[side].kind) for side in OTHER}
    return {kind: tally[side][kind] for kind, (side, _) in KINDS.items()}


def numbers(comparison: Comparison, measure: str) -> list[tuple[str, str, str]]:
    """How alike the two are, as (name, value, explanation)."""
    summary = comparison.by(measure).summary
    pairs, own, theirs = summary.one_to_one, summary.nearest["first"], summary.nearest["second"]
    mean = "Mean similarity to the nearest of the other run"
    return [
        ("one to one", _mean(pairs), "Mean similarity when every feature has a partner of its own."),
        ("pairs ≥ 0.7", percent(pairs["above_0.7"]), "Share of those pairs with at least this similarity."),
        ("nearest, this run", _mean(own), f"{mean}, over this run's features."),
        ("nearest, other run", _mean(theirs), f"{mean}, over the other run's features."),
        ("mutually nearest", f"{summary.mutual['count']:,}", "Pairs that are each other's nearest."),
    ]


def basis(comparison: Comparison) -> str:
    """What a comparison rests on."""
    values = "sizes of similarities" if comparison.absolute else "signed similarities"
    return f"near: from {comparison.near:g} on · {values} · {comparison.tokens:,} held-out tokens"


def histogram(comparison: Comparison, measure: str) -> dict[str, dict[str, NDArray[np.int64]]]:
    """For either run (`first`, `second`) and each kind of its features, how many are how similar to their nearest.

    Counts are in the bins of `bin_edges`."""
    edges = bin_edges(comparison, measure)
    return {side: _binned(comparison.by(measure).latents[side], edges) for side in OTHER}


def bin_edges(comparison: Comparison, measure: str) -> NDArray[np.float64]:
    """From 0, or the lowest similarity, to 1."""
    sides = [comparison.by(measure).latents[side].similarity for side in OTHER]
    return np.linspace(min(0.0, *(min(side, default=0.0) for side in sides)), 1.0, BINS + 1)


def listing(
    comparison: Comparison, measure: str, kind: str, first: pa.Table | None, second: pa.Table | None
) -> pa.Table:
    """A row for each latent of a kind, most similar first: it, its nearest in the other run, and its partner.

    `first` and `second` are the features' tables, from which come density and peak tokens where there are any."""
    side = KINDS[kind][0]
    latents = comparison.by(measure).latents[side]
    mine, theirs = (first, second) if side == "first" else (second, first)
    chosen = np.flatnonzero(np.array(latents.kind, object) == kind)
    similarity = np.array(latents.similarity)[chosen]
    order = chosen[np.argsort(-similarity, kind="stable")]
    nearest = np.array(latents.nearest, np.int64)[order]
    partner = np.array(latents.partner, np.int64)[order]
    columns: dict[str, Any] = {
        "feature": pa.array(order, pa.int64()),
        "similarity": np.array(latents.similarity)[order],
        "nearest": nearest,
        **_known(mine, order, ""),
        **_known(theirs, nearest, "nearest "),
        "partner": pa.array(partner, pa.int64(), mask=partner < 0),
        "partner similarity": pa.array(np.array(latents.partner_similarity)[order], mask=partner < 0),
    }
    return pa.table(columns)


def labelled(table: pa.Table) -> pa.Table:
    """`listing` with the latents' numbers as labels of equal length, which sort as the numbers do."""
    latents = table["feature"].to_pylist()
    width = len(str(max(latents, default=0)))
    return table.set_column(0, "feature", [[f"{latent:>{width}}" for latent in latents]])


def pair(table: pa.Table, kind: str, row: int) -> tuple[int, int]:
    """The latents of first and second run that a row of `listing` is about."""
    one, other = table["feature"][row].as_py(), table["nearest"][row].as_py()
    return (one, other) if KINDS[kind][0] == "first" else (other, one)


def similarity(comparison: Comparison, first: int, second: int) -> str:
    """What is known of how similar two latents are: where one is the other's nearest or partner."""
    said = []
    for measure, (label, _) in MEASURES.items():
        value = _between(comparison.by(measure).latents, first, second)
        said += [] if value is None else [f"{label} {number(value)}"]
    return " · ".join(said)


def _binned(latents: MatchedLatents, edges: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    kinds, similarity = np.array(latents.kind, object), np.array(latents.similarity)
    return {kind: np.histogram(similarity[kinds == kind], edges)[0] for kind in KINDS if kind in latents.kind}


def _between(latents: Mapping[str, MatchedLatents], first: int, second: int) -> float | None:
    for side, own, other in (("first", first, second), ("second", second, first)):
        if latents[side].nearest[own] == other:
            return latents[side].similarity[own]
        if latents[side].partner[own] == other:
            return latents[side].partner_similarity[own]
    return None


def _known(table: pa.Table | None, latents: NDArray[np.int64], prefix: str) -> dict[str, Any]:
    if table is None:
        return {}
    part = table.select(["density", "peak_tokens"]).take(pa.array(latents))
    tokens = [[visible(text) for text in dict.fromkeys(row)] for row in part["peak_tokens"].to_pylist()]
    densities = np.array(part["density"].to_numpy()) * 100
    return {f"{prefix}density": densities, f"{prefix}fires on": pa.array(tokens, pa.list_(pa.string()))}


def _mean(summary: Levels) -> str:
    return "–" if summary["mean"] is None else f"{summary['mean']:.3f}"


def sizes(comparison: Comparison) -> tuple[int, int]:
    """How many latents the two have."""
    latents = comparison.cosine.latents
    return len(latents["first"].kind), len(latents["second"].kind)
