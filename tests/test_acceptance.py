"""The verdicts of benchmarks/acceptance.py, without its long trainings."""

import math

import pytest

from benchmarks import acceptance
from benchmarks.acceptance import Expected


@pytest.mark.parametrize(
    ("right", "wrong", "bound"),
    [
        (0.1, 0.9, 0.13),  # 30 % of the value is less than of the distance
        (0.15, 0.2, 0.165),  # 30 % of the distance is less
        (1.0, 0.0, 0.7),
        (0.99, 0.84, 0.945),
    ],
)
def test_the_bound_lies_on_the_side_of_the_wrong_and_never_reaches_it(right, wrong, bound):
    expected = Expected("", right, wrong)
    assert expected.bound == pytest.approx(bound)
    assert expected.met_by(right)
    assert expected.met_by(bound + 1e-9 * (right - wrong))
    assert not expected.met_by(bound - 1e-9 * (right - wrong))
    assert not expected.met_by(wrong)
    assert not expected.met_by(math.nan)
    assert expected.met_by(right + 5 * (right - wrong))


def results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *values: float
) -> tuple[int, str]:
    """Exit code and output of a run with one made-up experiment, whose value for each seed is given."""
    made = (lambda seed: iter([values[seed]]), [Expected("number", 1.0, 0.0)])
    monkeypatch.setattr(acceptance, "EXPERIMENTS", {"made": made})
    monkeypatch.setattr("sys.argv", ["acceptance.py"])
    return acceptance.main(), capsys.readouterr().out


def test_one_wrong_seed_is_a_failure(monkeypatch, capsys):
    assert results(monkeypatch, capsys, 1.0, 0.9)[0] == 0
    code, out = results(monkeypatch, capsys, 1.0, 0.2)
    assert code == 1
    assert "1, 0.2" in out
    assert "FAILED" in out


def test_an_architecture_that_is_not_there_fails_by_name(monkeypatch, capsys):
    def missing(seed):
        yield acceptance.arch("nosuch")

    monkeypatch.setattr(acceptance, "EXPERIMENTS", {"made": (missing, [Expected("number", 1.0, 0.0)])})
    monkeypatch.setattr("sys.argv", ["acceptance.py"])
    assert acceptance.main() == 1
    assert "nosuch is not in the table" in capsys.readouterr().out
