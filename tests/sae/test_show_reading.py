"""The HTML of a reading: colours by sign and level, presses that name what they do, and nothing foreign as markup."""

import html
import math
import re

import pytest

from sae.report.render import shade
from sae.report.text import RANKINGS, Line, firings, level_legend, level_shades, signed_shades, strip

POISON = '<img src=x onerror="hack()">'


def test_signed_shades_have_the_sign_and_are_relative_to_the_largest_size():
    assert signed_shades([0.0, 2.0, -4.0]) == [0.0, shade(2.0, 4.0), -1.0]
    assert signed_shades([0.0, 0.0]) == [0.0, 0.0]


def test_level_shades_run_from_the_least_to_the_largest_that_counts():
    shades, low, high = level_shades([99.0, 2.0, 4.0, 3.0, math.nan], [False, True, True, True, True])
    assert (shades, low, high) == ([0.0, 0.0, 1.0, 0.5, 0.0], 2.0, 4.0)
    assert level_shades([5.0, 5.0], [True, True]) == ([0.0, 0.0], 5.0, 5.0)
    assert level_shades([math.nan], [True]) == ([0.0], 0.0, 0.0)


def test_every_token_is_there_can_be_pressed_and_says_its_value():
    made = strip(
        ["<bos>", " a", "b\n", "c"],
        [0.0, 0.5, -1.0, 0.0],
        ["0", "1", "−2", "3"],
        [False, True, True, True],
        2,
    )
    assert re.findall(r'data-do="token" data-to="(\d)"', made) == ["0", "1", "2", "3"]
    assert re.findall(r'data-tip="([^"]*)"', made) == ["0", "1", "−2", "3"]
    assert '<span class="t down peak" style="--a:1.000"' in made
    assert 'class="t up bos"' in made
    assert "b↵</span><br>" in made
    assert " <span" in made, "the space stays outside the colour"


@pytest.mark.parametrize("poison", [POISON, '"><script>hack()</script>', "' onclick='hack()"])
def test_foreign_text_is_text(poison: str):
    line = Line(3, -1.5, 0.25, 2.0, 0.01, poison, [poison])
    for made in (strip([poison], [1.0], [poison], [True]), firings([line], poison)):
        assert poison not in made
        assert "<img" not in made and "<script" not in made
    assert html.escape(poison) in strip([poison], [1.0], [""], [True])


def test_a_line_has_its_numbers_signs_and_links():
    lines = [Line(12, -4.0, -0.5, 3.25, 0.01, "", [" cat"]), Line(7, 2.0, 0.125, 0.5, 0.25, "a pet", [])]
    made = firings(lines, "a run & more", coloured=7)
    assert re.findall(r"<span>([^<]*)</span></td>", made) == ["−4", "2"]
    assert re.findall(r'bar (\w+)" style="--w:([\d.]+)', made) == [("down", "1.000"), ("up", "0.500")]
    assert re.findall(r'<td class="n">([^<]*)</td>', made) == ["−0.5", "3.25", "1 %", "+0.125", "0.5", "25 %"]
    assert 'href="feature?run=a+run+%26+more&amp;feature=12"' in made
    assert 'data-do="colour" data-to="12"' in made
    assert made.count("disc on") == 1
    assert made.count(">a pet</b>") == 1
    assert "tokens</th>" not in made


def test_what_nothing_is_known_of_has_no_column_and_a_whole_text_has_its_own():
    made = firings([Line(1, 2.0, None, None, None, "", [], times=1234, position=17)], "r")
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", made)
    assert heads == ["", "feature", "peak", "tokens"]
    assert "1,234" in made
    assert 'data-do="token" data-to="17"' in made


def test_the_effect_over_a_whole_text_is_said_to_be_a_sum():
    line = Line(1, 2.0, 0.5, 1.5, 0.1, "", [])
    assert 'title="Effect on the logit of the next token' in firings([line], "r")
    assert 'title="Sum of its effects' in firings([line._replace(times=3, position=1)], "r")
    assert "sum of effects" in RANKINGS["effect"]


def test_the_legend_says_both_ends():
    assert re.findall(r"<span>([^<]*)</span>", level_legend(0.5, 1234.0)) == ["0.5", "1,234"]
