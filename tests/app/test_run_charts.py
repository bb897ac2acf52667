"""Training curves and the plot of quality against sparsity draw what was logged and measured."""

import itertools
from dataclasses import replace

import pytest

from sae.report import run_charts as charts
from sae.report import runs as runs_report
from sae.report.run_charts import HEIGHTS
from sae.runs.records import Estimate
from tests.app import test_rows as fake


def test_a_run_whose_measure_is_undefined_has_no_point():
    found = {name: fake.Run() for name in "abc"}
    measured = dict.fromkeys("ab", fake.evaluation(0.5))
    undefined = {"l0": Estimate(0.5, 0.4, 0.6), "fvu": Estimate(None, None, None)}
    measured["c"] = replace(measured["a"], estimates=undefined)
    points = runs_report.frontier(found, measured)
    assert [point[0] for point in points] == ["a", "b"]
    assert list(charts.frontier(points).data[0].x) == [0.5, 0.5]


def test_curves_show_what_was_logged_and_nothing_else():
    log = [{"step": step, "fvu": 1 / step, "lr": 1e-3} for step in (10, 20, 30)]
    figure = charts.curves({"a": [*log, {"step": 40, "fvu": 0.1}]}, steps=100)
    assert [list(line.x) for line in figure.data] == [[10, 20, 30, 40], [10, 20, 30]]
    assert [title.text for title in figure.layout.annotations] == [charts.CURVES["fvu"], charts.CURVES["lr"]]
    assert tuple(figure.layout.xaxis.range) == (0, 100)


def test_what_was_measured_on_held_out_rows_is_drawn_as_points_over_the_curve():
    log = [{"step": step, "fvu": 1 / step, "l0": 4.0} for step in (10, 20, 30)]
    log[1] |= {"held_out_fvu": 0.2}
    curve, points, l0 = charts.curves({"a": log}).data
    assert (list(points.x), list(points.y), points.mode) == ([20], [0.2], "markers")
    assert points.yaxis == curve.yaxis != l0.yaxis
    fvu, sparsity = (title.text for title in charts.curves({"a": log}).layout.annotations)
    assert fvu.endswith("held out")
    assert sparsity == charts.CURVES["l0"]


def test_curves_stand_one_below_the_other_so_that_none_overlaps_on_a_narrow_screen():
    figure = charts.curves({"a": [{"step": 10, "fvu": 0.5, "l0": 4.0, "dead": 1, "lr": 1e-3}]})
    axes = [figure.layout[f"yaxis{place}"].domain for place in ("", 2, 3, 4)]
    assert all(below[1] < above[0] for above, below in itertools.pairwise(axes))
    assert {tuple(figure.layout[f"xaxis{place}"].domain) for place in ("", 2, 3, 4)} == {(0.0, 1.0)}


def test_a_run_without_a_log_has_empty_curves():
    assert not charts.curves({"a": []}).data


def test_runs_of_one_architecture_are_one_line_from_sparse_to_dense():
    points = [("a", "topk", 64.0, 0.2), ("b", "topk", 16.0, 0.4), ("c", "relu", 30.0, 0.5)]
    relu, topk = charts.frontier(points, chosen="b").data
    assert (relu.name, topk.name) == ("relu", "topk")
    assert list(topk.x) == [16.0, 64.0]
    assert topk.marker.size[0] > topk.marker.size[1], "the chosen run stands out"


@pytest.mark.parametrize("l0", [(16.0, 35.0), (30.0, 33.0, 35.0), (1.0, 2000.0), (0.3, 40.0)])
def test_the_axis_of_l0_has_ticks_among_the_points(l0):
    axis = charts.frontier([(f"{one}", "topk", one, 0.5) for one in l0]).layout.xaxis
    inside = [tick for tick in axis.tickvals if min(l0) <= tick <= max(l0)]
    assert 2 <= len(inside) <= 12


@pytest.mark.parametrize("name", ["<b>x</b>", "<a href='javascript:1'>x</a>", "a & b"])
def test_names_in_plots_are_escaped(name):
    (line,) = charts.frontier([(name, name, 1.0, 0.5)]).data
    for text in (line.text[0], line.name):
        assert "<" not in text.replace("&lt;", "")
        assert "& " not in text


def test_several_runs_lie_over_one_another_each_with_its_own_line_and_one_name_in_the_legend():
    logs = {
        name: [{"step": step, "fvu": step * place} for step in (1, 2, 3)]
        for place, name in enumerate("abcdefgh", 1)
    }
    logs["<b>"] = [{"step": 1, "fvu": 0.5, "dead": 3}]
    figure = charts.curves(logs)
    fvu, dead = ([line for line in figure.data if line.yaxis == axis] for axis in ("y", "y2"))
    assert [list(line.y) for line in fvu][:8] == [[row["fvu"] for row in logs[name]] for name in "abcdefgh"]
    assert [line.name for line in fvu if line.showlegend] == [*"abcdefgh", "&lt;b&gt;"]
    assert not any(line.showlegend for line in dead)
    assert [list(line.y) for line in dead][-1] == [3]
    assert len({(line.line.color, line.line.dash) for line in fvu}) == 9
    assert figure.layout.showlegend


def test_no_two_kinds_look_alike_and_every_point_carries_its_name():
    kinds = [f"kind {number:02}" for number in range(14)]
    figure = charts.frontier([(f"<i>{kind}", kind, 10.0, 0.5) for kind in kinds], measure="recovered_zero")
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == 14
    assert [trace.customdata[0] for trace in figure.data] == [f"<i>{kind}" for kind in kinds]
    assert figure.layout.yaxis.title.text == HEIGHTS["recovered_zero"]
