"""Back, Forward, Reload and a copied address return to what was seen, with one press each and without an entry too many."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from sae.features.feature import FeatureStore
from tests.browser.pages import LOADING, click_cell, heading, settled
from tests.browser.test_pages import OPEN
from tests.browser.test_text import TOKENS, opened

LONG = "the cat sat on a mat and the dog ran home. " * 20


def entries(page: Page) -> int:
    return page.evaluate("window.history.length")


def is_one_visit(page: Page) -> None:
    """Mark the tab's document; `still_one_visit` then tells that no link loaded another."""
    page.evaluate("window.sameVisit = true")


def still_one_visit(page: Page) -> bool:
    return page.evaluate("window.sameVisit === true")


def test_opening_a_feature_from_the_table_is_one_entry_and_one_press_back(page: Page):
    page.goto("/features?run=toy&find=the&view=densities")
    heading(page, "Features")
    shown = page.get_by_text(re.compile(r"^\d+ of 32 features")).inner_text()
    before = entries(page)
    is_one_visit(page)
    click_cell(page, row=1, x=OPEN)
    heading(page, "Feature ")
    expect(page).to_have_url(re.compile(r"/feature\?run=toy&feature=\d+$"))
    page.wait_for_timeout(500)
    assert entries(page) == before + 1
    feature = page.locator("h1").inner_text()
    page.go_back()
    heading(page, "Features")
    expect(page).to_have_url(re.compile(r"/features\?run=toy&find=the&view=densities$"))
    expect(page.get_by_text(shown)).to_be_visible()
    page.go_forward()
    expect(page.locator("h1")).to_have_text(feature)
    page.reload()
    expect(page.locator("h1")).to_have_text(feature)


@pytest.mark.parametrize("text", ["the cat sat on a mat", LONG])
def test_opening_a_feature_from_a_text_and_back_has_text_token_and_colour(page: Page, text: str):
    page.goto("/text?run=signed")
    heading(page, "Your text")
    page.get_by_placeholder("Type or paste a text").fill(text)
    page.keyboard.press("Control+Enter")
    expect(page.locator(TOKENS).first).to_be_visible(timeout=LOADING)
    page.locator(TOKENS).nth(9).click()
    expect(page).to_have_url(re.compile("token=9"))
    page.get_by_test_id("stButtonGroup").get_by_text("effect", exact=True).click()
    expect(page).to_have_url(re.compile("rank=effect"))
    settled(page)  # the list is in its new order
    seen, listed, before = page.url, page.locator(".st-key-on-token a").all_inner_texts(), entries(page)
    is_one_visit(page)
    page.locator(".st-key-on-token .firings a").first.click()
    heading(page, f"Feature {listed[0]} ")
    page.wait_for_timeout(500)
    assert (entries(page), still_one_visit(page)) == (before + 1, True)
    page.go_back()
    heading(page, "Your text")
    expect(page).to_have_url(seen)
    for _ in range(2):  # as it was left, and after a reload
        expect(page.locator(f"{TOKENS}.peak[data-to='9']")).to_be_visible(timeout=LOADING)
        expect(page.locator(".st-key-on-token .firings a")).to_have_text(listed)
        expect(page.get_by_placeholder("Type or paste a text")).to_have_value(text)
        page.reload()


def test_links_in_the_page_keep_the_visit_and_its_jobs_results(page: Page, runs: Path):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    page.get_by_text("Try your own text").click()
    page.get_by_placeholder("Type or paste a text, then press Try").fill("the cat sat")
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_text(re.compile("strongest|does not fire", re.IGNORECASE)).first).to_be_visible(
        timeout=LOADING
    )
    page.get_by_test_id("stButtonGroup").get_by_text("16", exact=True).click()
    expect(page).to_have_url(re.compile("around=16"))
    is_one_visit(page)
    before = entries(page)
    nearest = FeatureStore(runs / "toy" / "features").row(7)["neighbours"][0]
    settled(page)  # a link that is drawn anew between a press and its release is not followed
    page.locator(".neighbours a").first.click()
    heading(page, f"Feature {nearest} ")
    expect(page).to_have_url(re.compile(f"feature={nearest}&around=16$"))
    expect(page.get_by_placeholder("Type or paste a text, then press Try")).to_have_value("the cat sat")
    assert (entries(page), still_one_visit(page)) == (before + 1, True)
    assert page.get_by_test_id("stMain").evaluate("main => main.scrollTop") == 0
    page.go_back()
    heading(page, "Feature 7 ")


def test_an_address_without_all_that_is_shown_is_completed(page: Page, browser: Browser, address: str):
    page.goto("/feature?run=toy&feature=5")
    heading(page, "Feature 5 ")
    for asked, seen in (("/feature", r"/feature\?run=.*&feature=\d+$"), ("/", r"/\?run=.*$")):
        page.goto(asked)
        expect(page).to_have_url(re.compile(seen))
        title, other = page.locator("h1").inner_text(), browser.new_page()
        other.goto(page.url)
        expect(other.locator("h1")).to_have_text(title)
        other.close()


def test_a_brush_a_cause_and_a_measure_come_back_after_a_reload(page: Page):
    page.goto("/features?run=toy&brush=mean:0.1:0.6")
    said = page.get_by_text(re.compile(r"^Selected: mean 0\.1 to 0\.6"))
    expect(said).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_role("link", name="Runs").click()
    heading(page, "Runs")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Features").click()
    expect(said).to_be_visible()
    expect(page).to_have_url(re.compile("brush="))
    page.get_by_role("button", name="Clear").click()
    expect(said).to_have_count(0)
    page.go_back()
    expect(said).to_be_visible()


def test_a_number_that_no_feature_has_does_not_follow_to_steering(page: Page):
    page.goto("/feature?run=toy&feature=999")
    expect(page.get_by_role("alert")).to_contain_text("feature 999 does not exist")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Steering").click()
    heading(page, "Steering")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_focus_stays_on_a_disc_pressed_with_enter(page: Page):
    opened(page)
    disc = page.locator(".st-key-on-text .disc").nth(1)
    latent = disc.get_attribute("data-to")
    disc.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"colour={latent}$"))
    expect(page.locator(f".st-key-on-text .disc.on[data-to='{latent}']")).to_be_focused()


def test_a_damaged_packed_text_is_one_line(page: Page):
    page.goto(f"/text?run=toy&packed={quote('eNr<b>')}")
    expect(page.get_by_role("alert")).to_contain_text("is no text that this app packed")
