"""Contrast of text (WCAG 2.2, 1.4.3): at least 4.5 to 1 on every page in both colour schemes. And the titles of the tabs."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import heading

LEAST = 4.5
PAGES = {
    "/?run=toy": "Runs",
    "/features?run=toy": "Features",
    "/feature?run=toy&feature=7": "Feature 7",
    "/text?run=toy": "Your text",
    "/steering?run=toy": "Steering",
    "/dead?run=toy": "Dead latents",
    "/compare?run=toy": "Compare",
    "/activations?run=toy": "Activations",
}
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_every_text_stands_out_from_its_background(page: Page, path: str, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(path)
    heading(page, PAGES[path])
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    low = page.evaluate(LOW, LEAST)
    for _ in range(40):  # what has just been drawn fades in, slowly on a busy machine
        if not low:
            break
        page.wait_for_timeout(500)
        low = page.evaluate(LOW, LEAST)
    assert not low, "\n".join(low)


@pytest.mark.parametrize("path", PAGES)
def test_a_tab_is_named_after_its_page_and_run(page: Page, path: str):
    page.goto(path)
    heading(page, PAGES[path])
    expect(page).to_have_title(f"{PAGES[path]} · toy · SAE workbench")


def test_two_quick_presses_of_next_go_two_features_on(page: Page):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    expect(page.locator("table.partners")).to_be_visible()
    page.get_by_role("button", name="Next").evaluate(
        "button => { button.click(); setTimeout(() => button.click(), 60); }"
    )
    heading(page, "Feature 9 ")
    expect(page).to_have_url(re.compile("feature=9"))
