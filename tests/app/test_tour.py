"""The tour leads through its pages step by step, and is offered on the first page of a first visit alone."""

from urllib.parse import parse_qs, urlsplit

import pytest

from app.session.tour import STEPS
from tests.app.pages import button, text


def targets(at) -> dict[str, str]:
    """Return the pages that the tour links to, by label, with the step in their address."""
    links = {link.proto.label: link.proto for link in at.main.get("page_link")}
    return {
        label: f"{proto.page} {parse_qs(urlsplit(proto.query_string).path).get('tour', [''])[0]}"
        for label, proto in links.items()
    }


@pytest.mark.parametrize("place", range(len(STEPS)))
def test_each_step_says_what_its_page_is_for_and_leads_on(show, place: int):
    page, title, words = STEPS[place]
    at = show(page, run="toy", tour=str(place + 1))
    assert f"Step {place + 1} of 6 · {title}." in text(at)
    assert words.replace("'", "\u2019")[:40] in text(at).replace("'", "\u2019")
    links = targets(at)
    if place + 1 < len(STEPS):
        assert links[f"Next: {STEPS[place + 1][1]}"] == f"{STEPS[place + 1][0]} {place + 2}"
    assert ("Back" in links) == (place > 0)
    assert "Step" not in text(button(at, "End the tour").click().run())


def test_the_tour_is_offered_once_and_only_on_the_first_page(show):
    assert "Step 1 of 6" in text(button(show("runs", run="toy"), "Take the tour").click().run())
    at = button(show("runs", run="toy"), "Not now").click().run()
    for page in (at, show("features", run="toy")):
        assert "Take the tour" not in [one.label for one in page.button]


@pytest.mark.parametrize("asked", ["0", "7", "x", "1 ", "\u0661"])
def test_a_step_that_is_not_there_is_no_step(show, asked: str):
    assert "Step" not in text(show("runs", run="toy", tour=asked))
