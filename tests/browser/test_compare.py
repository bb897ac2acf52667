"""The Compare page in a real browser: a press matches two runs, a row puts two features side by side, names stay text."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from sae.features.feature import FeatureStore
from sae.runs.records import Comparison
from sae.runs.run import Run
from sae.workflows.compare import keep, kept, match_runs
from tests.app.worlds import HOSTILE_RUN
from tests.browser.pages import click_cell, heading, settled


@pytest.fixture(scope="module")
def matched(runs: Path) -> Comparison:
    """Save the comparison of the toy run with the signed run, and return it."""
    first, second = Run(runs / "toy"), Run(runs / "signed")
    keep(first, second, match_runs(first, second))
    comparison = kept(first, second)
    assert comparison is not None
    return comparison


def test_features_are_matched_at_a_press_and_are_there_the_next_time(page: Page, runs: Path):
    for old in runs.glob("bare/compare-*"):
        old.unlink()
    page.goto("/compare?run=bare&other=signed")
    heading(page, "Compare")
    expect(page.locator("table.estimates").last).to_contain_text("abstopk")
    page.get_by_role("button", name="Match the features").click()
    metric = page.get_by_test_id("stMetric").filter(has_text="one to one")
    expect(metric).to_be_visible()
    comparison = kept(Run(runs / "bare"), Run(runs / "signed"))
    assert comparison is not None
    expect(metric).to_contain_text(f"{comparison.cosine.summary.one_to_one['mean']:.3f}")
    page.reload()
    expect(page.get_by_test_id("stMetric").filter(has_text="one to one")).to_be_visible()
    expect(page.get_by_role("button", name="Match the features")).to_have_count(0)
    next(runs.glob("bare/compare-*")).unlink()


def test_a_row_puts_two_features_side_by_side(page: Page, runs: Path, matched: Comparison):
    page.goto("/compare?run=toy&other=signed")
    heading(page, "Compare")
    latents = matched.cosine.latents["first"]
    lost = [latent for latent, kind in enumerate(latents.kind) if kind == "lost"]
    page.get_by_test_id("stButtonGroup").get_by_text(f"lost {len(lost)}").click()
    expect(page.locator("h2").filter(has_text="Lost")).to_be_visible()
    first = max(lost, key=lambda latent: (latents.similarity[latent], -latent))
    click_cell(page, row=1, x=30)
    second = latents.nearest[first]
    expect(page).to_have_url(re.compile(f"kind=lost&a={first}&b={second}$"))
    expect(page.get_by_role("heading", name=re.compile("^Side by side"))).to_be_in_viewport()
    for name, latent in (("toy", first), ("signed", second)):
        fired = FeatureStore(runs / name / "features").row(latent)["fired"]
        expect(page.locator("h2").filter(has_text=f"Feature {latent}").first).to_be_visible()
        expect(page.get_by_test_id("stMetric").filter(has_text=f"{fired:,}").first).to_be_visible()
    page.get_by_role("link", name="Open").last.click()
    heading(page, f"Feature {second} ")
    expect(page).to_have_url(re.compile("run=signed"))


@pytest.mark.parametrize("by_key", [False, True])
def test_a_row_puts_two_features_side_by_side_where_another_run_stands_for_one_that_is_gone(
    page: Page, runs: Path, matched: Comparison, by_key: bool
):
    first, second = Run(runs / "toy"), Run(runs / HOSTILE_RUN)
    keep(first, second, match_runs(first, second))  # which of the two stands in is the app's choice
    page.goto("/compare?run=toy&other=nosuch&a=3&b=1000&kind=lost")
    expect(page.get_by_role("alert")).to_contain_text("There is no run")
    settled(page)
    click_cell(page, row=1, x=200 if by_key else 30)
    if by_key:
        for _ in range(4):  # to the first column
            page.keyboard.press("ArrowLeft")
            page.wait_for_timeout(200)  # the focus follows a moment later
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("^Side by side"))).to_be_visible()
    expect(page).to_have_url(re.compile(r"other=(?!nosuch).*[&?]a=\d+&b=\d+"))


def test_the_other_run_and_the_measure_are_chosen(page: Page, matched: Comparison):
    page.goto("/compare?run=toy&other=signed")
    heading(page, "Compare")
    page.get_by_text("activation correlation").first.click()
    count = matched.activation.summary.mutual["count"]
    expect(page.get_by_test_id("stMetric").filter(has_text="mutually nearest")).to_contain_text(str(count))
    page.get_by_label("Compared with").click()
    page.get_by_role("option", name="bare").click()
    expect(page).to_have_url(re.compile("other=bare"))
    expect(page.get_by_role("alert")).to_contain_text("hold the same SAE")


def test_names_and_tokens_of_a_hostile_run_are_text(page: Page, runs: Path):
    first, second = Run(runs / "signed"), Run(runs / HOSTILE_RUN)
    keep(first, second, match_runs(first, second))
    page.goto(f"/compare?run=signed&other={quote(HOSTILE_RUN)}&a=1&b=2")
    heading(page, "Compare")
    expect(page.locator("h2").filter(has_text="Feature 2").first).to_be_visible()
    page.wait_for_timeout(1500)  # for what would load late
    assert page.evaluate("window.hacked") is None
    for element in ("b", "i", "strong", "img", "script", "code", ".katex"):
        inside = page.locator(f".examples {element}, .sides {element}, header {element}, .chip {element}")
        assert inside.count() == 0, element
    assert HOSTILE_RUN in page.get_by_test_id("stMain").inner_text()
