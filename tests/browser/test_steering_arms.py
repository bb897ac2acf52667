"""Arms on the Steering page in a real browser: a comparison that outlives a reload and can be stopped, and the plot of its results."""

import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.session.runs import REFRESH_SECONDS
from sae.runs.run import Run
from tests.app.test_comparing import LOUD, QUIET
from tests.app.test_steering_arms import recorded
from tests.browser.pages import LOADING, settled
from tests.browser.test_pages import heading


@pytest.fixture(scope="module", autouse=True)
def stopped(runs: Path) -> Path:
    """Return a run in which nothing was compared yet, beside one, `armed`, in which arms were compared on three concepts."""
    recorded(Run(shutil.copytree(runs / "toy", runs / "armed")))
    shutil.copytree(runs / "toy", runs / "stopped")
    time.sleep(REFRESH_SECONDS)  # the app has looked for runs before
    return runs / "stopped"


def test_the_plot_of_the_concept_that_chose_the_latent_is_seen_and_leads_to_it(page: Page):
    page.goto("/steering?run=armed&steer=2:add:1")
    heading(page, "Steering")
    expect(page.locator(".pareto svg circle").first).to_be_visible()
    expect(page.locator(".pareto svg circle")).to_have_count(12)
    settled(page)
    chooser = page.get_by_role("combobox", name="Concept", exact=True)
    chooser.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # scrolling closes a list that is open
    chooser.click()
    page.get_by_role("option", name="birds").click()
    expect(page.get_by_text("Latent 5, AUC")).to_be_visible()
    page.go_back()
    expect(page.get_by_text("Latent 2, negative")).to_be_visible()
    page.locator(".verdict a").click()
    heading(page, "Feature 2")


def test_a_comparison_goes_on_after_a_reload_stops_when_it_is_told_to_and_keeps_what_was_done(
    page: Page, stopped: Path
):
    page.goto("/steering?run=stopped&steer=2:add:1")
    heading(page, "Steering")
    page.get_by_text("Compared with other arms").click()
    page.get_by_label("Texts with the concept").fill("\n".join(LOUD))
    page.get_by_label("Texts without it").fill("\n".join(QUIET))
    page.get_by_label("Name of the concept").fill("loud")
    page.get_by_role("button", name="Compare", exact=True).click()
    stop = page.get_by_test_id("stMain").get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    page.reload()
    expect(page.get_by_text("steer:")).to_be_visible(timeout=LOADING)
    stop.click()
    expect(page.get_by_text("Stopped after")).to_be_visible(timeout=LOADING)
    expect(page.get_by_text("Not compared to the end: loud")).to_be_visible()
    assert (stopped / "arms" / "texts" / "loud.jsonl").exists()
    assert not (stopped / "arms" / "arms.json").exists()
