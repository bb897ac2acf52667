"""Jobs in a real browser: seen while they run, found again after a reload, stopped from anywhere, with what they had done."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import serving
from tests.browser.pages import LOADING, heading

PORT = 18606
SHORT = "/steering?run=toy&steer=2:add:1&tokens=2&prompt=the+cat"
LONG = "/steering?run=toy&steer=2:add:1&tokens=100&texts=4&prompt=the+cat"
# the app with a language model that takes its time for every token
SLOW = """
import sys, time
from activations import generation
choose = generation._choose
generation._choose = lambda *given: time.sleep(0.02) or choose(*given)
from sae.cli.main import main
sys.exit(main())
"""
PROGRESS = re.compile(r"\d:\d\d so far")


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Return the address where a slow `sae app` serves the runs."""
    with serving(runs, PORT, ("-c", SLOW)) as address:
        yield address


def begin(page: Page, button: str = "Dose-response", address: str = LONG) -> None:
    page.goto(address)
    heading(page, "Steering")
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_test_id("stMain").get_by_role("button", name="Stop")).to_be_visible(timeout=LOADING)


def test_a_job_is_found_again_after_a_reload_and_its_result_after_another(page: Page):
    begin(page, address=SHORT)
    expect(page.get_by_text(PROGRESS).first).to_be_visible()
    page.reload()
    heading(page, "Steering")
    plot = page.locator(
        ".js-plotly-plot"
    )  # for a moment there are two: the one drawn so far, and the whole one
    expect(plot).to_have_count(1, timeout=LOADING)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=LOADING)
    text = page.locator("table.estimates").last.inner_text()
    page.reload()
    expect(plot).to_have_count(1)
    expect(plot).to_be_visible()
    expect(page.locator("table.estimates").last).to_have_text(text, use_inner_text=True)


def test_a_job_is_listed_on_other_pages_and_stopped_there_and_what_it_had_done_is_kept(page: Page):
    begin(page)
    expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=LOADING)  # the first doses
    page.get_by_test_id("stSidebar").get_by_role("link", name="Runs").click()
    heading(page, "Runs")
    listed = page.locator(".elsewhere")
    expect(listed).to_contain_text("measuring a dose-response of toy")
    page.get_by_test_id("stSidebar").get_by_role("button", name="Stop").click()
    expect(listed).to_have_count(0)
    page.go_back()
    heading(page, "Steering")
    expect(page.get_by_text(re.compile("^Stopped after .* what was done by then is kept"))).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_be_visible()


def test_texts_appear_as_they_are_written_and_stay_when_stopped(page: Page):
    begin(page, "Steer")
    strips = page.locator("p.strip")
    expect(strips).to_have_count(8, timeout=LOADING)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile("^Stopped after"))).to_be_visible()
    expect(strips).to_have_count(8)
    assert "the cat" in strips.first.inner_text()


def test_another_visitor_is_told_what_has_the_model_and_since_when(
    page: Page, browser: Browser, address: str
):
    begin(page)
    other = browser.new_context(base_url=address).new_page()
    other.goto("/text?run=toy&text=the+cat")
    said = other.get_by_text(
        re.compile("waiting for the language model, which has been measuring a dose-response")
    )
    expect(said).to_be_visible()
    expect(other.locator(".elsewhere")).to_have_count(0)  # jobs of others are not theirs to stop
    other.get_by_role("button", name="Stop").click()
    expect(other.get_by_text(re.compile("^Stopped after"))).to_be_visible()
    other.context.close()
    page.get_by_role("button", name="Stop").click()


def test_ctrl_c_during_a_job_ends_the_app_without_a_word_of_cpp(browser: Browser, runs: Path, capfd):
    with serving(runs, PORT + 1, ("-c", SLOW)) as address:
        page = browser.new_context(base_url=address).new_page()
        begin(page)
        expect(page.get_by_text(re.compile("strength x|as it is")).first).to_be_visible(timeout=LOADING)
        page.context.close()
    assert "terminate" not in capfd.readouterr().err
