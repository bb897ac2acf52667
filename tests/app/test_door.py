"""The password: requests with it or with its cookie reach the app; for others nothing is served or started."""

import asyncio
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import server
from app.server import COOKIE, PasswordGate
from tests.activations.toys import LAWS

WORD = "a long and secret word"


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "WAIT", 0.0)


def asked(made: PasswordGate, *headers: tuple[bytes, bytes], kind: str = "http") -> list[dict[str, Any]]:
    """Return the messages that answer a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the door reads nothing")

    with ThreadPoolExecutor(1) as other:  # this thread may have a browser's loop
        other.submit(asyncio.run, made({"type": kind, "headers": list(headers)}, receive, send)).result()
    return sent


async def inside(scope: Any, receive: Any, send: Any) -> None:
    """Stand in for the app."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})


def basic(password: str, user: str = "anyone") -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + b64encode(f"{user}:{password}".encode())


def cookie_of(answer: list[dict[str, Any]]) -> bytes:
    (found,) = [value for name, value in answer[0]["headers"] if name == b"set-cookie"]
    return found


def test_the_password_opens_it_and_gives_a_cookie_that_opens_it_too():
    made = PasswordGate(inside, WORD)
    answer = asked(made, basic(WORD))
    assert answer[0]["status"] == 200
    assert b"HttpOnly" in cookie_of(answer) and b"SameSite=Strict" in cookie_of(answer)
    cookie = cookie_of(answer).split(b";")[0]
    for kind in ("http", "websocket"):
        assert asked(made, (b"cookie", b"x=1; " + cookie), kind=kind)[0]["status"] == 200
    assert asked(PasswordGate(inside, WORD), (b"cookie", cookie))[0]["status"] == 401, "of another process"


@pytest.mark.parametrize(
    "header",
    [
        basic(""), basic(WORD[:-1]), basic(WORD + " "), basic("x", user=WORD), (b"authorization", WORD.encode()),
        (b"authorization", b"Bearer " + b64encode(f"x:{WORD}".encode())), (b"authorization", b"Basic \xff\xfe"),
        (b"authorization", b"Basic"), (b"cookie", COOKIE.encode() + b"="), (b"cookie", COOKIE.encode()), (b"cookie", b"\xff;;=\x00"),
    ],
)  # fmt: skip
def test_nothing_else_does(header: tuple[bytes, bytes]):
    made = PasswordGate(inside, WORD)
    answer = asked(made, header)
    assert answer[0]["status"] == 401
    assert (b"www-authenticate", b'Basic realm="SAE workbench", charset="UTF-8"') in answer[0]["headers"]
    assert asked(made, header, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


@LAWS
@given(st.text(min_size=1).filter(lambda text: "\ud800" not in text), st.text())
def test_any_password_is_told_from_any_other(right: str, other: str):
    made = PasswordGate(inside, right)
    assert asked(made, basic(right))[0]["status"] == 200
    assert (asked(made, basic(other))[0]["status"] == 200) == (other == right)


@LAWS
@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie"]), st.binary(max_size=60))))
def test_any_header_is_answered(headers: list[tuple[bytes, bytes]]):
    assert asked(PasswordGate(inside, WORD), *headers)[0]["status"] == 401


def test_a_wrong_password_waits_and_none_does_not(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(server.asyncio, "sleep", wait)
    asked(PasswordGate(inside, WORD))
    assert waits == []
    asked(PasswordGate(inside, WORD), basic("wrong"))
    assert len(waits) == 1


def test_the_app_starts_and_ends_behind_a_closed_door():
    began: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.append(scope["type"])

    asked(PasswordGate(app, WORD), kind="lifespan")
    asked(PasswordGate(app, WORD))
    assert began == ["lifespan"]
