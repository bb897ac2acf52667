"""Helpers for tests in the browser: wait for a page's heading, click into its table."""

from playwright.sync_api import Page, expect

HEADER, ROW = 34, 33  # pixels of a table's first line and of each following one

LOADING = 300_000  # milliseconds, at most, until the model's libraries are imported on a busy machine


def heading(page: Page, text: str) -> None:
    """Wait until the page has this heading."""
    expect(page.locator("h1")).to_contain_text(text)


def settled(page: Page) -> None:
    """Wait until the page's script has run to its end: its address changes before what stands below does."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


def steppable(page: Page) -> None:
    """Wait until the buttons to the previous and next item are drawn and the page's script, which comes after them, sees presses."""
    expect(page.get_by_role("button", name="Next")).to_be_visible()
    page.wait_for_function("window.saeFollows", timeout=LOADING)
    settled(page)


def click_cell(page: Page, row: int, x: int) -> None:
    """Click into a table. Row 0 is its header."""
    table = page.get_by_test_id("stDataFrame").locator("canvas").first
    page.wait_for_timeout(1000)  # for one that is being drawn anew, as a filter takes hold
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # the grid takes clicks a moment after it is drawn
    box = table.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + x, box["y"] + HEADER / 2 + row * ROW)
