"""Scores of rules and the random directions beside them: what a single document does not tell, and how often directions fire."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae.rules.controls import random_directions
from sae.rules.score import _of_ratio
from sae.runs.run import Run


@pytest.fixture
def run(world: Path) -> Run:
    return Run(world / "runs" / "toy")


def test_a_score_from_one_document_has_no_interval():
    """Each resampling would give the same share, or 0 / 0."""
    hits, below = np.array([[0.0, 10, 0], [4, 6, 0]]), np.array([[0.0, 12, 0], [8, 6, 0]])
    value, low, high = _of_ratio(hits, below)
    assert value == pytest.approx([10 / 12, 10 / 14])
    assert np.isnan([low[0], high[0]]).all() and low[1] < value[1] < high[1]


def test_random_directions_fire_as_often_as_they_are_asked_to(run: Run):
    """Also the rarest latents, which fire a few times, stand beside controls that do."""
    store, wanted = run.store, np.array([1, 3, 20, 100])
    shards = [store.read(number, (run.hook,)) for number in range(len(store.shards))]
    x = torch.cat([shard.rows(run.hook, store.rows(shard).flatten().nonzero()[:, 0]) for shard in shards])
    made = random_directions(store, run.hook, wanted / len(x), 0, torch.device("cpu"))
    fired = np.bincount(made.encode(x).indices.numpy(), minlength=len(wanted))
    along = (x - store.mean(run.hook).float()) @ made.directions.T
    tied = (
        ((along - made.thresholds).abs() < 1e-5).sum(0).numpy()
    )  # the toy's text says the same things again and again
    assert (fired <= wanted + 1).all() and (fired + tied >= wanted).all() and (fired > 0).all()
