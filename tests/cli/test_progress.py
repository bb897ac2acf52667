"""Progress away from a terminal: a plain line now and then, with a rate that says something."""

import pytest

from activations import progress


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(12_345.6, "12,346"), (10, "10"), (9.96, "10"), (2.54, "2.5"), (0.27, "0.27"), (0, "0")],
)
def test_a_slow_rate_is_not_rounded_to_nothing(rate: float, shown: str):
    assert progress.shown(rate) == shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0:00"), (59.7, "1:00"), (779.8, "13:00"), (3599.6, "1:00:00"), (42_629, "11:50:29")],
)
def test_a_time_is_rounded_as_a_whole_and_has_hours_where_it_is_long(seconds: float, told: str):
    assert progress.clock(seconds) == told


def test_a_window_every_three_seconds_is_told_as_such(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.show_progress("splice", 64, "windows") as advance:
        for _ in range(4):
            now += 3.0
            advance(1)
    assert capsys.readouterr().err == "splice: 4 of 64 windows (6%), 0.33/s, 3:00 left\n"


def test_what_the_first_units_take_longer_is_not_taken_for_the_rate_of_the_rest(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.show_progress("train", 100, "steps") as advance:
        for seconds in (60.0, 0.0, *[0.5] * 24):
            now += seconds
            advance(1)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train: 1 of 100 steps (1%), 0.017/s, up to 1:39:00 left"
    assert second == "train: 22 of 100 steps (22%), 2.1/s, 0:37 left"  # 21 steps in 10 s
