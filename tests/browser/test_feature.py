"""The Feature page with real clicks: a text to try, a measured effect, co-firing features, an HTML file."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from activations.language_model import load
from sae.features.effects import load_effect
from sae.features.feature import FeatureStore
from sae.reading.reader import read
from sae.report.numbers import number
from sae.runs.run import Run
from tests.browser.test_pages import heading

DRAWN = 3000  # milliseconds in which the server has drawn a page


@pytest.fixture
def features(runs: Path) -> FeatureStore:
    return FeatureStore(runs / "toy" / "features")


def test_own_text_is_coloured_by_what_the_sae_says(page: Page, runs: Path, world: Path):
    run, text = Run(runs / "toy"), "the <b>cat</b> sat & wind blew"
    packing = run.store.spec.packing
    reading = read(load(str(world / "model")), run.sae(), run.hook, text, packing=packing)

    def told(latent: int) -> list[str]:
        values = reading.values_of(latent)[reading.is_text].tolist()
        return [number(value) if value else "0" for value in values]

    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    page.get_by_text("Try your own text").click()
    page.get_by_placeholder("type or paste").fill(text)
    page.get_by_role("button", name="Try", exact=False).last.click()
    own = page.locator(".own")
    expect(own).to_have_text(text)
    tips = "all => all.map(one => one.dataset.tip || '0')"
    assert own.locator(".t").evaluate_all(tips) == told(7)
    assert set(told(7)) != {"0"}
    expect(page.get_by_text("your text", exact=True)).to_be_visible()
    expect(own.locator("b")).to_have_count(0)
    page.get_by_role("button", name="Next").click()
    heading(page, "Feature 8 ")
    expect(own).to_have_text(text)
    strongest = max(range(len(told(8))), key=lambda place: float(told(8)[place]))
    assert told(7)[strongest] != told(8)[strongest]
    expect(own.locator(".t").nth(strongest)).to_have_attribute("data-tip", told(8)[strongest])
    assert own.locator(".t").evaluate_all(tips) == told(8), "the text stays, read by the next feature"


def test_an_effect_is_measured_shown_and_kept(page: Page, features: FeatureStore):
    page.goto("/feature?run=toy&feature=8")
    heading(page, "Feature 8 ")
    page.get_by_role("button", name="Measure").click()
    expect(page.get_by_text("KL of the next token")).to_be_visible()
    effect = load_effect(features, 8)
    assert effect is not None and effect.positive is not None
    side = effect.positive
    facts = page.locator(".facts", has_text="KL of the next token")
    expect(facts).to_contain_text(f"{number(side.kl[0])} nats")
    expect(facts).to_contain_text(f"{side.loss_change[0]:+.3f}".replace("-", "−"))
    expect(facts).to_contain_text(f"{side.pearson:+.3f}".replace("-", "−"))
    page.reload()
    expect(page.get_by_text("KL of the next token")).to_be_visible()
    expect(page.get_by_role("button", name="Measure")).to_have_count(0)
    page.get_by_text("Token by token").click()
    expect(page.locator(".examples .where", has_text="KL").first).to_be_visible()


def test_a_feature_that_fires_together_is_one_click_away(page: Page, features: FeatureStore):
    latent = next(latent for latent in range(len(features)) if features.partners(latent))
    partner = features.partners(latent)[0]
    page.goto(f"/feature?run=toy&feature={latent}")
    row = page.locator("table.partners tr").nth(1)
    expect(row).to_contain_text(f"{partner.count:,}")
    expect(row).to_contain_text(number(partner.pmi))
    row.locator("a").click()
    heading(page, f"Feature {partner.latent} ")


def test_the_file_opens_offline_and_shows_the_feature(page: Page, tmp_path: Path):
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML").click()
    path = tmp_path / "feature.html"
    download.value.save_as(path)
    other = page.context.browser.new_context(offline=True).new_page()
    faults: list[str] = []
    other.on("console", lambda message: faults.append(message.text))
    other.goto(path.as_uri())
    expect(other.locator("h2")).to_contain_text("Feature 7")
    expect(other.locator("svg.histogram rect").first).to_be_visible()
    colour = other.locator(".peak").first.evaluate("element => getComputedStyle(element).backgroundColor")
    assert re.search(r"\d", colour) and colour != "rgba(0, 0, 0, 0)"
    assert faults == []
    other.context.close()


def test_a_browser_that_sees_only_the_second_drawing_of_a_page_keeps_its_run(page: Page):
    held: list[str | bytes] | None = []
    asked = 0
    send: Callable[[str | bytes], None]

    def pass_on(socket: WebSocketRoute) -> None:
        nonlocal send
        server, send = socket.connect_to_server(), socket.send

        def ask(message: str | bytes) -> None:
            nonlocal asked
            asked += 1
            server.send(message)
            if asked == 1:
                page.wait_for_timeout(DRAWN)
                server.send(message)

        socket.on_message(ask)
        server.on_message(lambda message: send(message) if held is None else held.append(message))

    page.route_web_socket(re.compile("_stcore/stream"), pass_on)
    page.goto("/feature?run=toy&feature=7")
    page.wait_for_timeout(3 * DRAWN)
    for message in held:
        send(message)
    held = None
    heading(page, "Feature 7 ")
    page.get_by_role("button", name="Next").click()
    heading(page, "Feature 8 ")
    expect(page).to_have_url(re.compile("run=toy&feature=8"))
