"""The map of decoder directions as a figure: a point for each feature, clusters with colours that tell them apart, and their names."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from scipy.spatial import KDTree

from sae.report.charts import GREY, PALETTE, plain, plain_text
from sae.report.numbers import percent

COLOURS = (*PALETTE[:5], "#c9a227", "#5f7fbf", "#8a9a3b", "#b3684d", "#4fb3bf", "#a05a8c", "#7b6fd0")
NEAR = 12  # nearest points of a point: clusters that have such points in each other lie beside each other
APART = 0.12  # distance in OKLab from which on two colours are told apart at a glance
SVG_POINTS = 2000  # up to so many points SVG draws without delay; more need WebGL
HEIGHT = 520  # of the figure in pixels
WIDTHS = 340, 760  # pixels that a phone and a window have for the map at least
NAMED = 8, 30  # clusters named on the map at most, on a phone and in a window
WORDS = 2  # of a cluster's name that stand on the map
CHARACTER, LINE = 6.4, 17  # pixels that a character and a line of a name take
NONE = f"rgba({GREY}, 0.6)"  # colour of a feature without a cluster
DRAWN = (*COLOURS, NONE)
STEPS = [
    ((number + end) / len(DRAWN), colour) for number, colour in enumerate(DRAWN) for end in (0, 1)
]  # a scale on which number n, of all that DRAWN has, is its nth colour


def directions(
    places: tuple[NDArray[np.float64], NDArray[np.float64]],
    colours: NDArray[np.int64] | NDArray[np.float64],
    texts: Sequence[str],
    shown: Collection[int],
    names: Sequence[tuple[float, float, str]] = (),
) -> go.Figure:
    """Return the map: a point for each feature whose place is not NaN. Hovering tells a feature's text.

    `colours` are the number of a colour for each feature (`cluster_colours`) or densities. `texts` are plain texts (`plain_text`). Features that are not shown are pale. A point's
    customdata is its feature. `names` are texts with their places (`labels`)."""
    x, y = places
    placed = np.flatnonzero(np.isfinite(x))
    latents = placed.tolist()
    is_shown = np.isin(placed, np.fromiter(shown, int, len(shown)))
    by_density = colours.dtype.kind == "f"
    marker = {
        "size": 5 if len(placed) > SVG_POINTS else 8,
        "opacity": np.where(is_shown, 0.85, 0.12),
        "line": {"width": 0},
        "color": np.log10(colours[placed]) if by_density else colours[placed],
    }
    if by_density:
        marker |= {"colorscale": "Viridis", "colorbar": _density_bar(marker["color"])}
    else:  # numbers on a scale of steps: plotly would look at each of as many texts of colours at every drawing
        marker |= {"colorscale": STEPS, "cmin": -0.5, "cmax": len(DRAWN) - 0.5, "showscale": False}
    kind = go.Scattergl if len(placed) > SVG_POINTS else go.Scatter
    figure = go.Figure(
        kind(
            x=x[placed],
            y=y[placed],
            mode="markers",
            marker=marker,
            customdata=placed,
            text=[texts[latent] for latent in latents],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    for at_x, at_y, name in names:
        figure.add_annotation(x=at_x, y=at_y, text=plain_text(name), showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(dragmode="pan")  # the only mode in which Streamlit receives clicks
    return plain(figure, height=HEIGHT, left=8, bottom=8)


def cluster_colours(
    places: tuple[NDArray[np.float64], NDArray[np.float64]], clusters: Sequence[int | None]
) -> NDArray[np.int64]:
    """Return the number in DRAWN of each feature's colour, by its cluster (None for no cluster), so that clusters beside each other
    differ.

    The largest cluster chooses first. Each takes, of the colours that none of its neighbours has or resembles, the one that is used least; where
    there is none, the one that is least like its neighbours'."""
    numbers = np.array([-1 if cluster is None else cluster for cluster in clusters], int)
    sizes = dict(
        zip(*(part.tolist() for part in np.unique(numbers[numbers >= 0], return_counts=True)), strict=True)
    )
    beside = _beside(np.stack(places, 1), numbers)
    apart = _distances(COLOURS)
    taken: dict[int, int] = {}
    used = np.zeros(len(COLOURS))
    for cluster in sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster)):
        others = [taken[other] for other in beside.get(cluster, ()) if other in taken]
        nearest = apart[:, others].min(1) if others else np.full(len(COLOURS), np.inf)
        free = np.flatnonzero(nearest >= APART)
        colour = free[used[free].argmin()] if len(free) else nearest.argmax()
        taken[cluster] = int(colour)
        used[colour] += 1
    return np.array([DRAWN.index(NONE) if cluster is None else taken[cluster] for cluster in clusters], int)


def labels(
    places: tuple[NDArray[np.float64], NDArray[np.float64]],
    clusters: Sequence[int | None],
    names: Mapping[int, Sequence[str]],
) -> list[tuple[float, float, str]]:
    """Return where the names of the largest clusters stand on the map, so that they do not lie over one another.

    The first NAMED[0] fit a phone, all of them a window; a cluster whose name would lie over that of a larger one has none. A name
    stands in the middle of its cluster (the medians of its places)."""
    numbers = np.array([-1 if cluster is None else cluster for cluster in clusters], int)
    xy = np.stack(places, 1)
    known, counts = np.unique(numbers[(numbers >= 0) & np.isfinite(xy[:, 0])], return_counts=True)
    spans = [(float(np.nanmin(axis)), float(np.nanmax(axis))) for axis in places] if len(known) else []
    candidates = []
    for cluster in known[np.argsort(-counts, kind="stable")].tolist():
        if name := ", ".join(names.get(cluster, ())[:WORDS]):
            x, y = np.nanmedian(xy[numbers == cluster], 0).tolist()
            candidates.append((x, y, name))
    chosen: list[tuple[float, float, str]] = []
    for width, most in zip(WIDTHS, NAMED, strict=True):
        for candidate in candidates:
            if len(chosen) < most and candidate not in chosen and _is_free(candidate, chosen, spans, width):
                chosen.append(candidate)
    return chosen


def _is_free(
    candidate: tuple[float, float, str],
    chosen: Sequence[tuple[float, float, str]],
    spans: Sequence[tuple[float, float]],
    width: float,
) -> bool:
    """Return whether a name lies over none of the others in a figure of this width."""
    across, down = (
        pixels / max(high - low, 1e-12) for pixels, (low, high) in zip((width, HEIGHT), spans, strict=True)
    )
    x, y, name = candidate
    return all(
        abs(x - other_x) * across > CHARACTER * (len(name) + len(other)) / 2 + CHARACTER
        or abs(y - other_y) * down > LINE
        for other_x, other_y, other in chosen
    )


def _beside(places: NDArray[np.float64], clusters: NDArray[np.int64]) -> dict[int, set[int]]:
    """Return for each cluster those that lie beside it: that have one of the nearest points of one of its points."""
    within = np.flatnonzero((clusters >= 0) & np.isfinite(places[:, 0]))
    if not len(within):
        return {}
    near = KDTree(places[within]).query(places[within], min(NEAR, len(within)))[1].reshape(len(within), -1)
    own, others = clusters[within][:, None], clusters[within][near]
    pairs = np.unique(np.stack(np.broadcast_arrays(own, others), -1)[own != others], axis=0)
    beside: dict[int, set[int]] = {}
    for one, other in pairs.tolist():
        beside.setdefault(one, set()).add(other)
        beside.setdefault(other, set()).add(one)
    return beside


def _distances(colours: Sequence[str]) -> NDArray[np.float64]:
    """Return how different each two colours look: distances in OKLab (Ottosson 2020), where black and white are 1 apart."""
    rgb = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    points = np.cbrt(linear @ cones.T) @ lab.T
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def _density_bar(logs: NDArray[np.float64]) -> dict[str, object]:
    ticks = list(range(int(np.floor(logs.min(initial=-1))), 1))
    return {
        "tickvals": ticks,
        "ticktext": [percent(10.0**tick) for tick in ticks],
        "thickness": 10,
        "title": None,
    }
