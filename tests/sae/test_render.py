"""HTML of tokens and values: nothing a text says is ever read as markup, colours follow values."""

import re
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sae.report import numbers, render, token_strips

relaxed = settings(deadline=None)
NASTY = [
    "<b>",
    "</span>",
    "&",
    "&lt;",
    "'",
    '"',
    '"><script>alert(1)</script>',
    "\n",
    "\t",
    "\x00",
    "\u202e",
    " ",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))
values = st.floats(-100, 100, width=32)
OURS = {
    "p",
    "span",
    "br",
    "ul",
    "li",
    "table",
    "caption",
    "tr",
    "td",
    "th",
    "i",
    "a",
    "dl",
    "dt",
    "dd",
    "div",
    "b",
    "details",
    "summary",
}
ATTRIBUTES = {"class", "style", "data-tip", "title", "dir", "href", "target", "scope"}


class Window(NamedTuple):
    document: int
    position: int
    peak: int
    tokens: list[str]
    values: list[float]


@st.composite
def windows(draw) -> Window:
    tokens = draw(st.lists(texts, min_size=1, max_size=12))
    numbers = draw(st.lists(values, min_size=len(tokens), max_size=len(tokens)))
    peak = max(range(len(numbers)), key=lambda place: abs(numbers[place]))
    return Window(draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6)), peak, tokens, numbers)


class Reader(HTMLParser):
    """What a browser would make of it: elements, their attributes, and text by element class."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a text became a comment: {data!r}")

    handle_decl = handle_pi = unknown_decl = handle_comment

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def read(source: str) -> Reader:
    """Parse, and check that there are only our own elements and attributes."""
    reader = Reader(source)
    assert {tag for tag, _ in reader.tags} <= OURS
    assert {name for _, attributes in reader.tags for name in attributes} <= ATTRIBUTES
    return reader


def shown(tokens) -> str:
    return "".join(map(render.visible, tokens))


@relaxed
@given(st.lists(texts, max_size=6))
def test_no_text_becomes_markup_anywhere(tokens):
    text = "".join(tokens)
    numbers = [float(place) for place in range(len(tokens))]
    spaces = str.maketrans("", "", " ␣")  # a token of spaces alone is drawn
    assert read(render.chips(tokens)).text.translate(spaces) == shown(dict.fromkeys(tokens)).translate(spaces)
    assert shown([text]) in read(render.logits(text, tokens, numbers)).text
    assert read(render.facts([(text, text)])).text == 2 * shown([text])
    assert 3 * shown([text]) in read(render.estimates([(text, text, text + text, "")])).text
    link = read(render.neighbours([(7, 0.5, text, tokens)], text)).tags
    href = next(attributes["href"] for tag, attributes in link if tag == "a")
    assert parse_qs(urlsplit(href).query, keep_blank_values=True) == {"run": [text], "feature": ["7"]}


@relaxed
@given(windows(), st.sampled_from([None, 1, 4, 16]))
def test_a_strip_shows_the_text_of_its_tokens_and_nothing_else(window, around):
    part = token_strips.shown_part(window, around)
    assert read(token_strips.token_strip(window, 100.0, around)).text == shown(window.tokens[part])


@relaxed
@given(windows(), st.sampled_from([None, 1, 4, 16]))
def test_the_peak_is_marked_once_and_always_shown(window, around):
    strip = read(token_strips.token_strip(window, 100.0, around))
    assert len(strip.of_class("peak")) == 1
    part = token_strips.shown_part(window, around)
    assert len(strip.of_class("t")) == part.stop - part.start >= min(around or 99, len(window.tokens))


@relaxed
@given(windows())
def test_tokens_are_coloured_by_value_and_only_where_it_is_not_zero(window):
    marks = read(token_strips.token_strip(window, 100.0)).of_class("t")
    for mark, value in zip(marks, window.values, strict=True):
        classes = set((mark["class"] or "").split()) - {"t", "peak", "empty"}
        assert classes == ({"up"} if value > 0 else {"down"} if value < 0 else set())
        assert ("style" in mark) == ("data-tip" in mark) == (value != 0)


@relaxed
@given(values, values, st.floats(0.1, 100))
def test_a_larger_value_is_never_paler(a, b, scale):
    small, large = sorted((abs(a), abs(b)))
    assert 0 <= render.shade(small, scale) <= render.shade(large, scale) <= 1
    assert render.shade(a, scale) == render.shade(-a, scale)
    assert (render.shade(a, scale) == 0) == (a == 0)


def test_the_full_scale_is_full_colour_and_weak_values_stay_visible():
    assert render.shade(8.0, 8.0) == render.shade(9.0, 8.0) == pytest.approx(1.0)
    assert 0.25 < render.shade(0.8, 8.0) < 0.4
    assert render.shade(1.0, 0.0) == 0.0


@relaxed
@given(st.integers(1, 200), st.data(), st.one_of(st.none(), st.integers(1, 200)))
def test_a_crop_holds_the_peak_and_as_many_tokens_as_there_are(length, data, around):
    peak = data.draw(st.integers(0, length - 1))
    part = token_strips.crop(length, peak, around)
    assert 0 <= part.start <= peak < part.stop <= length
    assert part.stop - part.start == min(around or length, length)


@relaxed
@given(st.lists(windows(), max_size=8), st.sampled_from([None, 1, 3]))
def test_folding_counts_every_window_and_keeps_the_order(found, around):
    found = found + found
    folded = token_strips.fold(found, around)
    assert sum(count for _, count in folded) == len(found)
    looks = [tuple(w.tokens[token_strips.shown_part(w, around)]) for w in found]
    assert [tuple(w.tokens[token_strips.shown_part(w, around)]) for w, _ in folded] == list(
        dict.fromkeys(looks)
    )


def test_a_window_of_text_shows_once_however_many_peaks_it_has():
    text = ["a", "b", "c", "d"]
    twice = [Window(7, 101, 1, text, [0, 2, 1, 0]), Window(7, 102, 2, text, [0, 2, 1, 0])]
    other = Window(8, 102, 2, text, [0, 0, 1, 0])
    assert token_strips.once([*twice, other]) == [twice[0], other]


def test_a_cropped_window_unfolds_to_all_of_it_with_its_line_breaks():
    window = Window(0, 0, 0, ["a", "\n", "b", "c", "d"], [1.0, 0, 0, 0, 0])
    source = token_strips.examples([window], 1.0, around=2)
    assert read(source).text.count("d") - read(source).text.count("doc") == 1, (
        "only the whole window has the last token"
    )
    assert "<details" in source and "<br>" in source
    assert "<details" not in token_strips.examples([window], 1.0)


def test_look_alikes_show_once_with_their_number_and_the_rest_up_to_a_limit():
    same = [Window(document, 0, 0, ["x", f"{document}"], [1.0, 0.0]) for document in range(3)]
    source = token_strips.examples([*same, Window(9, 4321, 0, ["y"], [0.5])], 1.0, around=1)
    assert len(read(source).of_class("strip")) == 3, "the look-alikes unfold to the whole of one"
    assert "×3" in source
    assert "doc 9 · 4,321" in source
    assert len(read(token_strips.examples(same, 1.0, most=2)).of_class("strip")) == 2


def test_line_ends_are_seen_and_break_lines_only_in_whole_windows():
    window = Window(0, 0, 0, ["a", "\n", "\n", "b", "c"], [1.0, 0, 0, 0, 0])
    whole, cut = token_strips.token_strip(window, 1.0), token_strips.token_strip(window, 1.0, 4)
    assert read(whole).text == "a↵↵bc"
    assert whole.count("<br>") == 1
    assert "<br>" not in cut


def test_a_space_before_a_word_is_outside_its_colour():
    assert token_strips.inline([token_strips.valued(" top", 1.0, 1.0)]).startswith(' <span class="t up"')
    assert ">   </span>" in token_strips.inline([token_strips.valued("   ", 1.0, 1.0)])


def test_the_legend_goes_from_the_lowest_to_the_highest_by_the_tokens_rule():
    cells = [a for tag, a in read(render.legend(-2.0, 4.0)).tags if tag == "i"]
    assert {cell["class"] for cell in cells[:8]} == {"down"}
    assert {cell["class"] for cell in cells[8:]} == {"up"}
    alphas = [float((cell["style"] or "").removeprefix("--a:")) for cell in cells]
    assert alphas[8:] == sorted(alphas[8:])
    assert alphas[:8] == sorted(alphas[:8], reverse=True)


def test_bars_of_logits_are_relative_to_the_largest():
    source = render.logits("lowered", ["x", "y"], [-4.0, -1.0])
    assert "--w:1.000" in source
    assert "--w:0.250" in source
    assert source.count("bar down") == 2


@relaxed
@given(st.lists(texts, max_size=5))
def test_markdown_shows_the_text_and_nothing_else(parts):
    text = "x" + "".join(parts) + "x"
    page = Reader(MarkdownIt("commonmark").render(render.markdown(text)))
    assert page.text.strip().replace("\u2060", "") == render.visible(text).replace("\u2060", "")
    assert [tag for tag, _ in page.tags] == ["p"]


def test_markdown_disarms_streamlit_s_own_directives():
    assert render.markdown(":red[x] $y$ :smile:") == r"\:red\[x\] \$y\$ \:smile\:"


def test_lone_surrogates_do_not_break_the_page():
    assert render.escaped("\ud800<").encode("utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.23456, "1.23"),
        (-0.5, "−0.5"),
        (12345.6, "12,346"),
        (-2000.0, "−2,000"),
        (999.4, "999"),
        (999.6, "1,000"),
        (-999.5, "−1,000"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.00767, "0.767 %"),
        (1e-5, "0.001 %"),
        (1e-6, "1 in 1,000,000"),
        (-0.5, "−50 %"),
        (None, "–"),
    ],
)
def test_shares_are_readable_at_any_size(share, text):
    assert numbers.percent(share) == text


def test_signs_decimals_counts_and_settings_are_written_one_way():
    assert [numbers.signed(value) for value in (0.25, 0.0, -0.25, None)] == ["+0.25", "0", "−0.25", "–"]
    assert [numbers.fixed(value, 2) for value in (0.7, -0.7, None)] == ["0.70", "−0.70", "–"]
    assert numbers.fixed(0.5, 3, sign=True) == "+0.500"
    assert [numbers.count(value) for value in (12345, None)] == ["12,345", "–"]
    assert [numbers.setting(value) for value in (True, 8192, 0.00125, "topk")] == [
        "yes",
        "8,192",
        "0.00125",
        "topk",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "90 s"), (300, "5 min"), (3 * 3600, "3 h"), (36 * 3600, "36 h"), (3 * 86400, "3 d")],
)
def test_durations_have_the_largest_unit_of_which_there_are_two(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    "text", ["http://evil.invalid", "HTTPS://evil.invalid", "www.evil.invalid", "a@evil.invalid"]
)
def test_markdown_parts_addresses_which_become_links_though_they_are_escaped(text: str):
    """The patterns of mdast-util-gfm-autolink-literal, which looks at the text when escapes are gone."""
    links = re.compile(r"(https?://|www(?=\.))[-.\w]+|[-.\w+]+@[-\w]+(\.[-\w]+)+", re.IGNORECASE)
    assert links.search(text)
    shown = re.sub(r"\\(?=[^\w\s])", "", render.markdown(f"see {text} there"))
    assert not links.search(shown)
    assert shown.replace("\u2060", "") == f"see {text} there"


def test_a_character_in_several_tokens_stands_whole_over_them():
    pieces = ["a ", "你", "", "", "好", "!"]
    line = token_strips.inline(
        [token_strips.Token(text, "t", f' data-tip="{place}"') for place, text in enumerate(pieces)]
    )
    page = read(line)
    assert page.text == "a 你好!"
    assert [mark["data-tip"] for mark in page.of_class("t")] == ["0", "1", "2", "3", "4", "5"]
    (over,) = re.findall(r'<span class="char"><span>(.*?)</span><span class="over">(.*?)</span></span>', line)
    assert over[0] == "你"
    assert re.findall(r'data-tip="(\d)"', over[1]) == ["1", "2", "3"]


def test_an_emoji_of_several_code_points_and_an_accent_are_not_torn_apart():
    family = ["👨", "", "\u200d", "👩", " e", "\u0301", "x"]
    line = token_strips.inline([token_strips.Token(text) for text in family])
    shown_whole = re.findall(r'<span class="char"><span>(.*?)</span>', line)
    assert shown_whole == ["👨\u200d👩", "e\u0301"]
    assert read(line).text == "".join(family)


def test_a_crop_is_made_longer_rather_than_cut_a_character():
    window = Window(0, 0, 3, ["a", "你", "", "", "", "b"], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert token_strips.shown_part(window, 1) == slice(1, 5)
    assert read(token_strips.token_strip(window, 1.0, 1)).text == "你"
