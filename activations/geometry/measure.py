"""Measure the geometry of a store, hook point by hook point, in bounded memory; keep the result beside its shards.

Each hook point is read once in full, for norms, massive activations and anisotropy. Rows that are drawn once, the same for all
hook points, serve the rest: the covariance, the linearity to the next hook point, and the intrinsic dimension."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import ConfigError, StoreError, quoted
from activations.geometry import estimators
from activations.geometry.records import (
    FirstPosition,
    Geometry,
    GeometryConfig,
    HookGeometry,
    Interval,
    Linearity,
    MassiveCoordinate,
)
from activations.progress import Progress, no_progress
from activations.store import Store

FORMAT = 1
FILE = "geometry.json"
# Sun et al. 2024, arXiv:2402.17762, section 2: a massive activation surpasses this magnitude, and this many times the median
# magnitude of its hidden state, which is that of all tokens of a text at a layer: here of a window
MASSIVE, TIMES_MEDIAN = 100.0, 1000.0
LISTED = 16  # coordinates with massive activations that are told
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
PER_COORDINATE, FEWEST_PER_COORDINATE = 16, 10  # rows drawn, and needed, for each coordinate of a linear map
FEWEST_POINTS = 100  # distinct rows below which the intrinsic dimension is left out
BLOCK = 4096  # rows that are computed with at once
NARROW, SMALLEST, LARGEST = 1e-3, 1e-6, 1e9  # bins of norms: their relative width, and their ends


def measure(store: Store, config: GeometryConfig, progress: Progress = no_progress) -> Geometry:
    """Measure the geometry of every hook point of a store, write it into the store's folder, and return it.

    A result for the same store and settings that is already there is returned as it is. Raises ConfigError for a setting out
    of range, StoreError for a damaged shard or a store without rows."""
    _check(config)
    before = read(store)
    if before and before.config == config:
        return before
    total = sum(entry.rows for entry in store.shards)
    if not total:
        raise StoreError(f"{store.path} has no rows that count: harvest text")
    sample = Sample(store, config)
    hooks: list[str | None] = [*store.spec.hooks, None]
    measured = []
    with progress("geometry", total * len(store.spec.hooks), "rows") as advance:
        for hook, following in pairwise(hooks):
            assert hook is not None
            every, drawn = EveryRow(store, hook), DrawnRows(store, hook, following)
            for number in range(len(store.shards)):
                shard = store.read(number, tuple(filter(None, (hook, following))))
                with_first = store.rows(shard, with_bos=True).flatten().nonzero()[:, 0]
                counted = store.rows(shard).flatten()
                for chosen in _of_whole_windows(with_first, store.context):
                    every.add(shard.rows(hook, chosen).double(), ~counted[chosen], chosen // store.context)
                    advance(int(counted[chosen].sum()))
                rows, is_point = sample.of(number)
                places = counted.nonzero()[:, 0][rows]
                for chosen, points in zip(places.split(BLOCK), is_point.split(BLOCK), strict=True):
                    y = shard.rows(following, chosen).double() if following else None
                    windows = chosen // store.context + store.first_windows[number]
                    drawn.add(shard.rows(hook, chosen).double(), y, points, windows)
            measured.append(every.result(drawn, config))
    geometry = Geometry(store.fingerprint, config, measured)
    files.write_sealed(store.path / FILE, {"format": FORMAT, **asdict(geometry)})
    return geometry


def read(store: Store) -> Geometry | None:
    """Return the geometry beside a store's shards; None when there is none, or when it was measured before the store changed.

    Raises StoreError, with the command that measures it anew, when the file is damaged or of a newer format."""
    path, fix = (
        store.path / FILE,
        f"rm {quoted(store.path / FILE)} && sae store geometry {quoted(store.path)}",
    )
    if not path.exists():
        return None
    try:
        content = files.read_json(path)
        if (number := content["format"]) > FORMAT:
            raise StoreError(f"{path} has format {number}, this release reads up to {FORMAT}", fix=fix)
        geometry = parse(Geometry, content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} is damaged: {error}", fix=fix) from error
    return geometry if geometry.store_fingerprint == store.fingerprint else None


def _check(config: GeometryConfig) -> None:
    for name, least in (("rows", 1), ("points", 1), ("neighbours", 2), ("seed", 0)):
        if (value := getattr(config, name)) < least:
            raise ConfigError(f"{name} = {value} must be at least {least}")
    if config.neighbours >= min(config.points, FEWEST_POINTS):
        raise ConfigError(
            f"neighbours = {config.neighbours} must be below {min(config.points, FEWEST_POINTS)} and the number of points"
        )


class Sample:
    """Rows drawn without replacement from those that count, the same for all hook points of a store."""

    def __init__(self, store: Store, config: GeometryConfig):
        ends = np.cumsum([entry.rows for entry in store.shards])
        total, wanted = int(ends[-1]), max(config.rows, PER_COORDINATE * max(store.spec.hooks.values()))
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.choice(total, min(wanted, total), replace=False))
        is_point = np.zeros(len(rows), bool)
        is_point[rng.choice(len(rows), min(config.points, len(rows)), replace=False)] = True
        cuts = np.searchsorted(rows, ends[:-1])
        starts = np.concatenate([[0], ends[:-1]])
        self._rows = [part - start for part, start in zip(np.split(rows, cuts), starts, strict=True)]
        self._is_point = np.split(is_point, cuts)

    def of(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a shard's drawn rows, by their place among its rows that count, and which of them are points: int64, bool."""
        return torch.from_numpy(self._rows[number]), torch.from_numpy(self._is_point[number])


class EveryRow:
    """What is summed over all rows of a hook point, in float64."""

    def __init__(self, store: Store, hook: str):
        self.hook, self.width = hook, store.width(hook)
        self._mean, self._has_first = store.mean(hook), store.spec.excluded > 0
        self._rows, self._first_rows = 0, 0
        self._largest, self._first_norms = [0.0, 0.0], 0.0
        self._norms = np.zeros(int(np.log(LARGEST / SMALLEST) / NARROW) + 1, np.int64)
        self._longest = 0.0
        # Sums of rows divided by their norms, as they are and centred
        self._units, self._centred_units = torch.zeros(2, self.width, dtype=torch.float64)
        self._directed, self._centred_directed = 0, 0  # rows that are not zero, which have a direction
        # Sum and sum of squares of x - mean, of rows that count and of first positions
        self._sums = torch.zeros(2, self.width, dtype=torch.float64)
        self._squares = [0.0, 0.0]
        self._massive = [0, 0]
        self._on_tokens = torch.zeros(2, self.width, dtype=torch.int64)
        self._values = torch.zeros(self.width, dtype=torch.float64)

    def add(self, x: Float[Tensor, "B D"], first: Bool[Tensor, "B"], window: Int[Tensor, "B"]) -> None:
        """Add rows of whole windows, some of which are at first positions."""
        massive = _massive(x, window)
        self._values += x.where(massive, 0.0).sum(0)
        for group in (0, 1):
            rows, on = x[first == bool(group)], massive[first == bool(group)]
            self._massive[group] += int(on.any(1).sum())
            self._on_tokens[group] += on.sum(0)
            centred = rows - self._mean
            self._sums[group] += centred.sum(0)
            self._squares[group] += centred.square().sum().item()
            if not len(rows):
                continue
            norms = rows.norm(dim=1)
            self._largest[group] = max(self._largest[group], rows.abs().max().item())
            if group:
                self._first_rows += len(rows)
                self._first_norms += norms.sum().item()
                continue
            self._rows += len(rows)
            self._longest = max(self._longest, norms.max().item())
            self._units += _unit(rows).sum(0)
            self._centred_units += _unit(centred).sum(0)
            self._directed += int(norms.count_nonzero())
            self._centred_directed += int(centred.any(1).sum())
            bins = (norms.clamp(SMALLEST, LARGEST) / SMALLEST).log().div(NARROW).long()
            self._norms += np.bincount(bins.numpy(), minlength=len(self._norms))

    def result(self, drawn: "DrawnRows", config: GeometryConfig) -> HookGeometry:
        """Return what was found, together with what the rows drawn say."""
        two_nn, likelihood = drawn.dimensions(config)
        values, vectors = torch.linalg.eigh(drawn.covariance())
        return HookGeometry(
            hook=self.hook,
            width=self.width,
            rows=self._rows,
            norms=self._quantiles(),
            largest=self._largest[0],
            massive=self._massive[0],
            coordinates=self._coordinates(),
            cosine=_mean_cosine(self._units, self._directed, self._rows),
            centred_cosine=_mean_cosine(self._centred_units, self._centred_directed, self._rows),
            sampled=drawn.rows,
            participation=estimators.participation(values),
            top_share=values[-1].item() / total if (total := values.sum().item()) else None,
            distinct=drawn.distinct,
            two_nn=two_nn,
            maximum_likelihood=likelihood,
            first=self._first() if self._has_first else None,
            linearity=drawn.linearity(values, vectors),
        )

    def _quantiles(self) -> dict[str, float]:
        below = np.searchsorted(self._norms.cumsum(), np.array(QUANTILES[:-1]) * self._rows)
        middles = SMALLEST * np.exp((below + 0.5) * NARROW)
        return {f"{q}": float(v) for q, v in zip(QUANTILES, [*middles, self._longest], strict=True)}

    def _coordinates(self) -> list[MassiveCoordinate]:
        tokens = self._on_tokens.sum(0)
        order = tokens.argsort(descending=True, stable=True)[:LISTED].tolist()
        return [
            MassiveCoordinate(
                place,
                int(tokens[place]),
                int(self._on_tokens[1, place]),
                float(self._values[place] / tokens[place]),
            )
            for place in order
            if tokens[place]
        ]

    def _first(self) -> FirstPosition:
        # Distances from the mean of all rows, from sums about the mean of the rows that count
        shift = self._sums.sum(0) / (self._rows + self._first_rows)
        about = [
            squares - 2 * float(shift @ sums) + rows * float(shift @ shift)
            for squares, sums, rows in zip(
                self._squares, self._sums, (self._rows, self._first_rows), strict=True
            )
        ]
        return FirstPosition(
            self._first_rows,
            self._first_norms / max(self._first_rows, 1),
            self._largest[1],
            about[1] / sum(about) if sum(about) else 0.0,
            self._massive[1],
        )


class DrawnRows:
    """Products of the rows drawn from a hook point x, and from the next one y, and the points among them."""

    def __init__(self, store: Store, hook: str, following: str | None):
        self._following, self.rows, self.distinct = following, 0, 0
        self._x_mean, width = store.mean(hook), store.width(hook)
        self._x_sum, self._xx = self._x_mean.new_zeros(width), self._x_mean.new_zeros(width, width)
        if following:
            self._y_mean = store.mean(following)
            self._y_sum, self._yy = torch.zeros_like(self._y_mean), 0.0
            self._xy = self._x_mean.new_zeros(width, len(self._y_mean))
        self._points: list[Tensor] = []
        self._windows: list[Tensor] = []

    def add(
        self, x: Float[Tensor, "B D"], y: Float[Tensor, "B E"] | None, is_point: Tensor, windows: Tensor
    ) -> None:
        """Add rows, some of which are points, with the numbers of their windows."""
        self._points.append(x[is_point].float())
        self._windows.append(windows[is_point])
        # About the store's mean, so that little is lost when the sample's own is taken off in the end
        x = x - self._x_mean
        self.rows += len(x)
        self._x_sum += x.sum(0)
        self._xx += x.T @ x
        if y is not None:
            y = y - self._y_mean
            self._y_sum += y.sum(0)
            self._yy += y.square().sum().item()
            self._xy += x.T @ y

    def covariance(self) -> Tensor:
        """Return the products [D, D] of the centred rows x, which are the covariance times their number."""
        return self._xx - torch.outer(self._x_sum, self._x_sum) / self.rows

    def linearity(self, values: Tensor, vectors: Tensor) -> Linearity | None:
        """Return how linear the map to the next hook point is, where there is one and enough rows were drawn.

        Given are the eigenvalues and eigenvectors of the covariance of x."""
        if not self._following or self.rows < FEWEST_PER_COORDINATE * len(self._x_sum):
            return None
        xy = self._xy - torch.outer(self._x_sum, self._y_sum) / self.rows
        y_square = self._yy - self._y_sum.square().sum().item() / self.rows
        return (
            Linearity(self._following, *estimators.linearity(values, vectors, xy, y_square))
            if y_square > 0
            else None
        )

    def dimensions(self, config: GeometryConfig) -> tuple[Interval | None, Interval | None]:
        """Return the two estimates of intrinsic dimension. Equal rows count once, as a distance of 0 says nothing."""
        points, windows = torch.cat(self._points).numpy(), torch.cat(self._windows).numpy()
        points, first = _distinct(points)
        self.distinct = len(points)
        if len(points) < FEWEST_POINTS:
            return None, None
        distances = estimators.nearest_distances(torch.from_numpy(points), config.neighbours)
        apart = distances[:, 0] > 0  # rows that differ by rounding alone
        return estimators.dimensions(distances[apart], windows[first][apart], config.seed)


def _of_whole_windows(rows: Int[Tensor, "B"], context: int) -> Iterator[Tensor]:
    """Cut a shard's rows, in order, into pieces of whole windows, about as many rows as are computed with at once."""
    windows = rows // context
    size = max(BLOCK // context, 1)
    for start in range(0, int(windows[-1]) + 1, size):
        piece = rows[(windows >= start) & (windows < start + size)]
        if len(piece):
            yield piece


def _massive(x: Float[Tensor, "B D"], window: Int[Tensor, "B"]) -> Bool[Tensor, "B D"]:
    """Return which activations are massive. The median of an even number of magnitudes is the lower of the two in the middle."""
    sizes = x.abs()
    massive = sizes > MASSIVE
    for number in window[massive.any(1)].unique():  # the others have none, and medians are slow
        of_window = window == number
        massive[of_window] &= sizes[of_window] >= TIMES_MEDIAN * sizes[of_window].median()
    return massive


def _distinct(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distinct rows, in the order in which they come first, and the places of those."""
    _, first = np.unique(np.ascontiguousarray(rows + 0.0).view(f"V{rows.shape[1] * 4}"), return_index=True)
    first = np.sort(first)
    return rows[first], first


def _unit(x: Tensor) -> Tensor:
    """Divide each row by its norm; a row of zeros stays."""
    return torch.nn.functional.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny)


def _mean_cosine(units: Tensor, directed: int, rows: int) -> float:
    """Return the mean cosine over all pairs of different rows, from the sum of the rows' directions; 0 for a single row.

    The squared norm of the sum is the sum over all pairs, those of a row with itself included: they are 1 for each of the
    `directed` rows that are not zero. The cosine with a row of zeros counts as 0."""
    return (float(units @ units) - directed) / (rows * (rows - 1)) if rows > 1 else 0.0
