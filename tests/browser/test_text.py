"""The Your text page in a real browser: typing, pressing tokens and features, addresses that hold the text."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from activations.language_model import load
from sae.features.feature import FeatureStore
from sae.reading.reader import read
from sae.reading.reading import Reading
from sae.report.numbers import number
from sae.runs.run import Run
from tests.app.worlds import HOSTILE, HOSTILE_RUN
from tests.browser.pages import LOADING, heading

TEXT = "the cat sat on a mat"
TOKENS = ".reading .t"


@pytest.fixture(scope="module")
def reading(world: Path, runs: Path) -> Reading:
    """Return a reading by signed latents."""
    run = Run(runs / "signed")
    model, features = load(str(world / "model")), FeatureStore(run.path / "features")
    return read(model, run.sae(), run.hook, TEXT, features, run.store.spec.packing, run.store.mean(run.hook))


def expect_on_token(page: Page, features: list[tuple[str, str]]) -> None:
    """Wait until the chosen token's table lists these features with these values."""
    rows = page.locator(".st-key-on-token .firings tr:has(td)")
    expect(rows.locator("a")).to_have_text([latent for latent, _ in features])
    expect(rows.locator("td.bar")).to_have_text([value for _, value in features])


def shown(reading: Reading, place: int, by="value") -> list[tuple[str, str]]:
    return [(str(one.latent), number(one.value)) for one in reading.at(place, by)]


def opened(page: Page, run: str = "signed", text: str = TEXT, more: str = "") -> None:
    page.goto(f"/text?run={quote(run)}&text={quote(text)}{more}")
    heading(page, "Your text")
    expect(page.locator(TOKENS).first).to_be_visible(timeout=LOADING)


def test_a_text_is_typed_and_read(page: Page, reading: Reading):
    page.goto("/text?run=signed")
    heading(page, "Your text")
    expect(page.get_by_text("Nothing to read yet")).to_be_visible()
    page.get_by_placeholder("Type or paste a text").fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator(TOKENS)).to_have_count(len(reading), timeout=LOADING)
    expect(page).to_have_url(re.compile(r"text=the\+cat|text=the%20cat"))
    fvu = page.get_by_test_id("stMetric").filter(has_text="FVU")
    expect(fvu).to_contain_text(number(reading.text_fvu))


def test_pressing_a_token_lists_its_features_and_back_returns(page: Page, reading: Reading):
    opened(page)
    expect(page.locator(f"{TOKENS}.peak")).to_have_text(reading.tokens[1])
    page.locator(TOKENS).nth(9).click()
    expect(page).to_have_url(re.compile("token=9"))
    expect(page.locator(f"{TOKENS}.peak[data-to='9']")).to_be_visible()
    expect_on_token(page, shown(reading, 9))
    assert any(value.startswith("−") for place in range(1, 22) for _, value in shown(reading, place))
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{TOKENS}.peak[data-to='10']")).to_be_visible()
    page.go_back()
    expect(page.locator(f"{TOKENS}.peak[data-to='9']")).to_be_visible()


def test_features_are_ranked_and_hidden_by_click(page: Page, reading: Reading):
    opened(page, more="&token=7")
    page.get_by_test_id("stButtonGroup").get_by_text("effect", exact=True).click()
    expect_on_token(page, shown(reading, 7, "effect"))


def test_a_disc_colours_the_text_in_both_signs(page: Page, reading: Reading):
    negative = reading.code.indices[(reading.code.values < 0) & reading.counted[reading.code.rows()]]
    latent = int(negative[0])
    opened(page)
    page.locator(f".st-key-on-text .disc[data-to='{latent}']").click()
    expect(page).to_have_url(re.compile(f"colour={latent}$"))
    expect(page.locator(f"{TOKENS}.down").first).to_be_visible()
    values = reading.values_of(latent).masked_fill(reading.excluded, 0)
    below = (values < 0).nonzero()[:, 0].tolist()
    assert [int(t.get_attribute("data-to") or "") for t in page.locator(f"{TOKENS}.down").all()] == below
    colour = page.locator(f"{TOKENS}.down").first.evaluate(
        "element => getComputedStyle(element).backgroundColor"
    )
    assert colour not in ("", "rgba(0, 0, 0, 0)")


def test_a_feature_s_number_opens_its_page_and_back_returns_to_the_text(page: Page, reading: Reading):
    opened(page)
    latent = shown(reading, 1)[0][0]
    page.locator(".st-key-on-token .firings a").first.click()
    heading(page, f"Feature {latent} ")
    page.go_back()
    expect(page.locator(TOKENS)).to_have_count(len(reading))


def test_the_address_has_the_text_again_after_looking_elsewhere(page: Page):
    opened(page)
    page.get_by_test_id("stSidebar").get_by_role("link", name="Runs").click()
    heading(page, "Runs")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Your text").click()
    heading(page, "Your text")
    expect(page).to_have_url(re.compile(r"\?run=signed&text=the(\+|%20)cat"))
    expect(page.locator(TOKENS).first).to_be_visible()


def test_a_long_text_stays_while_one_looks_elsewhere(page: Page):
    page.goto("/text?run=toy")
    heading(page, "Your text")
    page.get_by_placeholder("Type or paste a text").fill("a long story " * 50)
    page.get_by_role("button", name="Read").click()
    expect(page.locator(TOKENS).nth(600)).to_be_visible()
    assert "text=" not in page.url.split("?")[1]
    page.get_by_role("link", name="Runs").first.click()
    heading(page, "Runs")
    page.get_by_role("link", name="Your text").first.click()
    expect(page.locator(TOKENS).nth(600)).to_be_visible()


def test_a_held_out_document_is_one_press_away(page: Page):
    page.goto("/text?run=toy")
    heading(page, "Your text")
    page.get_by_role("button", name="A held-out document").click()
    expect(page.locator(TOKENS).nth(20)).to_be_visible()


def test_hostile_text_does_nothing(page: Page):
    words = HOSTILE["e"] + HOSTILE["l"] + HOSTILE["a"] + HOSTILE["t"]
    opened(page, HOSTILE_RUN, words)
    page.locator(TOKENS).nth(3).click()
    page.wait_for_timeout(1500)  # for what would load late
    assert page.evaluate("window.hacked") is None
    for element in ("b:not(.label)", "i", "strong", "img", "script", "code", ".katex", "a[href^=http]"):
        inside = page.locator(f".reading {element}, .firings .token {element}, header {element}")
        assert inside.count() == 0, element
    assert "".join(page.locator(f"{TOKENS}:not(.bos)").all_inner_texts()).replace(" ", "") == words.replace(
        " ", ""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(page: Page, scheme):
    page.emulate_media(color_scheme=scheme)
    opened(page)
    text, ground = (
        page.locator(where).first.evaluate(f"element => getComputedStyle(element).{what}")
        for where, what in ((".reading .strip", "color"), (".stApp", "backgroundColor"))
    )
    lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (text, ground)]
    assert abs(lightness[0] - lightness[1]) > 150


def test_beside_a_long_text_the_token_s_features_stay_in_view_and_the_place_in_the_text_too(page: Page):
    page.goto("/text?run=toy")
    heading(page, "Your text")
    page.get_by_placeholder("Type or paste a text").fill("a long story " * 400)
    page.get_by_role("button", name="Read").click()
    late = page.locator(TOKENS).nth(3000)
    late.scroll_into_view_if_needed(timeout=LOADING)
    frame = page.locator(".st-key-tokens .pressable")
    place = frame.evaluate("element => element.scrollTop")
    assert place > 500
    late.click()
    expect(page).to_have_url(re.compile("token=3000"))
    expect(page.locator(f"{TOKENS}.peak[data-to='3000']")).to_be_visible()
    assert frame.evaluate("element => element.scrollTop") == place
    expect(page.locator("h2").filter(has_text="Token")).to_be_in_viewport()
    expect(page.get_by_role("heading", name=re.compile("^Over the whole text"))).to_be_in_viewport()
