"""The Steering page in a real browser: from a feature to both texts, a dose-response and a link, with real clicks."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from sae.features.feature import FeatureStore
from tests.app.worlds import HOSTILE_RUN
from tests.browser.pages import LOADING
from tests.browser.test_pages import heading


def steer(page: Page) -> None:
    """Press Steer and wait for both texts."""
    page.get_by_role("button", name="Steer", exact=True).click()
    expect(page.get_by_role("heading", name="Unsteered and steered")).to_be_visible(timeout=LOADING)
    expect(page.locator(".meanings")).to_be_visible(timeout=LOADING)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_from_a_feature_to_its_steered_text_and_on_to_the_dose_response(page: Page):
    page.goto("/feature?run=toy&feature=7")
    page.get_by_role("link", name="Steer", exact=True).click()
    heading(page, "Steering")
    expect(page.get_by_role("link", name="Feature 7", exact=True)).to_be_visible()
    page.get_by_label("Prompt").fill("the cat")
    page.get_by_label("New tokens").fill("12")
    page.get_by_label("New tokens").press("Enter")
    expect(page).to_have_url(re.compile(r"prompt=the(\+|%20)cat&tokens=12"))
    steer(page)
    expect(page.locator("p.strip")).to_have_count(2)
    expect(page.locator("p.strip .t[data-tip]").first).to_be_visible()
    expect(page.locator("table.estimates")).to_contain_text("perplexity")
    page.get_by_role("button", name="Dose-response").click()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.locator(".js-plotly-plot .legend")).to_contain_text("random directions")
    expect(page.locator("p.strip")).to_have_count(2)


def test_a_change_made_before_the_browser_heard_of_the_last_one_keeps_both(page: Page):
    held: list[str | bytes] | None = None
    send: Callable[[str | bytes], None]

    def pass_on(socket: WebSocketRoute) -> None:
        nonlocal send
        server = socket.connect_to_server()
        socket.on_message(server.send)
        server.on_message(lambda message: send(message) if held is None else held.append(message))
        send = socket.send

    page.route_web_socket(re.compile("_stcore/stream"), pass_on)
    page.goto("/steering?run=toy&steer=2:add:1")
    heading(page, "Steering")
    expect(
        page.get_by_label("New tokens")
    ).to_be_visible()  # what is still to be drawn would be held back too
    held = []
    page.get_by_label("Prompt").fill("the cat")
    page.get_by_label("Prompt").press("Control+Enter")
    page.wait_for_timeout(1500)  # long enough for the server to be through with the first
    page.get_by_label("New tokens").fill("12")
    page.get_by_label("New tokens").press("Enter")
    for message in held:
        send(message)
    held = None
    expect(page).to_have_url(re.compile(r"prompt=the(\+|%20)cat&tokens=12"))


def test_going_away_by_the_sidebar_and_back_keeps_the_edits_and_their_address(page: Page):
    page.goto("/steering?run=toy")
    heading(page, "Steering")
    page.get_by_test_id("stButton").filter(has_text="·").nth(1).click()
    page.get_by_label("Prompt").fill("the cat & dog")
    page.get_by_label("Prompt").press("Control+Enter")
    edited = re.compile(r"\?run=toy&steer=\d+%3Aadd%3A1&prompt=the(\+|%20)cat(\+|%20)%26(\+|%20)dog$")
    expect(page).to_have_url(edited)
    address = page.url
    for other in ("Runs", "Feature"):
        page.get_by_test_id("stSidebar").get_by_role("link", name=other, exact=True).click()
        heading(page, other)
        page.get_by_test_id("stSidebar").get_by_role("link", name="Steering").click()
        heading(page, "Steering")
        expect(page.get_by_label("Prompt")).to_have_value("the cat & dog")
        expect(page).to_have_url(address.replace("%20", "+"))
    page.go_back()
    heading(page, "Feature")
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    page.get_by_role("link", name="Steer", exact=True).click()
    expect(page.get_by_role("link", name="Feature 7", exact=True)).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("I think that")


def test_a_link_reproduces_the_page_for_another_visitor(page: Page, browser: Browser):
    page.goto("/steering?run=toy&steer=2:add:1")
    heading(page, "Steering")
    page.get_by_role("button", name="strong", exact=True).click()
    expect(page).to_have_url(re.compile(r"steer=2%3Aadd%3A1\.5|steer=2:add:1\.5"))
    page.get_by_label("Add a feature").fill("5")
    page.get_by_label("Add a feature").press("Enter")
    expect(page.get_by_role("link", name="Feature 5", exact=True)).to_be_visible()
    page.get_by_role("button", name="Link").click()
    link = page.get_by_test_id("stCode").filter(has_text="http").inner_text()
    assert link.startswith("http")
    assert parse_qs(urlsplit(link.strip()).query)["steer"] == ["2:add:1.5,5:add:1"]
    steer(page)
    first = page.locator("p.strip").all_inner_texts()
    other = browser.new_context().new_page()
    other.goto(link.strip())
    heading(other, "Steering")
    expect(other.get_by_role("link", name="Feature 5", exact=True)).to_be_visible()
    expect(other.locator("p.strip")).to_have_count(0)
    steer(other)
    assert other.locator("p.strip").all_inner_texts() == first
    other.context.close()


def test_going_back_undoes_a_change(page: Page):
    page.goto("/steering?run=toy&steer=2:add:1")
    heading(page, "Steering")
    page.get_by_role("button", name="off", exact=True).click()
    expect(page).to_have_url(re.compile("ablate"))
    steer(page)
    page.go_back()
    expect(page.get_by_role("combobox", name="Mode")).to_have_value("add")


def test_hovering_a_token_tells_both_log_probabilities(page: Page):
    page.goto("/steering?run=toy&steer=2:add:1.5&tokens=10")
    heading(page, "Steering")
    steer(page)
    token = page.locator("p.strip .t[data-tip]").last
    token.hover()
    shown = token.evaluate("element => getComputedStyle(element, '::after').content")
    assert re.match(r'"log p .+ → .+ \(.+\), KL', shown)


def test_no_text_of_a_run_or_a_prompt_is_ever_markup(page: Page, runs: Path):
    query = {"run": HOSTILE_RUN, "steer": "2:add:1", "prompt": "tale <img src=x onerror='window.hacked = 1'>"}
    page.goto(f"/steering?{urlencode(query, quote_via=quote)}")
    heading(page, "Steering")
    steer(page)
    page.wait_for_timeout(1000)
    assert page.evaluate("window.hacked") is None
    for element in ("b", "i", "strong", "img", "script", "code", ".katex"):
        assert page.locator(f"p.strip {element}, .chip {element}, header {element}").count() == 0, element
    assert FeatureStore(runs / HOSTILE_RUN / "features").vocabulary


def test_a_bad_link_is_said_in_one_line(page: Page):
    page.goto(f"/steering?{urlencode({'run': 'toy', 'steer': '**x**:add:<b>'})}")
    expect(page.get_by_role("alert")).to_contain_text("steer = '**x**:add:<b>' must be feature:mode:strength")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_changed_tokens_can_be_read_in_both_schemes(page: Page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto("/steering?run=toy&steer=2:add:1.5&tokens=8")
    heading(page, "Steering")
    steer(page)
    text, ground = (
        page.locator(where).first.evaluate(f"element => getComputedStyle(element).{what}")
        for where, what in (("p.strip .t", "color"), (".stApp", "backgroundColor"))
    )
    lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (text, ground)]
    assert abs(lightness[0] - lightness[1]) > 150
