"""The nearest latents are those of the whole matrix of cosines, among all latents and among the live ones."""

import numpy as np
import pytest
import torch

from sae.features.neighbours import nearest, nearest_and_live


@pytest.mark.parametrize("size", [50, 5000])  # within a tile, and over several of different widths
def test_neighbours_are_the_largest_cosines_but_oneself(size: int):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(size, 8, generator=generator)
    alive = torch.rand(size, generator=generator) < 0.6
    told: list[int] = []
    near, live = nearest_and_live(W, 5, alive, block=7 if size == 50 else 1500, advance=told.append)
    assert sum(told) == size
    unit = (W / W.norm(dim=1, keepdim=True)).double().numpy()
    for found, rows in ((near, unit), (live, unit[alive.numpy()])):
        table = rows @ rows.T
        np.fill_diagonal(table, -np.inf)
        order = np.argsort(-table, axis=1)[:, :5]
        np.testing.assert_allclose(found.cosines.numpy(), np.take_along_axis(table, order, 1), atol=1e-6)
        of_found = np.take_along_axis(table, found.latents.numpy(), 1)
        np.testing.assert_allclose(of_found, found.cosines.numpy(), atol=1e-6)
        assert all(len({*row}) == 5 for row in found.latents.tolist())


def test_there_are_no_more_neighbours_than_others():
    W = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert nearest(W, 10).latents.shape == (3, 2)
    _, live = nearest_and_live(W, 10, torch.tensor([True, False, True]))
    assert live.latents.tolist() == [[1], [0]]
    assert nearest(W[:1], 10).latents.shape == (1, 0)
    equal = nearest(torch.ones(4, 8), 2)
    assert equal.latents.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]], (
        "the lower latents, where all are as near"
    )
