"""`sae app` with a password, in a real browser: without it nothing is served, and it is asked for once."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Error, Page, expect

from tests.browser.conftest import serving
from tests.browser.pages import heading

WORD = "пароль: 7 & a long one"


@pytest.fixture(scope="module")
def guarded(runs: Path) -> Iterator[str]:
    """Return the address where `sae app` serves the runs with a password."""
    with serving(runs, 18700, SAE_PASSWORD=WORD) as address:
        yield address


def tab(browser: Browser, address: str, password: str | None) -> Page:
    credentials = {"username": "anyone", "password": password} if password else None
    return browser.new_context(base_url=address, http_credentials=credentials).new_page()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", ["/", "/feature?run=toy", "/_stcore/health", "/static/index.html", "/media/x"]
)
def test_without_it_nothing_is_served(guarded: str, path: str):
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(guarded + path), timeout=10)
    assert caught.value.code == 401
    assert b"toy" not in caught.value.read()


def test_without_it_no_socket_is_opened(guarded: str):
    host, port = re.findall(r"//(.+):(\d+)", guarded)[0]
    asked = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(asked.encode())
        answer = connection.recv(4096).decode()
    assert answer.split()[1] == "403", answer


@pytest.mark.parametrize("password", [None, "wrong"])
@pytest.mark.parametrize("cookie", [None, "x" * 43])
def test_who_does_not_know_it_sees_nothing(
    browser: Browser, guarded: str, password: str | None, cookie: str | None
):
    page = tab(browser, guarded, password)
    if cookie:
        page.context.add_cookies([{"name": "sae_door", "value": cookie, "url": guarded}])
    with suppress(Error):  # nobody is there whom the browser could ask
        page.goto("/feature?run=toy")
    assert page.locator("h1, .stApp").count() == 0
    page.context.close()


def test_who_knows_it_is_asked_once_and_reads_all(browser: Browser, guarded: str):
    page = tab(browser, guarded, WORD)
    page.goto("/feature?run=toy&feature=7")
    heading(page, "Feature 7 ")
    page.locator(".neighbours a").first.click()  # loads the page anew
    expect(page.locator("h1")).not_to_have_text("Feature 7 ")
    expect(page.locator(".examples .peak").first).to_be_visible()
    (cookie,) = [one for one in page.context.cookies() if one["name"] == "sae_door"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.context.close()
