"""Every page for everybody: contrast of text (WCAG 2.2, 1.4.3), axe-core's rules, narrow screens, the keyboard alone.

Each page is visited once: in light and dark, 1400, 900 and 390 pixels wide."""

import re

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Locator, Page, WebSocketRoute, expect

from tests.browser.pages import LOADING, heading, settled, steppable

LEAST = 4.5
WIDTHS = (1400, 900, 390)
PAGES = {
    "/?run=toy": "Runs",
    "/features?run=toy": "Features",
    "/feature?run=toy&feature=7": "Feature 7",
    "/text?run=toy": "Your text",
    "/find?run=toy": "Find",
    "/steering?run=toy": "Steering",
    "/dead?run=toy": "Dead latents",
    "/evidence?run=trusted": "Evidence",
    "/compare?run=toy&other=signed": "Compare",
    "/activations?run=toy": "Activations",
}
# axe-core's findings, but for those in widgets of Streamlit that the app cannot change, all of them minor:
# the zone of an upload is said to be presentation and has a label
AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations.flatMap(({ id, impact, nodes }) => nodes
    .filter(node => !document.querySelector(node.target[0])?.matches("[data-testid=stFileUploaderDropzone]"))
    .map(node => `${impact} ${id}: ${node.html.slice(0, 120)}`));
}"""
# Texts of the page that end beyond the window, or beyond a part that hides what is wider, unless one can scroll to them
CUT = """() => {
  const main = document.querySelector("[data-testid=stMain]"), cut = new Set();
  if (main.scrollWidth > main.clientWidth + 1) cut.add(`the page is ${main.scrollWidth} pixels wide`);
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), range = document.createRange();
    if (!text || walker.currentNode.parentElement.closest("canvas, svg, style, script, [data-testid=stIconMaterial]")) continue;
    range.selectNodeContents(walker.currentNode);
    const { right, width } = range.getBoundingClientRect();
    if (width < 2) continue;
    let end = window.innerWidth;
    for (let part = walker.currentNode.parentElement; part !== main; part = part.parentElement) {
      const flow = getComputedStyle(part).overflowX, box = part.getBoundingClientRect();
      if (box.width < 2 || flow === "auto" || flow === "scroll") { end = Infinity; break; }
      if (flow === "hidden" || flow === "clip") end = Math.min(end, box.right);
    }
    if (right > end + 1) cut.add(`${text.slice(0, 60)} ends at ${Math.round(right)}, shown up to ${Math.round(end)}`);
  }
  return [...cut];
}"""
# Every visible text with its colour over the backgrounds behind it. WCAG exempts what is disabled. Charts and tables on a canvas
# are not texts of the document.
LOW = """least => {
  const rgba = text => {
    const canvas = rgba.canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const luminance = color => {
    const [r, g, b] = color.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ancestors = element => element ? [...ancestors(element.parentElement), element] : [];
  const low = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || element.closest(":disabled, [aria-disabled=true], script, style")) continue;
    if (element.closest("[data-testid=stIconMaterial]")) continue;
    if (box.right <= 0) continue;  // in the sidebar, which lies beside the window while it is put away
    const style = getComputedStyle(element);
    const chain = ancestors(element);
    const behind = chain.filter(one => {  // a slider's value stands outside of the thumb that holds it, and is larger
      const its = one.getBoundingClientRect();
      return its.width >= box.width && its.height >= box.height;
    });
    const ground = behind.map(one => rgba(getComputedStyle(one).backgroundColor))
      .reduce((below, color) => over(color, below), [255, 255, 255, 1]);
    const color = rgba(element instanceof SVGElement ? style.fill : style.color);
    color[3] *= chain.reduce((product, one) => product * Number(getComputedStyle(one).opacity), 1);
    if (!color[3]) continue;
    const [light, dark] = [luminance(over(color, ground)), luminance(ground)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < least) low.add(`${ratio.toFixed(2)} ${element.tagName}.${element.getAttribute("class")}: ${text.slice(0, 40)}`);
  }
  return [...low];
}"""


def nothing(page: Page, fault: str, argument: object = None) -> None:
    """Wait until the page has none of these faults: what has just been drawn fades in, slowly on a busy machine."""
    found = page.evaluate(fault, argument)
    for _ in range(40):
        if not found:
            return
        page.wait_for_timeout(500)
        found = page.evaluate(fault, argument)
    raise AssertionError("\n".join([f"{page.url} at {page.viewport_size}", *found]))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_named_and_readable_in_both_schemes_and_at_every_width(page: Page, path: str, trusted: str):
    page.goto(path)
    heading(page, PAGES[path])
    expect(page).to_have_title(re.compile(rf"^{PAGES[path]} · (toy|{trusted}) · SAE workbench$"))
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    page.evaluate(AXE_SCRIPT)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        nothing(page, CUT)
        nothing(page, AXE)
    page.emulate_media(color_scheme="dark")
    expect(page.locator(".stApp")).to_have_css("color-scheme", "dark")
    nothing(page, AXE)
    nothing(page, LOW, LEAST)
    page.emulate_media(color_scheme="light")
    expect(page.locator(".stApp")).to_have_css("color-scheme", "light")
    nothing(page, LOW, LEAST)


def test_quick_presses_of_an_arrow_key_go_as_many_features_on(page: Page):
    page.goto("/feature?run=toy&feature=5")
    heading(page, "Feature 5 ")
    steppable(page)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    heading(page, "Feature 8 ")
    settled(page)
    page.wait_for_timeout(1000)
    heading(page, "Feature 8 ")
    page.get_by_role("spinbutton").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(1000)
    heading(page, "Feature 8 ")


def test_presses_that_wait_are_dropped_with_their_page(page: Page):
    connections: list[WebSocketRoute] = []
    waiting: list[str | bytes] | None = (
        None  # what the server has answered while that is held back; None: it is not
    )

    def connect(connection: WebSocketRoute) -> None:
        connections.append(connection)
        connection.connect_to_server().on_message(answered)

    def answered(message: str | bytes) -> None:
        if waiting is None:
            connections[-1].send(message)
        else:
            waiting.append(message)

    page.route_web_socket(re.compile("_stcore/stream"), connect)
    page.goto("/feature?run=toy&feature=5")
    heading(page, "Feature 5 ")
    steppable(page)
    waiting = []  # an answer to the first press would bring the address of its page back
    page.evaluate(
        """() => {
          const buttons = [...document.querySelectorAll('[class*="st-key-step-"] button')];
          const named = buttons.find((button) => button.textContent.includes("Next"));
          named.click();
          named.click();
          window.history.pushState({}, "", "features?run=toy");  // as another page, before the first press is answered
        }"""
    )
    page.wait_for_function("window.saeHeld === null")
    held_back, waiting = waiting, None
    for message in held_back:
        connections[-1].send(message)
    heading(page, "Feature 6 ")
    page.wait_for_timeout(1500)
    heading(page, "Feature 6 ")


def test_two_quick_presses_of_next_go_two_features_on(page: Page):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    steppable(page)
    page.get_by_role("button", name="Next").evaluate(
        "button => { button.click(); setTimeout(() => button.click(), 60); }"
    )
    heading(page, "Feature 9 ")
    expect(page).to_have_url(re.compile("feature=9"))


def test_presses_at_once_and_back_again_count_each(page: Page):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    steppable(page)
    page.get_by_role("button", name="Next").evaluate(
        "button => { for (let press = 0; press < 4; press++) button.click(); }"
    )
    heading(page, "Feature 11 ")
    page.get_by_role("button", name="Previous").evaluate("button => { button.click(); button.click(); }")
    heading(page, "Feature 9 ")
    page.get_by_role("button", name="Next").click()
    heading(page, "Feature 10 ")


def test_the_keyboard_alone_leads_from_the_table_to_a_feature_and_its_steered_text(page: Page):
    page.goto("/features?run=toy")
    heading(page, "Features")
    table = page.get_by_test_id("data-grid-canvas").first
    expect(table).to_be_visible()
    page.wait_for_timeout(1000)  # the grid takes keys a moment after it is drawn
    press_until(page, "Tab", table)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(table.locator("td[aria-selected=true]")).to_have_text(" 2")
    page.keyboard.press("Enter")
    heading(page, "Feature 2 ")
    expect(page).to_have_url(re.compile(r"/feature\?run=toy&feature=2$"))
    press_until(page, "Tab", page.get_by_role("link", name="Steer", exact=True))
    page.keyboard.press("Enter")
    heading(page, "Steering")
    press_until(page, "Tab", page.get_by_role("button", name="Steer", exact=True))
    page.keyboard.press("Enter")
    expect(page.locator(".meanings")).to_be_visible(timeout=LOADING)


def press_until(page: Page, key: str, goal: Locator) -> None:
    """Press a key until the focus is where it should get to, as somebody without a mouse would."""
    expect(goal).to_be_visible()
    for _ in range(80):
        if goal.evaluate("element => element.contains(document.activeElement)"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"the key {key} does not reach {goal}")
