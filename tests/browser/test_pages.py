"""The pages in a real browser: they render, link, filter, stay offline, and run nothing a token says."""

import re
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from sae.features.feature import FeatureStore
from tests.app.worlds import HOSTILE, HOSTILE_RUN
from tests.browser.pages import click_cell, heading

OPEN = 86  # pixels from the left edge of the table of features to the buttons that open one


def test_runs_is_the_first_page_and_shows_curves_and_evaluation(page: Page):
    page.goto("/?run=toy")
    heading(page, "Runs")
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.locator("table.estimates")).to_contain_text("CE recovered")
    page.get_by_role("link", name="Features").last.click()
    heading(page, "Features")
    expect(page).to_have_url(re.compile(r"/features\?run=toy$"))


def test_the_first_page_has_an_address_of_its_own_too(page: Page):
    page.goto("/runs?run=bare")
    expect(page.locator("header h2").first).to_have_text("bare ")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_clicking_a_run_shows_it(page: Page):
    page.goto("/?run=toy")
    heading(page, "Runs")
    click_cell(page, row=2, x=16)
    expect(page).to_have_url(re.compile("run=bare"))
    expect(page.locator("header h2").first).to_have_text("bare ")


def test_clicking_a_feature_opens_its_page_and_back_returns(page: Page, runs: Path):
    page.goto("/features?run=toy")
    heading(page, "Features")
    click_cell(page, row=3, x=OPEN)
    heading(page, "Feature 2 ")
    expect(page).to_have_url(re.compile(r"/feature\?run=toy&feature=2$"))
    firings = FeatureStore(runs / "toy" / "features").row(2)["fired"]
    expect(page.get_by_test_id("stMetric").filter(has_text="firings")).to_contain_text(f"{firings:,}")
    page.go_back()
    heading(page, "Features")


def test_a_sorted_table_opens_the_feature_one_sees(page: Page, runs: Path):
    page.goto("/features?run=toy")
    heading(page, "Features")
    click_cell(page, row=0, x=130)  # by density, rising
    click_cell(page, row=1, x=OPEN)
    density = FeatureStore(runs / "toy" / "features").table["density"].to_pylist()
    heading(page, f"Feature {density.index(min(density))} ")


def test_typing_filters_the_table_and_its_rows_open_the_right_features(page: Page, runs: Path):
    texts = FeatureStore(runs / "toy" / "features").texts.to_pylist()
    words = {word for text in texts for word in text.replace("\n", " ").split()}
    word = next(word for word in sorted(words) if word not in texts[0])
    found = [latent for latent, text in enumerate(texts) if word in text]
    page.goto("/features?run=toy")
    page.get_by_label("Find", exact=True).fill(word)
    expect(page.get_by_text(f"{len(found)} of 32 features")).to_be_visible()
    click_cell(page, row=1, x=OPEN)
    heading(page, f"Feature {found[0]} ")


def test_filters_are_in_the_address_as_they_are_typed_and_back_undoes_them(page: Page):
    page.goto("/features?run=toy")
    heading(page, "Features")
    page.get_by_label("Find", exact=True).press_sequentially("th", delay=30)
    expect(page).to_have_url(re.compile(r"\?run=toy&find=th$"))
    page.get_by_label("Find", exact=True).press_sequentially("e", delay=30)
    expect(page).to_have_url(re.compile(r"\?run=toy&find=the$"))
    page.get_by_text("Map by density").click()
    expect(page).to_have_url(re.compile(r"\?run=toy&find=the&view=densities$"))
    said = page.get_by_text(re.compile(r"^\d+ of 32 features")).inner_text()
    page.get_by_test_id("stSidebar").get_by_role("link", name="Runs").click()
    heading(page, "Runs")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Features").click()
    heading(page, "Features")
    expect(page).to_have_url(re.compile(r"\?run=toy&find=the&view=densities$"))
    expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_label("Find", exact=True)).to_have_value("the")
    page.go_back()
    heading(page, "Runs")
    page.go_back()
    heading(page, "Features")
    page.go_back()
    expect(page).to_have_url(re.compile("find=the$"))
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    page.go_back()
    expect(page).to_have_url(re.compile("find=th$"))
    expect(page.get_by_label("Find", exact=True)).to_have_value("th")


def test_back_from_a_feature_keeps_the_filters(page: Page):
    page.goto("/features?run=toy&find=the")
    heading(page, "Features")
    shown = page.get_by_text(re.compile(r"^\d+ of 32 features")).inner_text()
    click_cell(page, row=1, x=OPEN)
    expect(page.locator("h1")).to_contain_text(re.compile(r"Feature \d"))
    expect(page).to_have_url(re.compile(r"/feature\?run=toy&feature="))
    page.go_back()
    heading(page, "Features")
    expect(page).to_have_url(re.compile(r"/features\?run=toy&find=the$"))
    expect(page.get_by_label("Find", exact=True)).to_have_value("the")
    expect(page.get_by_text(shown)).to_be_visible()


def test_a_deep_link_opens_its_feature_whole(page: Page):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    expect(page.locator(".examples .peak").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.locator("table.logits")).to_have_count(2)
    colour = page.locator(".examples .peak").first.evaluate(
        "element => getComputedStyle(element).backgroundColor"
    )
    assert colour not in ("", "rgba(0, 0, 0, 0)")


def test_a_neighbour_is_one_click_away(page: Page, runs: Path):
    nearest = FeatureStore(runs / "toy" / "features").row(7)["neighbours"][0]
    page.goto("/feature?run=toy&feature=7")
    page.locator(".neighbours a").first.click()
    heading(page, f"Feature {nearest} ")


def test_stepping_on_is_in_the_address_and_back_undoes_it(page: Page):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    page.get_by_role("button", name="Next").click()
    heading(page, "Feature 8 ")
    expect(page).to_have_url(re.compile("feature=8"))
    page.keyboard.press("ArrowRight")
    heading(page, "Feature 9 ")
    expect(page).to_have_url(re.compile("feature=9"))  # the heading may stand before the address is noted
    page.go_back()
    heading(page, "Feature 8 ")


def test_stepping_on_before_the_page_is_whole_adds_no_feature_to_the_history(page: Page):
    """Hold back what the server sends after the heading, as a slow connection does, and press on meanwhile."""
    sockets: list[WebSocketRoute] = []
    held: list[str | bytes] = []
    holding = False

    def connect(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sockets.append(socket)

        def receive(message: str | bytes) -> None:
            nonlocal holding
            if held or holding:
                held.append(message)
            else:
                socket.send(message)
            holding = holding or (isinstance(message, bytes) and b"<h1>Feature 8 " in message)

        socket.on_message(server.send)
        server.on_message(receive)

    page.route_web_socket(re.compile("_stcore/stream"), connect)
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    expect(page.locator("table.partners")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    heading(page, "Feature 8 ")
    page.wait_for_timeout(1500)  # the server finishes the page
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    while held:
        sockets[-1].send(held.pop(0))
    holding = False
    heading(page, "Feature 9 ")
    expect(page).to_have_url(re.compile("feature=9"))
    page.go_back()
    heading(page, "Feature 8 ")


def test_hovering_a_token_tells_its_value(page: Page):
    page.goto("/feature?run=toy&feature=7")
    expect(page.locator(".js-plotly-plot")).to_be_visible()  # nothing moves any more
    peak = page.locator(".examples .peak").first
    peak.hover()
    expect(peak).to_have_css("outline-style", "solid")
    shown = peak.evaluate("element => getComputedStyle(element, '::after').content")
    assert shown.strip('"') == peak.get_attribute("data-tip")


@pytest.mark.parametrize("path", ["", "features", "feature", "text", "compare"])
def test_no_text_of_a_run_is_ever_markup(page: Page, path: str):
    page.goto(f"/{path}?{urlencode({'run': HOSTILE_RUN}, quote_via=quote)}")
    page.locator("h1").wait_for()
    if path == "feature":
        expect(page.locator(".examples")).not_to_have_count(0)
        assert HOSTILE["a"] in page.get_by_test_id("stMain").inner_text()
    page.wait_for_timeout(1500)  # for what would load late
    assert HOSTILE_RUN in page.locator("body").inner_text() + " ".join(
        page.locator("input").all_inner_texts()
    )
    assert page.evaluate("window.hacked") is None
    for element in ("b", "i", "strong", "img", "script", "code", ".katex"):
        inside = page.locator(
            f".examples {element}, .chip {element}, header {element}, [role=alert] {element}"
        )
        assert inside.count() == 0, element


@pytest.mark.parametrize("path", ["", "features", "feature", "text", "compare"])
def test_a_run_that_is_not_there_is_said_in_the_page_as_it_was_asked_for(page: Page, path: str):
    page.goto(f"/{path}?{urlencode({'run': '**x** :red[y] $z$ <b>'})}")
    expect(page.get_by_role("alert")).to_contain_text("there is no run '**x** :red[y] $z$ <b>' in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page: Page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    text, ground = (
        page.locator(where).first.evaluate(f"element => getComputedStyle(element).{what}")
        for where, what in ((".examples .strip", "color"), (".stApp", "backgroundColor"))
    )
    lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (text, ground)]
    assert abs(lightness[0] - lightness[1]) > 150
    assert (lightness[1] > 128) == (scheme == "light")


@pytest.mark.parametrize("width", [800, 1024])
def test_in_a_narrow_window_labels_stay_whole_and_nothing_runs_off_the_page(page: Page, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("/steering?run=toy")
    heading(page, "Steering")
    for label in page.locator(".stNumberInput label").all():
        box = label.bounding_box()
        assert box is not None and box["height"] < 40, "one line"
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    expect(page.locator("table.partners")).to_be_visible()
    beyond = "main => [main, ...main.querySelectorAll('table')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.get_by_test_id("stMain").evaluate(beyond) == 0
