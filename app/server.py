"""The web application that `sae app` serves, with its password if one is set. By hand: `streamlit run app/server.py -- RUNS`.

Until a visitor's browser sends the password, nothing is served, neither a page nor a socket. It is HTTP Basic authentication,
which every browser supports; any user name is accepted. The password travels in the clear: without TLS, whoever can read the
network can read it."""

import asyncio
import hashlib
import hmac
import os
import secrets
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from starlette.middleware import Middleware  # streamlit needs starlette
from starlette.requests import HTTPConnection
from streamlit.starlette import App

from app.session.visitors import COOKIE as VISITOR

PASSWORD = "SAE_PASSWORD"  # environment variable that holds the password
COOKIE = "sae_door"
DAYS = 30  # that a browser keeps the visitor's cookie
WAIT = 1.0  # seconds before a wrong password is refused, to slow down guessing

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class PasswordGate:
    """ASGI middleware that serves the app only to requests with the password or with its cookie.

    The cookie is a secret of this process. It exists because not every browser repeats the password when it opens a
    socket."""

    def __init__(self, app: Application, password: str):
        self._app, self._password, self._cookie = app, password, secrets.token_urlsafe(32)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on to the app, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        if _is_any(self._cookie, [request.cookies.get(COOKIE, "")]):
            await self._app(scope, receive, send)
        elif _is_any(self._password, sent := list(_passwords(request))):
            cookie = f"{COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"
            await self._app(scope, receive, _with_cookie(send, cookie))
        else:
            if sent:
                await asyncio.sleep(WAIT)
            await _refuse(scope, send)


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [
        (b"www-authenticate", b'Basic realm="SAE workbench", charset="UTF-8"'),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"This app needs a password.\n"})


def _passwords(request: HTTPConnection) -> Iterator[str]:
    """Yield the passwords that a request sends; malformed headers count as none."""
    for header in request.headers.getlist("authorization"):
        kind, _, coded = header.partition(" ")
        if kind.lower() == "basic":
            try:
                yield b64decode(coded, validate=True).decode("utf-8").partition(":")[2]
            except ValueError:
                continue


def _is_any(secret: str, candidates: Iterable[str]) -> bool:
    """Return whether the secret is among the candidates.

    Digests are compared in constant time, so that the time reveals neither how much of a guess is right nor the length."""
    digest = hashlib.sha256(secret.encode()).digest()
    return any(hmac.compare_digest(digest, hashlib.sha256(text.encode()).digest()) for text in candidates)


class VisitorCookie:
    """ASGI middleware that gives every browser a name of its own, a random one, by which the app finds its jobs again."""

    def __init__(self, app: Application):
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on to the app, and set the cookie in the answer to a browser that has none."""
        known = scope["type"] != "http" or VISITOR in HTTPConnection(scope).cookies
        await self._app(scope, receive, send if known else _naming(send))


def _naming(send: Send) -> Send:
    # not SameSite=Strict: a browser leaves such a cookie out when it follows a link from elsewhere, and would get a new name
    name = f"{VISITOR}={secrets.token_urlsafe(16)}; HttpOnly; SameSite=Lax; Path=/; Max-Age={DAYS * 86400}"
    return _with_cookie(send, name)


def _with_cookie(send: Send, cookie: str) -> Send:
    async def with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie.encode())]
        await send(message)

    return with_cookie


password = os.environ.get(PASSWORD)
gates = [Middleware(PasswordGate, password=password)] if password else []
app = App("main.py", middleware=[*gates, Middleware(VisitorCookie)])
