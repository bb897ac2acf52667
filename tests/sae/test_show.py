"""One feature's parts: numbers are its own, the drawn histogram counts what there is."""

import re
from typing import Any, NamedTuple

import numpy as np

from sae.report import feature as feature_report
from sae.report import histogram, render


def test_a_feature_s_numbers_are_its_own():
    row = {"density": 0.05, "fired": 50, "positive_share": 1.0, "max": 4.0, "min": 0.5, "mean": 2.0}
    row |= {"enc_dec_cosine": 0.7, "b_enc": 0.2}
    shown = {name: value for name, value, _ in [*feature_report.numbers(row), *feature_report.weights(row)]}
    assert shown == {
        "fires on": "5 %", "firings": "50", "max": "4", "mean": "2", "enc·dec cosine": "0.70", "bias": "0.2",
    }  # fmt: skip
    signed = {
        name: value for name, value, _ in feature_report.numbers({**row, "positive_share": 0.25, "min": -3.0})
    }
    assert (signed["positive"], signed["min"]) == ("25 %", "−3")
    assert all(why.endswith((".", "same.")) for _, _, why in feature_report.numbers(row)), "each is explained"


def test_neighbours_come_with_label_and_what_they_fire_on():
    row = {"neighbours": [2, 3], "neighbour_cosines": [0.8, 0.1]}
    about = {2: ("<i>", ["<b>"]), 3: ("", ["=1+1"])}.__getitem__
    linked, plain = (
        feature_report.neighbours(row, about, "a & b"),
        feature_report.neighbours(row, about, None),
    )
    assert 'href="feature?run=a+%26+b&amp;feature=2"' in linked
    assert "&lt;i&gt;" in linked and "&lt;b&gt;" in linked and "0.80" in linked
    assert "<a" not in plain and ">2<" in plain


def test_colours_are_relative_to_the_larger_side():
    assert feature_report.scale({"min": -7.0, "max": 2.0}) == 7.0
    assert feature_report.value_range({"min": 0.5, "max": 2.0}) == (0.0, 2.0)


def test_the_drawn_histogram_has_a_bar_for_each_bin_with_firings_and_nothing_to_fetch():
    edges = np.concatenate([-(2.0 ** np.arange(3, -4, -1)), [0.0], 2.0 ** np.arange(-3, 4)])
    counts = [0, 3, 0, 0, 0, 0, 1, 0, 0, 10, 0, 0, 0, 5]
    drawn = histogram.svg(edges.tolist(), counts)
    told = [int(n) for n in re.findall(r"(\d+) tokens", drawn)]
    assert told == [count for count in counts if count]
    hues = re.findall(r'<rect class="(\w+)"', drawn)
    assert hues == ["down", "down", "up", "up"]
    places = [float(x) for x in re.findall(r' x="([\d.]+)" y="[\d.]+" width', drawn)]
    assert places == sorted(places) and places[0] == 0
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', drawn)]
    assert heights.index(max(heights)) == 2


class Band(NamedTuple):
    share: tuple[float, float]
    low: float
    high: float
    examples: list[Any]


class Peak(NamedTuple):
    tokens: list[str]
    peak: int = 0
    document: int = 0
    position: int = 0


def test_random_windows_tell_what_is_typical_and_when_the_strongest_examples_are_not():
    windows = [Peak([" Cat"])] * 6 + [Peak([" cat"])] * 2 + [Peak([" <b>"])] * 2
    assert feature_report.commonest(windows) == [("cat", 0.8), ("<b>", 0.2)]
    assert "not typical" in feature_report.typical(windows, ["dog", " Dogs"])
    alike = feature_report.typical(windows, ["CAT", "dog"])
    assert "not typical" not in alike and "80 %" in alike and "&lt;b&gt;" in alike
    assert feature_report.typical([], ["dog"]) == ""


def test_a_token_of_spaces_is_drawn_and_is_like_itself():
    """An empty frame says nothing."""
    windows = [Peak(["a", " "], peak=1)] * 3
    assert feature_report.commonest(windows) == [(" ", 1.0)]
    assert ">␣</span>" in feature_report.typical(windows, [" "])
    assert "not typical" not in feature_report.typical(windows, [" "])
    assert "not typical" in feature_report.typical(windows, ["the"])
    assert "> the</span>" in render.chip(" the")


def test_bands_are_called_fifths_of_random_windows_not_shares_of_the_maximum():
    windows = [Peak(["x"], 0, 1, place) for place in (3, 4)]
    bands = [Band((0.8, 1.0), 1.5, 4.0, windows[:1]), Band((0.0, 0.2), 0.1, 0.2, windows[1:])]
    titles = {title: remark for title, remark, _ in feature_report.groups([Peak(["x"])], [], bands)}
    assert list(titles) == ["Strongest", "Strongest fifth", "Weakest fifth"]
    assert (
        "drawn at random" in titles["Strongest fifth"] and "peaks from 1.5 to 4" in titles["Strongest fifth"]
    )


def test_a_window_stands_among_the_strongest_or_in_a_band_and_not_in_both():
    first, second, third = (Peak(["x"], 0, 1, place) for place in (3, 4, 5))
    bands = [Band((0.8, 1.0), 1.5, 4.0, [first, second]), Band((0.6, 0.8), 1.0, 1.4, [third])]
    found = {
        title: (remark, windows) for title, remark, windows in feature_report.groups([first], [third], bands)
    }
    assert [*found] == ["Strongest", "Most negative", "Strongest fifth"]
    remark, windows = found["Strongest fifth"]
    assert windows == [second] and "1 of 2 are above" in remark
