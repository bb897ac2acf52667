"""The Features page with real clicks: brushing, the map, searching by text and label, comparing rows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sae.features.feature import FeatureStore
from tests.app.worlds import HOSTILE_RUN
from tests.browser.test_pages import OPEN, click_cell, heading

MARK = 16  # pixels from a table's left edge to the boxes that mark rows


@pytest.fixture
def features(runs: Path) -> FeatureStore:
    return FeatureStore(runs / "toy" / "features")


def drag(page: Page, plot: int, start: float, stop: float) -> None:
    """Brush a plot from one share of its width to another."""
    area = page.locator(".js-plotly-plot .nsewdrag").nth(plot)
    area.wait_for()
    page.wait_for_timeout(700)
    box = area.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + stop * box["width"], y + 5, steps=8)
    page.mouse.up()


def test_brushing_a_histogram_keeps_the_features_in_it(page: Page, features: FeatureStore):
    page.goto("/features?run=toy")
    heading(page, "Features")
    drag(page, 2, 0.5, 1.02)  # mean values, the upper half
    kept = page.get_by_text(re.compile(r"^Selected: mean"))
    expect(kept).to_be_visible()
    low, high = map(float, re.findall(r"[\d.]+", kept.inner_text().replace(",", ""))[:2])
    mean = features.table["mean"].to_numpy()
    said = page.get_by_text(re.compile(r"^\d+ of 32 features"))
    least, most = (
        int(np.sum((mean >= low + by) & (mean <= high - by))) for by in (0.05, -0.05)
    )  # as it is rounded
    assert least <= int(said.inner_text().split()[0]) <= most < 32
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("32 of 32 features")).to_be_visible()
    expect(kept).to_have_count(0)


@pytest.mark.parametrize(("width", "height"), [(900, 800), (390, 844)])
def test_the_search_is_on_the_first_screen_of_a_narrow_window(page: Page, width: int, height: int):
    page.set_viewport_size({"width": width, "height": height})
    page.goto("/features?run=toy")
    heading(page, "Features")
    plots = page.locator(".js-plotly-plot")
    expect(plots).to_have_count(3)
    first, second = plots.nth(0).bounding_box(), plots.nth(1).bounding_box()
    assert first and second and first["y"] == second["y"] and second["x"] >= first["x"] + first["width"]
    expect(page.get_by_label("Find", exact=True)).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_lasso_on_the_map_keeps_those_inside_and_a_click_opens_one(page: Page, features: FeatureStore):
    page.goto("/features?run=toy")
    heading(page, "Features")
    page.get_by_text("Map by cluster").click()
    point = page.locator(".js-plotly-plot .scatterlayer .point")
    expect(point).to_have_count(len(features))
    page.wait_for_timeout(700)
    page.locator(".js-plotly-plot").hover()
    page.get_by_role("button", name="Lasso Select").click()
    area = page.locator(".js-plotly-plot .nsewdrag").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 2, area["y"] + 2)
    page.mouse.down()
    for x, y in ((0.5, 0.01), (0.5, 0.99), (0.01, 0.99), (0.01, 0.02)):
        page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"], steps=6)
    page.mouse.up()
    kept = page.get_by_text(re.compile("marked on the map"))
    expect(kept).to_be_visible()
    n = int(re.findall(r"\d+", kept.inner_text())[0])
    assert 0 < n < 32
    expect(page.get_by_text(re.compile(rf"^{n} of 32 features"))).to_be_visible()
    page.goto("/features?run=toy")
    page.get_by_text("Map by density").click()
    expect(point).to_have_count(len(features))
    page.wait_for_timeout(700)
    box = point.nth(5).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y, steps=3)
    told = page.locator(".hoverlayer .hovertext").text_content() or ""
    page.mouse.click(x, y)
    heading(page, f"Feature {told.split(':')[0]} ")
    page.go_back()
    heading(page, "Features")


def test_rows_marked_are_compared_and_in_the_address(page: Page, features: FeatureStore):
    page.goto("/features?run=toy")
    heading(page, "Features")
    click_cell(page, row=2, x=MARK)
    expect(page).to_have_url(re.compile("compare=1$"))
    page.wait_for_timeout(700)
    click_cell(page, row=4, x=MARK)
    expect(page).to_have_url(re.compile(r"compare=1(%2C|,)3$"))
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator(".card").nth(1)).to_contain_text(f"{features.row(3)['fired']:,}")
    expect(page.locator("table.pairs td.n").first).to_have_text(re.compile(r"^−?0\.\d{3}$"))
    page.reload()
    expect(page.locator(".card")).to_have_count(2)
    page.locator(".card a").first.click()
    heading(page, "Feature 1 ")


def test_a_label_given_on_a_feature_s_page_is_found_in_the_table(page: Page, runs: Path):
    hostile = '<img src=x onerror="window.hacked = 1"> **cats**'
    page.goto(f"/feature?run={HOSTILE_RUN.replace('&', '%26').replace(' ', '%20')}&feature=6")
    heading(page, "Feature 6 ")
    page.get_by_role("button", name="Label").click()
    page.get_by_role("textbox", name="Label").fill(hostile)
    page.get_by_role("textbox", name="Note").fill("<script>window.hacked = 1</script>")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".labelled .label")).to_have_text(hostile)
    expect(page.locator(".labelled .note")).to_have_text("<script>window.hacked = 1</script>")
    saved = json.loads((runs / HOSTILE_RUN / "labels.json").read_text())["saes"]
    assert next(iter(saved.values()))["6"]["label"] == hostile
    page.get_by_role("link", name="Features").last.click()
    heading(page, "Features")
    page.get_by_label("Find", exact=True).fill("onerror")
    expect(page.get_by_text(re.compile(r"^\d of 32 features"))).to_be_visible()
    page.get_by_label("Find", exact=True).fill("**CATS**")
    expect(page.get_by_text(re.compile("^1 of 32 features"))).to_be_visible()
    click_cell(page, row=1, x=OPEN)
    heading(page, "Feature 6 ")
    page.get_by_role("button", name="Label").click()
    page.get_by_role("textbox", name="Label").fill("")
    page.get_by_role("textbox", name="Note").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".labelled")).to_have_count(0)
    assert page.evaluate("window.hacked") is None
