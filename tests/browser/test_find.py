"""The pages Find and Evidence in a real browser: two sets of texts, a latent opened and saved; a report that opens offline."""

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from sae.runs.run import Run
from sae.workflows.find import load_monitor
from tests.browser.pages import LOADING, click_cell, heading
from tests.sae.test_probing import sentences

OPEN = 18  # pixels from the left edge of the table of latents to the buttons that open one
FIRST, SECOND = ("\n".join(sentences(subject, 12, seed)) for seed, subject in enumerate(("birds", "rain")))


def test_two_sets_of_texts_lead_to_a_latent_and_a_monitor_and_come_back(page: Page, runs: Path):
    page.goto("/find?run=toy")
    heading(page, "Find")
    page.get_by_label("First set").fill(FIRST)
    page.get_by_label("Second set").fill(SECOND)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", name=re.compile("^Latents"))).to_be_visible(timeout=LOADING)
    page.get_by_label("Name").fill("in-the-browser")
    page.get_by_role("button", name="Save monitor").click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("texts of the first set")
    latent = load_monitor(Run(runs / "toy"), "in-the-browser").latent
    click_cell(page, row=1, x=OPEN)
    heading(page, f"Feature {latent} ")
    page.go_back()
    heading(page, "Find")
    expect(page.get_by_label("First set")).to_have_value(FIRST)
    expect(page.get_by_role("heading", name=re.compile("^Latents"))).to_be_visible(timeout=LOADING)


def test_too_few_texts_are_one_line(page: Page):
    page.goto("/find?run=toy")
    heading(page, "Find")
    page.get_by_label("First set").fill("one text")
    page.get_by_label("Second set").fill(SECOND)
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("alert")).to_contain_text("4", timeout=LOADING)


def test_evidence_shows_the_run_beside_its_controls_and_saves_a_report(
    page: Page, trusted: str, tmp_path: Path
):
    page.goto(f"/evidence?run={trusted}")
    heading(page, "Evidence")
    table = page.locator("table.evidence").first
    expect(table.locator("tr.own")).to_contain_text("this run")
    expect(table).to_contain_text("frozen decoder")
    expect(page.locator(".verdict").last).to_contain_text("Stability over 3 seeds")
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML").click()
    path = tmp_path / "evidence.html"
    download.value.save_as(path)
    other = page.context.browser.new_context(offline=True).new_page()
    other.goto(path.as_uri())
    expect(other.locator("h1")).to_have_text(f"Evidence for {trusted}")
    expect(other.locator("table.evidence")).to_have_count(page.locator("table.evidence").count())
    other.context.close()


def test_a_run_without_evidence_says_how_to_find_some(page: Page):
    page.goto("/evidence?run=toy")
    heading(page, "No evidence yet")
    expect(page.locator("code")).to_contain_text("sae trust")
