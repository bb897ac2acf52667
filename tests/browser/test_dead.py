"""The Dead latents page in a real browser: bars filter, rows open, a report is made from the page and stopped."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sae.report import dead as dead_report
from tests.app import wounded
from tests.app.wounded import LOW, TINY
from tests.browser.conftest import PATIENCE, serving
from tests.browser.test_pages import click_cell, heading

PORT = 18602


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that this file's server shows."""
    return wounded.make(tmp_path_factory.mktemp("dead") / "runs", world / "runs" / "toy")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Return the address where `sae app` serves these runs."""
    with serving(folder, PORT) as address:
        yield address


def rows_said(page: Page, count: int) -> None:
    """Wait until the page says that the table has so many rows."""
    expect(page.get_by_text(re.compile(rf"^{count} dead"))).to_be_visible()


def click_row(page: Page, row: int, x: int) -> None:
    """Click into the table, which begins below the first screen."""
    page.wait_for_timeout(500)  # filtering makes a new one
    page.get_by_test_id("stDataFrame").first.scroll_into_view_if_needed()
    click_cell(page, row, x)


def test_the_page_tells_how_many_are_dead_and_why(page: Page, folder: Path):
    found = wounded.report(folder).record
    page.goto("/dead?run=wounded")
    heading(page, "Dead latents")
    dead = page.get_by_test_id("stMetric").filter(has_text="dead")
    expect(dead.first).to_contain_text(str(found.kinds["dead"]))
    for name in ("Silent on", "Why", "What would make them fire", "Dense latents"):
        expect(page.get_by_role("heading", name=re.compile(f"^{name}"))).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(2)
    expect(page.locator(".js-plotly-plot .bars .point")).to_have_count(len(found.dead_by.cause))
    html = [dead_report.what_if(curve, found.kinds["dead"]) for curve in dead_report.changes(found.changes)]
    bars = len(found.silent) + len(found.dead_by.training) + sum(table.count("<span>") for table in html)
    expect(page.locator(".logits td.bar")).to_have_count(bars)


def test_a_click_on_a_bar_lists_that_cause_alone_and_a_row_tells_its_evidence(page: Page, folder: Path):
    report = wounded.report(folder)
    page.goto("/dead?run=wounded")
    heading(page, "Dead latents")
    rows_said(page, report.record.kinds["dead"])
    counts = report.record.dead_by.cause
    place = sorted(counts, key=lambda cause: -counts[cause]).index("bias too low")
    bars = page.get_by_test_id("stPlotlyChart").nth(1).locator(".point path")
    expect(bars).to_have_count(len(counts))
    box = bars.nth(place).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    rows_said(page, counts["bias too low"])
    evidence = page.locator(".st-key-evidence")
    expect(evidence.locator("h2")).to_contain_text(f"{LOW[0]}: bias too low")
    click_row(page, row=2, x=16)
    expect(evidence.locator("h2")).to_contain_text(f"{LOW[1]}: bias too low")
    row = report.row(LOW[1])
    assert row is not None
    expect(evidence.locator("header p")).to_have_text(row["evidence"])


def test_a_number_opens_the_feature_s_page_which_says_why(page: Page, folder: Path):
    page.goto("/dead?run=wounded")
    heading(page, "Dead latents")
    page.get_by_test_id("stButtonGroup").get_by_text("encoder collapsed").click()
    rows_said(page, wounded.report(folder).record.dead_by.cause["encoder collapsed"])
    expect(page.locator(".st-key-evidence h2")).to_contain_text(f"{TINY}: encoder collapsed")
    click_row(page, row=1, x=92)
    heading(page, f"Feature {TINY}")
    expect(page.get_by_text("encoder collapsed: Encoder norm")).to_be_visible()


def test_a_report_is_made_on_the_spot(page: Page, folder: Path):
    page.goto("/dead?run=new")
    heading(page, "Dead latents")
    expect(page.get_by_text(f"sae dead {folder / 'new'}")).to_be_visible()
    page.get_by_role("button", name="Run it now").click()
    why = page.get_by_role("heading", name=re.compile("^Why"))
    expect(why).to_be_visible(timeout=8 * PATIENCE)  # the language model is loaded first
    assert (folder / "new" / "dead" / "dead.json").exists()
    expect(page.get_by_test_id("stMetric").first).to_contain_text(
        str(wounded.report(folder).record.kinds["dead"])
    )
