"""The Runs page in a real browser: curves grow during a training, a point chooses its run, several are side by side."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.pages import click_cell, heading

POINTS = ".js-plotly-plot:has(.legend) .point"


def test_curves_grow_while_a_training_goes_on(page: Page, world: Path, runs: Path):
    command = [
        sys.executable, "-m", "sae.cli.main", "train", "topk", "--store", str(world / "store"),
        "--out", str(runs / "going"), "--arch.d-sae", "32", "--arch.k", "4", "--train.steps", "1000000",
        "--train.batch", "64", "--train.log-every", "200", "--train.checkpoint-minutes", "1000",
    ]  # fmt: skip
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        log = runs / "going" / "log.jsonl"
        for _ in range(300):
            if log.exists() and log.stat().st_size:
                break
            page.wait_for_timeout(100)
        page.goto("/?run=going")
        heading(page, "Runs")
        bar = page.get_by_test_id("stProgress")
        expect(bar).to_contain_text(re.compile(r"step [\d,]+ of 1,000,000 · [\d,]+ tokens/s · .* left"))
        before = bar.inner_text()
        line = page.locator(".js-plotly-plot .scatterlayer .js-line").first
        drawn = line.get_attribute("d") or ""
        expect(bar).not_to_have_text(before)
        expect(line).not_to_have_attribute("d", drawn)
    finally:
        training.terminate()
        ended = training.wait(60)
        expect(page.locator("header h2").first).to_have_text("going ")
        shutil.rmtree(runs / "going")
    assert ended == 143


def test_a_point_of_the_plot_chooses_its_run(page: Page):
    page.goto("/?run=signed")
    heading(page, "Runs")
    page.get_by_text("CE recovered, zero").first.click()
    # as a list: for a moment the plot before stands beside the new one
    expect(page.locator(".js-plotly-plot:has(.legend) .ytitle")).to_have_text([re.compile("CE recovered")])
    point = page.locator(POINTS).last
    point.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the plot moves while the page is laid out
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page).not_to_have_url(re.compile("run=signed"))
    expect(page.locator("header h2").first).not_to_have_text("signed ")


def test_rows_are_ticked_to_see_them_side_by_side(page: Page):
    page.goto("/?run=toy")
    heading(page, "Runs")
    page.get_by_text("Several side by side").click()
    expect(page.get_by_text("No runs chosen")).to_be_visible()
    click_cell(page, row=1, x=16)
    expect(page).to_have_url(re.compile("with="))
    click_cell(page, row=3, x=16)
    expect(page.locator("h2").filter(has_text="Settings that differ")).to_be_visible()
    expect(page.locator(".sides").first).to_contain_text("architecture")
    expect(page.get_by_text("2 runs")).to_be_visible()
    page.reload()
    expect(page.get_by_text("2 runs")).to_be_visible()
