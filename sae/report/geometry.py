"""Present the geometry of a store, as `sae store geometry` and the Activations page show it: table, advice, figures."""

from collections.abc import Sequence

import plotly.graph_objects as go

from activations.geometry.records import Geometry, HookGeometry, Interval
from activations.store import Store
from sae.report.charts import PALETTE, plain, plain_text
from sae.report.numbers import DASH, count, fixed, number, percent

MOSTLY_DISTINCT = (
    0.9  # share of distinct rows among those drawn below which an intrinsic dimension is not compared
)
HEIGHT = 260
# Titles of the table's columns and what they mean
COLUMNS = {
    "hook point": "The name of the hook point.",
    "norm": "Median Euclidean norm of a row.",
    "largest": "Largest magnitude of any coordinate.",
    "massive": "Rows with a massive activation (above 100 and 1,000 times the median of their window), and first positions with one.",
    "first": "Share of the variance of all rows that lies at the first positions of windows, which training leaves out.",
    "cosine": "Anisotropy: mean cosine between two rows.",
    "centred": "Mean cosine after the mean is subtracted, as an SAE's decoder bias does.",
    "PR": "Participation ratio: the number of directions among which the variance is spread.",
    "TwoNN": "Intrinsic dimension by the two nearest neighbours, with its 95 % interval.",
    "ML": "Intrinsic dimension by maximum likelihood, with its 95 % interval.",
    "linear": "How linear the map to the next hook point is, 0 to 1.",
    "update": "How linear the map to the difference from the next hook point is, without the residual stream itself.",
}


HINT = "This is a hint and says nothing of SAEs: train small ones at two or three hook points and compare them with `sae evaluate`."
# Columns of the two tables of the command line
SIZES = ("hook point", "norm", "largest", "massive", "first", "cosine", "centred")
SHAPES = ("hook point", "PR", "TwoNN", "ML", "linear", "update")
QUESTION = (
    "How long are its rows, in how many directions do they spread, and which hook point should an SAE read?"
)


def facts(store: Store) -> str:
    """Return in a line what a store holds."""
    hooks = len(store.spec.hooks)
    return (
        f"{store.tokens:,} tokens, {hooks} hook {'point' if hooks == 1 else 'points'} of {store.spec.model}"
    )


def short(hooks: Sequence[str]) -> list[str]:
    """Return names of hook points as tables and axes have room for: without the words that all of them share."""
    return [hook.removeprefix("blocks.").replace("hook_", "") for hook in hooks]


def rows(geometry: Geometry) -> list[list[str]]:
    """Return the cells of the table, a row for each hook point, in the order of COLUMNS."""
    names = short([hook.hook for hook in geometry.hooks])
    return [[name, *_cells(hook)] for name, hook in zip(names, geometry.hooks, strict=True)]


def _cells(hook: HookGeometry) -> list[str]:
    first, linearity = hook.first, hook.linearity
    return [
        number(hook.norms["0.5"]),
        number(hook.largest),
        f"{count(hook.massive)} + {count(first.massive)}" if first else count(hook.massive),
        percent(round(first.variance_share, 3)) if first else DASH,
        fixed(hook.cosine, 3),
        fixed(hook.centred_cosine, 3),
        number(hook.participation),
        interval(hook.two_nn),
        interval(hook.maximum_likelihood),
        fixed(linearity.stream, 3) if linearity else DASH,
        fixed(linearity.update, 3) if linearity else DASH,
    ]


def interval(estimate: Interval | None) -> str:
    """Return an estimate with its interval; a dash for None."""
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})" if estimate else DASH


def basis(geometry: Geometry) -> str:
    """Return on how many rows the numbers rest."""
    hook = geometry.hooks[0]
    return (
        f"{hook.rows:,} rows; covariance and linearity from {hook.sampled:,} drawn at random, intrinsic dimension from "
        f"{min(geometry.config.points, hook.sampled):,} of these"
    )


def massive_note(geometry: Geometry) -> str | None:
    """Return a sentence about hook points where training reads rows with massive activations; None where there are none."""
    marred = [hook for hook in geometry.hooks if hook.massive]
    if not marred:
        return None
    worst = max(marred, key=lambda hook: hook.massive)
    named = ", ".join(str(coordinate.coordinate) for coordinate in worst.coordinates[:3])
    return (
        f"At {_few(short([hook.hook for hook in marred]))} rows that training reads have massive activations (most at "
        f"{short([worst.hook])[0]}: {worst.massive:,} of {worst.rows:,}, in coordinate {named}). A few such rows can make up most of the "
        f"variance, so that participation ratio, linearity and FVU speak of them (Sun et al. 2024, arXiv:2402.17762)."
    )


def advice(geometry: Geometry) -> str:
    """Return which hook point to take and why, or why none is advised, in words that claim no more than is known."""
    if len(geometry.hooks) < 2:
        return "The store holds a single hook point, so that there is nothing to choose from: harvest several with --hooks A,B,C."
    points = min(geometry.config.points, geometry.hooks[0].sampled)
    compared = [
        hook
        for hook in geometry.hooks
        if hook.two_nn and hook.maximum_likelihood and hook.distinct >= MOSTLY_DISTINCT * points
    ]
    if not compared:
        return "No hook point has enough distinct rows to compare intrinsic dimensions: harvest more text."
    by_two, by_likelihood = (
        max(compared, key=lambda hook: getattr(hook, name).value) for name in ("two_nn", "maximum_likelihood")
    )
    if any(by_two is end or _overlap(end.two_nn, by_two.two_nn) for end in (compared[0], compared[-1])):
        return f"{_without_a_peak(compared)} {HINT}"
    close = [hook for hook in compared if hook is not by_two and _overlap(hook.two_nn, by_two.two_nn)]
    tie = f" Within its interval lie {_few(short([hook.hook for hook in close]))}." if close else ""
    agreed = (
        "by both estimates"
        if by_two is by_likelihood
        else f"by TwoNN, and that of {short([by_likelihood.hook])[0]} by maximum likelihood"
    )
    return (
        f"Try {by_two.hook} first: its intrinsic dimension is the highest {agreed}, and layers at such a peak were the first whose "
        f"representations transfer to other tasks in five language models (Cheng et al. 2025, arXiv:2405.15471).{tie} {HINT}"
    )


def _without_a_peak(compared: Sequence[HookGeometry]) -> str:
    """Return what to try where the intrinsic dimension is highest at the first or the last hook point."""
    said = "The intrinsic dimension has no peak between the first and the last hook point, so that it singles out none"
    clear = [hook for hook in compared[1:-1] if not hook.massive]
    if not clear or len(clear) == len(compared[1:-1]):
        return f"{said}."
    best = max(clear, key=lambda hook: hook.two_nn.value if hook.two_nn else 0.0)
    return (
        f"{said}. Try {best.hook} first: of those in between whose training rows have no massive activations, it has the highest "
        f"intrinsic dimension."
    )


def _overlap(one: Interval | None, other: Interval | None) -> bool:
    assert one is not None
    assert other is not None
    return one.high >= other.low and other.high >= one.low


def _few(names: Sequence[str]) -> str:
    """Return names in a line, those in the middle left out where there are more than six."""
    return (
        ", ".join(names)
        if len(names) <= 6
        else f"{', '.join(names[:3])} … {', '.join(names[-2:])} ({len(names)})"
    )


def norms(geometry: Geometry) -> go.Figure:
    """Return the median norm at each hook point with the ranges from 5 % to 95 % and from 1 % to the largest, and the mean of first positions."""
    figure, names = go.Figure(), short([hook.hook for hook in geometry.hooks])
    for low, high, opacity, said in (
        ("0.01", "1.0", 0.15, "1 % to largest"),
        ("0.05", "0.95", 0.35, "5 % to 95 %"),
    ):
        figure.add_bar(
            x=names,
            base=[hook.norms[low] for hook in geometry.hooks],
            y=[hook.norms[high] - hook.norms[low] for hook in geometry.hooks],
            marker={"color": PALETTE[1], "opacity": opacity},
            name=said,
            customdata=[[hook.norms[low], hook.norms[high]] for hook in geometry.hooks],
            hovertemplate="%{x}<br>%{customdata[0]:.4~g} to %{customdata[1]:.4~g}<extra></extra>",
        )
    _line(figure, names, [hook.norms["0.5"] for hook in geometry.hooks], "median", PALETTE[1])
    if all(hook.first for hook in geometry.hooks):
        first = [hook.first.mean_norm if hook.first else None for hook in geometry.hooks]
        _line(figure, names, first, "first positions, mean", PALETTE[0])
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(type="log", title="norm")
    return _finished(figure)


def dimension(geometry: Geometry) -> go.Figure:
    """Return both estimates of intrinsic dimension with their intervals."""
    figure, names = go.Figure(), short([hook.hook for hook in geometry.hooks])
    for said, field, color in (
        ("TwoNN", "two_nn", PALETTE[0]),
        ("maximum likelihood", "maximum_likelihood", PALETTE[1]),
    ):
        estimates: list[Interval | None] = [getattr(hook, field) for hook in geometry.hooks]
        _line(figure, names, [each and each.value for each in estimates], said, color)
        figure.data[-1].error_y = {
            "type": "data",
            "symmetric": False,
            "array": [each.high - each.value if each else 0 for each in estimates],
            "arrayminus": [each.value - each.low if each else 0 for each in estimates],
            "thickness": 1,
        }
    figure.update_yaxes(rangemode="tozero", title="dimension")
    return _finished(figure)


def anisotropy(geometry: Geometry) -> go.Figure:
    """Return the mean cosine of two rows, before and after the mean is subtracted."""
    figure, names = go.Figure(), short([hook.hook for hook in geometry.hooks])
    _line(figure, names, [hook.cosine for hook in geometry.hooks], "as they are", PALETTE[0])
    _line(figure, names, [hook.centred_cosine for hook in geometry.hooks], "centred", PALETTE[1])
    figure.update_yaxes(rangemode="tozero", title="mean cosine")
    return _finished(figure)


def linearity(geometry: Geometry) -> go.Figure | None:
    """Return how linear the map to the next hook point is, and that to the difference; None where it was not measured."""
    linear = [
        (name, hook.linearity)
        for name, hook in zip(short([h.hook for h in geometry.hooks]), geometry.hooks, strict=True)
    ]
    known = [(name, each) for name, each in linear if each]
    if not known:
        return None
    figure, names = go.Figure(), [name for name, _ in known]
    _line(figure, names, [each.stream for _, each in known], "to the next hook point", PALETTE[0])
    _line(figure, names, [each.update for _, each in known], "to the difference", PALETTE[1])
    figure.update_yaxes(range=[min(0.0, *(each.update or 0.0 for _, each in known)), 1.05], title="linearity")
    return _finished(figure)


def _line(figure: go.Figure, x: Sequence[str], y: Sequence[float | None], name: str, color: str) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers",
        line={"color": color, "width": 2},
        marker={"size": 6},
        hovertemplate="%{x}: %{y:.4~g}<extra></extra>",
    )


def _finished(figure: go.Figure) -> go.Figure:
    """Give a figure over hook points its look; their names are slanted where there are many."""
    figure.update_xaxes(type="category", tickangle=-60, showgrid=False, nticks=16, tickfont={"size": 11})
    figure.for_each_trace(lambda trace: trace.update(x=[plain_text(name) for name in trace.x]))
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return plain(figure, height=HEIGHT + 60, top=24, left=56, bottom=90, legend=True)
