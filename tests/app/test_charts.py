"""Figures of features draw every count in its place and escape labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sae.report import charts, features_charts

relaxed = settings(deadline=None, max_examples=50)
EDGES = np.concatenate([-(2.0 ** np.arange(3, -4, -1)), [0.0], 2.0 ** np.arange(-3, 4)])  # two-sided, 14 bins


@relaxed
@given(arrays.arrays(np.int64, 14, elements=st.integers(0, 1000)).filter(lambda counts: counts.sum() > 0))
def test_the_activation_histogram_draws_every_count_in_order_of_value(counts):
    bar = charts.activations(EDGES, counts).data[0]
    assert list(bar.y) == [count for count in counts if count]
    assert all(np.diff(bar.x) > 0)
    centres = ((EDGES[:-1] + EDGES[1:]) / 2)[counts > 0]
    assert (np.sign(bar.x) == np.sign(centres)).all()
    left, right = np.array(bar.x) - np.array(bar.width) / 2, np.array(bar.x) + np.array(bar.width) / 2
    assert (left[1:] >= right[:-1]).all(), "bars overlap"


def test_bars_have_the_tokens_colours():
    counts = np.zeros(14, int)
    counts[[0, 8, 13]] = 5
    colors = charts.activations(EDGES, counts).data[0].marker.color
    assert charts.COOL in colors[0]
    assert charts.WARM in colors[1]
    assert float(colors[1].split(",")[-1].strip(" )")) < float(colors[2].split(",")[-1].strip(" )"))


def test_ticks_of_the_histogram_are_round_values_inside_it():
    counts = np.zeros(14, int)
    counts[8:] = 1
    axis = charts.activations(EDGES, counts).layout.xaxis
    assert list(axis.ticktext) == ["0.2", "0.5", "1", "2", "5"]
    assert list(axis.tickvals) == sorted(axis.tickvals)


@relaxed
@given(arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)))
def test_densities_draw_every_feature_once(every):
    chosen = every[: len(every) // 2]
    grey, shown = features_charts.densities(every, chosen).data
    assert sum(grey.y) == len(every)
    assert sum(shown.y) == len(chosen)
    assert grey.y[0] == (every == 0).sum(), "features that never fired have the first bar"
    assert (np.array(shown.y) <= np.array(grey.y)).all()


@pytest.mark.parametrize("lowest", [2e-3, 2e-4, 2e-5, 2e-6])
def test_the_label_never_of_the_axis_of_densities_lies_over_no_other(lowest):
    fired = np.array([lowest, 0.5])
    *places, never = features_charts.densities(np.append(fired, 0), fired).layout.xaxis.tickvals
    assert min(places) - never > 1
    all_fired = features_charts.densities(fired, fired).layout.xaxis
    assert set(places) <= {place for place in all_fired.tickvals if place > all_fired.range[0]}


def test_a_density_is_drawn_in_its_decade():
    bar = features_charts.densities(np.array([0.015, 0.5, 0.0]), np.array([])).data[0]
    tall = [x for x, y in zip(bar.x, bar.y, strict=True) if y]
    assert tall[0] < -2 < tall[1] < -1 < tall[2] < 0
