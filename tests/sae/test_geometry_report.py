"""The advice on hook points says what the numbers say, and no more."""

import dataclasses

from activations.geometry.records import (
    FirstPosition,
    Geometry,
    GeometryConfig,
    HookGeometry,
    Interval,
    Linearity,
    MassiveCoordinate,
)
from sae.report import geometry as report


def hook(number: int, nearest: float, likelihood: float, **changes) -> HookGeometry:
    """Return the geometry of a made-up layer."""
    norms = {
        name: float(place + 1)
        for place, name in enumerate(("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "1.0"))
    }
    made = HookGeometry(
        hook=f"blocks.{number}.hook_resid_post", width=8, rows=10_000, norms=norms, largest=9.0, massive=0, coordinates=[],
        cosine=0.5, centred_cosine=0.01, sampled=10_000, participation=4.0, top_share=0.3, distinct=8000,
        two_nn=Interval(nearest, nearest - 0.3, nearest + 0.3),
        maximum_likelihood=Interval(likelihood, likelihood - 0.3, likelihood + 0.3),
        first=FirstPosition(100, 50.0, 40.0, 0.2, 3), linearity=Linearity("next", 0.99, 0.4),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def of(*hooks: HookGeometry) -> Geometry:
    return Geometry("0" * 64, GeometryConfig(), list(hooks))


def test_the_peak_is_advised_with_those_that_cannot_be_told_from_it():
    said = report.advice(of(hook(0, 5, 6), hook(1, 9, 11), hook(2, 8.8, 10), hook(3, 4, 4)))
    assert said.startswith("Try blocks.1.hook_resid_post first")
    assert "by both estimates" in said and "Within its interval lie 2.resid_post." in said
    assert "hint" in said
    disagreeing = report.advice(of(hook(0, 5, 12), hook(1, 9, 11), hook(2, 5, 4)))
    assert "by TwoNN, and that of 0.resid_post by maximum likelihood" in disagreeing


def test_without_a_peak_in_between_none_is_singled_out_by_its_dimension():
    rising = [hook(n, 3 + n, 4 + n) for n in range(6)]
    said = report.advice(of(*rising))
    assert said.startswith("The intrinsic dimension has no peak") and "Try" not in said
    massive = [dataclasses.replace(each, massive=9 * (n in (3, 4))) for n, each in enumerate(rising)]
    said = report.advice(of(*massive))
    assert (
        said.startswith("The intrinsic dimension has no peak")
        and "Try blocks.2.hook_resid_post first" in said
    )


def test_embeddings_that_repeat_are_not_compared():
    assert report.advice(
        of(hook(0, 30, 30, distinct=2000), hook(1, 5, 5), hook(2, 9, 11), hook(3, 5, 5))
    ).startswith("Try blocks.2.")
    nothing = hook(0, 5, 5, two_nn=None, maximum_likelihood=None)
    assert "enough distinct rows" in report.advice(of(nothing, nothing))


def test_a_single_hook_point_leaves_nothing_to_choose():
    assert "single hook point" in report.advice(of(hook(3, 5, 6)))


def test_massive_activations_in_rows_that_count_are_told():
    assert report.massive_note(of(hook(0, 5, 6))) is None
    said = report.massive_note(
        of(hook(0, 5, 6), hook(1, 5, 6, massive=12, coordinates=[MassiveCoordinate(77, 13, 1, 900.0)]))
    )
    assert said and "12 of 10,000" in said and "coordinate 77" in said


def test_the_table_and_the_figures_have_what_was_measured_and_gaps_for_what_was_not():
    known, unknown = hook(0, 5, 6), hook(1, 5, 6, two_nn=None, first=None, linearity=None)
    first, second = report.rows(of(known, unknown))
    assert len(first) == len(second) == len(report.COLUMNS)
    assert first == ["0.resid_post", "4", "9", "0 + 3", "20 %", "0.500", "0.010", "4", "5.0 (4.7 to 5.3)", "6.0 (5.7 to 6.3)", "0.990", "0.400"]  # fmt: skip
    assert second[8] == second[10] == second[11] == "–"
    assert report.dimension(of(known, unknown)).data[0].y == (5, None)
    linear = report.linearity(of(known, unknown))
    assert linear and linear.data[1].y == (0.4,)
    assert report.linearity(of(unknown)) is None
