"""The geometry of a store equals formulas written out in float64, and finds what was planted."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from activations.disk import files
from activations.errors import ConfigError, StoreError
from activations.geometry import estimators
from activations.geometry.measure import FILE, measure, read
from activations.geometry.records import GeometryConfig
from activations.store import Store
from activations.tokens import NOWHERE
from tests.activations import toys

T, WINDOWS = 9, 120
ROWS = WINDOWS * (T - 1)
SMALL = GeometryConfig(neighbours=8)
FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def write(path: Path, activations: dict[str, torch.Tensor], dtype: str = "float32") -> Store:
    """Return a store of windows that begin with a BOS, one document each."""
    hooks = {hook: x.shape[-1] for hook, x in activations.items()}
    windows = [toys.window([NOWHERE] + [n] * (T - 1), [NOWHERE, *range(T - 1)]) for n in range(WINDOWS)]
    return toys.write(path, toys.spec(hooks, T, dtype, windows_per_shard=50), windows, activations)


def normal(width: int, seed: int = 0) -> torch.Tensor:
    """Return random activations [n, T, width] about a mean that is not zero."""
    return torch.randn(WINDOWS, T, width, generator=torch.Generator().manual_seed(seed)) + 1.5


def counted(x: torch.Tensor) -> np.ndarray:
    """Return the rows that count, in float64."""
    return x[:, 1:].reshape(-1, x.shape[-1]).double().numpy()


@pytest.mark.parametrize("dimension", [2, 5, 9])
def test_both_estimates_find_the_dimension_of_a_planted_manifold(dimension: int):
    """A curved sheet in 30 coordinates: each is a smooth function of as many uniform numbers as it has dimensions.

    Both estimates are too low near the sheet's edges, where more and more of its points are as its dimension grows."""
    rng = np.random.default_rng(dimension)
    inside = rng.uniform(size=(4000, dimension))
    linear = inside @ rng.normal(size=(dimension, 30)) / math.sqrt(dimension)
    points = torch.from_numpy(linear + 0.1 * np.sin(linear))
    distances = estimators.nearest_distances(points, 20)
    two_nn, likelihood = estimators.dimensions(distances, np.arange(4000) // 40)
    for found in (two_nn, likelihood):
        assert 0.8 * dimension < found.value < 1.05 * dimension
        assert found.low < found.value < found.high
        assert found.high - found.low < 0.1 * found.value


def test_the_estimates_of_dimension_are_their_formulas():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(150, 4))
    k = 7
    distances = np.array([sorted(np.linalg.norm(points - p, axis=1))[1 : k + 1] for p in points])
    found = estimators.nearest_distances(torch.from_numpy(points), k)
    np.testing.assert_allclose(found, distances, rtol=1e-12)

    ratios = sorted(row[1] / row[0] for row in distances)
    x = [math.log(ratio) for ratio in ratios[:135]]
    y = [-math.log(1 - (i + 1) / 150) for i in range(135)]
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    inverse = [sum(math.log(row[-1] / t) for t in row[:-1]) / (k - 1) for row in distances]
    two_nn, likelihood = estimators.dimensions(found, np.arange(150) // 10)
    assert two_nn.value == pytest.approx(slope, rel=1e-12)
    assert likelihood.value == pytest.approx(150 / sum(inverse), rel=1e-12)


def test_the_interval_covers_the_spread_of_estimates_on_other_windows_of_text():
    """Points of a window lie close together, so that an interval over points alone would be far too narrow."""
    rng = np.random.default_rng(2)

    def estimate(seed: int):
        draw = np.random.default_rng(seed)
        spread = np.exp(draw.normal(size=(60, 1, 1)) * 0.5)
        points = (draw.normal(size=(60, 1, 6)) * 3 + draw.normal(size=(60, 12, 6)) * spread).reshape(-1, 6)
        distances = estimators.nearest_distances(torch.from_numpy(points), 8)
        return estimators.dimensions(distances, np.arange(720) // 12, seed)[1]

    found = [estimate(int(seed)) for seed in rng.integers(1 << 30, size=20)]
    spread = np.std([interval.value for interval in found])
    width = np.mean([interval.high - interval.low for interval in found]) / (2 * 1.96)
    assert 0.6 < width / spread < 1.6


def test_the_linearity_is_that_of_the_papers_definition_by_least_squares(tmp_path: Path):
    x = normal(6)
    y = torch.tanh(x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))) + 0.8 * x
    found = measure(write(tmp_path, {FIRST: x, SECOND: y}), SMALL).hooks
    assert found[1].linearity is None
    for target, value in (
        (y, found[0].linearity.stream),
        (y.double() - x.double(), found[0].linearity.update),
    ):
        a, b = (rows - rows.mean(0) for rows in (counted(x), counted(target)))
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        error = a @ np.linalg.lstsq(a, b, rcond=None)[0] - b
        assert value == pytest.approx(1 - (error**2).sum(), rel=1e-9)
    assert found[0].linearity.to == SECOND


def test_a_linear_map_has_linearity_one_and_other_widths_have_no_update(tmp_path: Path):
    x = normal(5)
    y = x @ torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    (first, _) = measure(write(tmp_path, {FIRST: x, "blocks.1.mlp.hook_post": y}), SMALL).hooks
    assert first.linearity.stream == pytest.approx(1, abs=1e-9)
    assert first.linearity.update is None


def test_anisotropy_and_participation_are_their_formulas(tmp_path: Path):
    x = normal(6)
    (found,) = measure(write(tmp_path, {FIRST: x}), SMALL).hooks
    rows = counted(x)
    for matrix, value in ((rows, found.cosine), (rows - rows.mean(0), found.centred_cosine)):
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        cosines = unit @ unit.T
        assert value == pytest.approx(cosines[~np.eye(ROWS, dtype=bool)].mean(), abs=1e-9)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.T))
    assert found.participation == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-9)
    assert found.top_share == pytest.approx(eigenvalues[-1] / eigenvalues.sum(), rel=1e-9)


def test_norms_are_quantiles_of_all_rows_that_count(tmp_path: Path):
    x = normal(6)
    x[:, 0] *= 1000
    (found,) = measure(write(tmp_path, {FIRST: x}), SMALL).hooks
    norms = np.linalg.norm(counted(x), axis=1)
    for share, value in found.norms.items():
        assert value == pytest.approx(np.quantile(norms, float(share), method="inverted_cdf"), rel=1e-3)
    assert found.largest == pytest.approx(np.abs(counted(x)).max())
    assert found.rows == ROWS


def test_the_first_position_has_its_share_of_the_variance(tmp_path: Path):
    x = normal(6)
    x[:, 0] += 20
    (found,) = measure(write(tmp_path, {FIRST: x}), SMALL).hooks
    every = x.reshape(-1, 6).double().numpy()
    squares = ((every - every.mean(0)) ** 2).sum(1).reshape(WINDOWS, T)
    assert found.first.variance_share == pytest.approx(squares[:, 0].sum() / squares.sum(), rel=1e-9)
    assert found.first.rows == WINDOWS
    assert found.first.mean_norm == pytest.approx(x[:, 0].double().norm(dim=1).mean().item())


def test_a_planted_massive_activation_is_found_and_what_is_only_large_is_not(tmp_path: Path):
    """Massive is what surpasses both 100 and a thousand times the median magnitude of its window."""
    x = normal(8) * 0.05
    x[:, 0, 3] = 2500.0  # every BOS
    x[7, 4, 3] = -3000.0  # one token within the text
    x[9, 5, 2] = 99.0  # below 100
    x[11, 1:] += 60
    x[11, 0, 3], x[11, 2, 6] = 1, 5000.0  # below a thousand times the median of its window
    x[12, 2] = 60.0
    x[12, 2, 6] = 4000.0  # in a row whose own median is large, but not its window's
    (found,) = measure(write(tmp_path, {FIRST: x}), SMALL).hooks
    assert found.massive == 2
    assert found.first.massive == WINDOWS - 1
    bos, other = found.coordinates
    assert (bos.coordinate, bos.tokens, bos.first) == (3, WINDOWS, WINDOWS - 1)
    assert bos.mean == pytest.approx((2500 * (WINDOWS - 1) - 3000) / WINDOWS)
    assert (other.coordinate, other.tokens, other.first, other.mean) == (6, 1, 0, 4000)
    assert (found.largest, found.first.largest) == (5000, 2500)


def test_rows_that_repeat_count_once_for_the_dimension(tmp_path: Path):
    x = normal(6)
    x[:, 1:5] = x[:, 5:9]
    (found,) = measure(write(tmp_path, {FIRST: x}), SMALL).hooks
    assert found.sampled == ROWS
    assert found.distinct == ROWS // 2
    assert found.two_nn.value == pytest.approx(6, rel=0.25)
    constant = torch.ones(WINDOWS, T, 6)
    (found,) = measure(write(tmp_path / "constant", {FIRST: constant}), SMALL).hooks
    assert (found.distinct, found.two_nn, found.maximum_likelihood) == (1, None, None)
    assert (found.participation, found.top_share, found.centred_cosine) == (None, None, 0)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_types_are_measured_as_they_are_read(tmp_path: Path, dtype: str):
    x = normal(6)
    (exact,) = measure(write(tmp_path / "exact", {FIRST: x}), SMALL).hooks
    (found,) = measure(write(tmp_path / dtype, {FIRST: x}, dtype), SMALL).hooks
    assert found.cosine == pytest.approx(exact.cosine, rel=1e-2)
    assert found.participation == pytest.approx(exact.participation, rel=1e-2)


def test_few_rows_are_drawn_the_same_ones_for_every_hook_point(tmp_path: Path):
    x = normal(4)
    config = GeometryConfig(rows=200, points=150, neighbours=8)
    first, second = measure(write(tmp_path, {FIRST: x, SECOND: x.clone()}), config).hooks
    assert first.sampled == 200
    assert first.distinct == 150
    assert first.two_nn == second.two_nn
    assert first.linearity.update is None  # y - x is zero
    other = dataclasses.replace(config, seed=1)
    assert measure(Store(tmp_path), other).hooks[0].two_nn != first.two_nn


def test_too_few_rows_for_a_linear_map_leave_the_linearity_out(tmp_path: Path):
    x = normal(100)  # 960 rows
    assert measure(write(tmp_path, {FIRST: x, SECOND: x * 2}), SMALL).hooks[0].linearity is None


def test_the_result_lies_beside_the_store_and_is_stale_once_the_store_changes(tmp_path: Path):
    store = write(tmp_path / "store", {FIRST: normal(4)})
    assert read(store) is None
    made = measure(store, SMALL)
    assert read(Store(store.path)) == made
    written = (store.path / FILE).read_bytes()
    assert measure(Store(store.path), SMALL) == made
    assert (store.path / FILE).read_bytes() == written
    changed = write(tmp_path / "changed", {FIRST: normal(4, seed=5)})
    (changed.path / FILE).write_bytes(written)
    assert read(changed) is None
    anew = measure(changed, SMALL)
    assert anew != made and read(changed) == anew


def test_a_damaged_or_newer_result_is_one_line(tmp_path: Path):
    store = write(tmp_path, {FIRST: normal(4)})
    measure(store, SMALL)
    content = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(content.replace('"rows": 960', '"rows": 961'))
    with pytest.raises(StoreError, match="changed since it was written") as damage:
        read(store)
    assert "sae store geometry" in (damage.value.fix or "")
    newer = {**files.parse_json(content), "format": 2}
    (tmp_path / FILE).write_text(json.dumps({name: newer[name] for name in newer if name != "checksum"}))
    with pytest.raises(StoreError, match="format 2"):
        read(store)


@pytest.mark.parametrize(
    "setting", [{"rows": 0}, {"points": 0}, {"neighbours": 1}, {"neighbours": 100}, {"seed": -1}]
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, setting: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        measure(write(tmp_path, {FIRST: normal(4)}), GeometryConfig(**setting))
