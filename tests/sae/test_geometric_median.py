"""The geometric median, against minimisation in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from sae.architectures.shared import geometric_median
from tests.activations.toys import LAWS


def distance(point: np.ndarray, rows: np.ndarray) -> float:
    """Return the summed Euclidean distance, which the geometric median minimises."""
    return float(np.sqrt(((rows - point) ** 2).sum(1)).sum())


def minimised(rows: np.ndarray) -> np.ndarray:
    found = minimize(
        distance,
        np.median(rows, axis=0),
        args=(rows,),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxfev": 20_000},
    )
    return found.x


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 5


@LAWS
@given(st.integers(4, 60), st.integers(1, 4), st.integers(0, 10_000))
def test_no_point_has_a_noticeably_smaller_summed_distance(n: int, d: int, seed: int):
    x = cloud(n, d, seed)
    rows = x.double().numpy()
    least = distance(minimised(rows), rows)
    assert distance(geometric_median(x).double().numpy(), rows) <= least * (1 + 1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_where_minimisation_ends(seed: int):
    x = cloud(200, 3, seed)
    found = geometric_median(x)
    spread = (x - x.mean(0)).norm(dim=1).mean().item()
    np.testing.assert_allclose(found.numpy(), minimised(x.double().numpy()), atol=1e-3 * spread)


def test_it_moves_with_the_rows_and_grows_with_them():
    x, shift = cloud(100, 4), torch.tensor([1.0, -2.0, 30.0, 0.0])
    centre, spread = geometric_median(x), x.std().item()
    torch.testing.assert_close(geometric_median(x * 1000), centre * 1000, rtol=0, atol=1000 * 1e-3 * spread)
    torch.testing.assert_close(geometric_median(x + shift), centre + shift, rtol=0, atol=1e-3 * spread)


def test_a_few_huge_rows_do_not_pull_it_away():
    x = cloud(200, 4)
    far = torch.cat([x, torch.full((10, 4), 1e6)])
    spread = x.std().item()
    assert (geometric_median(far) - geometric_median(x)).norm() < spread
    assert (far.mean(0) - x.mean(0)).norm() > 1000 * spread


def test_it_stays_finite_and_right_when_a_row_lies_exactly_on_the_estimate():
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    assert (corners.mean(0) == corners[-1]).all()
    torch.testing.assert_close(geometric_median(corners), torch.zeros(2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.25, 1e-3, 3e4])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_rows_that_are_all_equal_are_their_own_median(rows: int, value: float):
    x = torch.full((rows, 3), value)
    torch.testing.assert_close(geometric_median(x), x[0], rtol=1e-6, atol=0)


def test_the_result_is_a_row_of_float32():
    found = geometric_median(cloud(10, 3))
    assert found.dtype == torch.float32
    assert found.shape == (3,)
