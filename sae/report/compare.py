"""Present the matched latents of two runs, as the Compare page shows them: counts, key numbers, a figure, a table.

The comparison is the content of a compare-NAME.json (FORMAT.md)."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

from sae.report.charts import GREY, PALETTE, plain
from sae.report.numbers import fixed, number, percent
from sae.report.render import visible
from sae.runs.records import Comparison, MatchedLatents

COLORS = {
    "shared": PALETTE[2],
    "merged": PALETTE[3],
    "lost": f"rgba({GREY}, 0.75)",
    "split": PALETTE[1],
    "new": PALETTE[0],
}
MEASURES = {
    "cosine": ("decoder cosine", "The cosine between two features' decoder directions: how alike they write."),
    "activation": ("activation correlation", "The correlation of two features' values over the same held-out tokens: how "
                   "alike they fire."),
}  # fmt: skip
KINDS = {
    "shared": ("first", "Each is the other's nearest feature, and they are near."),
    "merged": (
        "first",
        "Near a feature of the other run, which is nearer still to another feature of this run.",
    ),
    "lost": ("first", "No feature of the other run is near."),
    "split": (
        "second",
        "Features of the other run that are near one of this run, which is nearer to another of the other run.",
    ),
    "new": ("second", "Features of the other run that no feature of this run is near."),
}
BINS = 40  # of the histogram of similarities
OTHER = {"first": "second", "second": "first"}


def sizes(comparison: Comparison) -> tuple[int, int]:
    """Return how many latents the two runs have."""
    latents = comparison.cosine.latents
    return len(latents["first"].kind), len(latents["second"].kind)


def counts(comparison: Comparison, measure: str) -> dict[str, int]:
    """Count the latents of each of KINDS. Shared ones are counted in the first run."""
    tally: dict[str, Counter[str]] = {
        side: Counter(comparison.by(measure).latents[side].kind) for side in OTHER
    }
    return {kind: tally[side][kind] for kind, (side, _) in KINDS.items()}


def numbers(comparison: Comparison, measure: str) -> list[tuple[str, str, str]]:
    """Return how alike the two runs are, as (name, value, explanation)."""
    summary = comparison.by(measure).summary
    pairs, own, theirs = summary.one_to_one, summary.nearest["first"], summary.nearest["second"]
    mean = "Mean similarity to the nearest feature of the other run"
    return [
        ("one to one", fixed(pairs["mean"], 3), "Mean similarity when features are paired one to one."),
        (
            "pairs ≥ 0.7",
            percent(pairs["above_0.7"]),
            "Share of those pairs whose similarity is at least 0.7.",
        ),
        ("nearest, this run", fixed(own["mean"], 3), f"{mean}, over this run's features."),
        ("nearest, other run", fixed(theirs["mean"], 3), f"{mean}, over the other run's features."),
        (
            "mutually nearest",
            f"{summary.mutual['count']:,}",
            "Pairs of features that are each other's nearest.",
        ),
    ]


def basis(comparison: Comparison) -> str:
    """Return what a comparison is based on, in words."""
    values = "absolute similarities" if comparison.absolute else "signed similarities"
    return f"near: {comparison.near:g} or more · {values} · {comparison.tokens:,} held-out tokens"


def histogram(comparison: Comparison, measure: str) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Count the features of each run ("first", "second") and kind by similarity to their nearest, in bins of `bin_edges`."""
    edges = bin_edges(comparison, measure)
    return {side: _binned(comparison.by(measure).latents[side], edges) for side in OTHER}


def bin_edges(comparison: Comparison, measure: str) -> NDArray[np.float64]:
    """Return edges of equal bins from 0, or the lowest similarity if it is below, to 1."""
    sides = [comparison.by(measure).latents[side].similarity for side in OTHER]
    return np.linspace(min(0.0, *(min(side, default=0.0) for side in sides)), 1.0, BINS + 1)


def similarities(
    edges: NDArray[np.float64], counts: Mapping[str, Mapping[str, NDArray[np.int64]]], near: float
) -> go.Figure:
    """Return a histogram of the features' similarities to their nearest feature in the other run, stacked by kind.

    Bars of the first run point up and those of the second point down. A line shows where `near` begins."""
    figure, in_legend = go.Figure(), set()
    for up, whose, columns in ((1, "this run", counts["first"]), (-1, "the other run", counts["second"])):
        for kind, column in columns.items():
            figure.add_bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=up * column,
                width=np.diff(edges) * 0.94,
                name=kind,
                legendgroup=kind,
                showlegend=kind not in in_legend,
                marker={"color": COLORS[kind], "line": {"width": 0}},
                customdata=[
                    f"{low:.2f} to {high:.2f}: {n:,}"
                    for (low, high), n in zip(pairwise(edges), column, strict=True)
                ],
                hovertemplate="%{customdata} " + f"{kind}, {whose}<extra></extra>",
            )
            in_legend.add(kind)
    figure.add_vline(x=near, line={"color": f"rgb({GREY})", "width": 1, "dash": "dot"})
    figure.update_layout(
        barmode="relative", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(
        range=[float(edges[0]), 1.0],
        showgrid=False,
        title="similarity to the nearest feature of the other run",
    )
    figure.update_yaxes(nticks=5, showticklabels=False)
    return plain(figure, height=220, top=28, bottom=40, legend=True)


def listing(
    comparison: Comparison, measure: str, kind: str, first: pa.Table | None, second: pa.Table | None
) -> pa.Table:
    """Return a row for each latent of a kind, the most similar first, with its nearest in the other run and its partner.

    Density and peak tokens come from `first` and `second`, the tables of the runs' features folders; None for a run without
    one."""
    side = KINDS[kind][0]
    latents = comparison.by(measure).latents[side]
    own_table, other_table = (first, second) if side == "first" else (second, first)
    of_kind = np.flatnonzero(np.array(latents.kind, object) == kind)
    similarity = np.array(latents.similarity)[of_kind]
    order = of_kind[np.argsort(-similarity, kind="stable")]
    nearest = np.array(latents.nearest, np.int64)[order]
    partner = np.array(latents.partner, np.int64)[order]
    columns: dict[str, NDArray[Any] | pa.Array] = {
        "feature": pa.array(order, pa.int64()),
        "similarity": np.array(latents.similarity)[order],
        "nearest": nearest,
        **_density_and_tokens(own_table, order, ""),
        **_density_and_tokens(other_table, nearest, "nearest "),
        "partner": pa.array(partner, pa.int64(), mask=partner < 0),
        "partner similarity": pa.array(np.array(latents.partner_similarity)[order], mask=partner < 0),
    }
    return pa.table(columns)


def labelled(table: pa.Table) -> pa.Table:
    """Turn the numbers of a `listing`'s latents into texts of equal length, which sort as the numbers do."""
    latents = table["feature"].to_pylist()
    width = len(str(max(latents, default=0)))
    return table.set_column(0, "feature", [[f"{latent:>{width}}" for latent in latents]])


def pair(table: pa.Table, kind: str, row: int) -> tuple[int, int]:
    """Return the latents of the first and the second run that a row of `listing` is about."""
    latent, nearest = table["feature"][row].as_py(), table["nearest"][row].as_py()
    return (latent, nearest) if KINDS[kind][0] == "first" else (nearest, latent)


def cells(kind: str) -> dict[str, str]:
    """Return the columns of `listing` that hold the latent of the first run, `a`, and of the second, `b`."""
    return {"a": "feature", "b": "nearest"} if KINDS[kind][0] == "first" else {"a": "nearest", "b": "feature"}


def similarity(comparison: Comparison, first: int, second: int) -> str:
    """Return how similar two latents are, in words.

    A similarity is known only where one latent is the other's nearest or partner."""
    similarities = []
    for measure, (label, _) in MEASURES.items():
        value = _between(comparison.by(measure).latents, first, second)
        similarities += [] if value is None else [f"{label} {number(value)}"]
    return " · ".join(similarities)


def parents(comparison: Comparison, measure: str, first: int | None, second: int | None) -> str:
    """Return whether the parents of two latents are matched one to one with each other, in a sentence; empty without a parent."""
    if first is None and second is None:
        return ""
    if first is None or second is None:
        return f"Only one of them has a parent: {first if second is None else second}, in the {'first' if second is None else 'second'} run."
    matched = comparison.by(measure).latents["first"].partner[first] == second
    return f"Their parents, {first} and {second}, are {'matched with each other too' if matched else 'not matched with each other'}."


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


def _density_and_tokens(
    table: pa.Table | None, latents: NDArray[np.int64], prefix: str
) -> dict[str, NDArray[np.float64] | pa.Array]:
    if table is None:
        return {}
    part = table.select(["density", "peak_tokens"]).take(pa.array(latents))
    tokens = [[visible(text) for text in dict.fromkeys(row)] for row in part["peak_tokens"].to_pylist()]
    densities = np.array(part["density"].to_numpy()) * 100
    return {f"{prefix}density": densities, f"{prefix}fires on": pa.array(tokens, pa.list_(pa.string()))}
