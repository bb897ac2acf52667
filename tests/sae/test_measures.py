"""The table of measures: what eval.json has is shown everywhere by it, and documented."""

from dataclasses import replace
from pathlib import Path

import pytest

from sae.cli.evaluate import show_evaluation
from sae.evaluation import measures
from sae.evaluation.measures import MEASURES, Measure
from sae.report import runs as runs_report
from sae.runs.records import Estimate
from sae.runs.run import Run

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_every_measure_that_is_computed_has_a_line(world):
    assert set(Run(world / "runs" / "toy").evaluation.measures) == set(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_documented_with_its_formula(name):
    text = METRICS.read_text()
    assert f"`{name}`" in text
    assert MEASURES[name].formula in text


def test_a_measure_added_to_the_table_is_shown_on_the_command_line_and_in_the_app(world, monkeypatch, capsys):
    monkeypatch.setitem(
        measures.MEASURES, "novel", Measure("NVL", "novel measure", "x", "Reads well.", ".1f")
    )
    run = Run(world / "runs" / "toy")
    evaluation = replace(
        run.evaluation, estimates={"novel": Estimate(0.25, 0.15, 0.35), **run.evaluation.estimates}
    )
    show_evaluation(run, evaluation)
    assert "novel measure" in capsys.readouterr().out
    (line,) = [line for line in runs_report.estimates(evaluation) if line.label == "NVL"]
    assert line == runs_report.Estimate("NVL", "Reads well.", "0.2", "0.1 to 0.3")
    sides = {label: values for label, _, values in runs_report.side_by_side([evaluation, None])}
    assert sides["NVL"] == ["0.2", "–"]


def test_a_measure_without_a_line_is_shown_under_its_own_name(world, capsys):
    run = Run(world / "runs" / "toy")
    evaluation = replace(run.evaluation, estimates={"unknown_here": Estimate(0.25, None, None)})
    show_evaluation(run, evaluation)
    assert "unknown_here" in capsys.readouterr().out
