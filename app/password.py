"""The door of the app: until a visitor's browser brings the password, nothing is served, no page and no socket.

HTTP Basic, which every browser asks for by itself; any user name will do. It travels as it is: without TLS, whoever can
read the network can read it."""

import asyncio
import hashlib
import hmac
import secrets
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

PASSWORD = "SAE_PASSWORD"  # the environment variable
COOKIE = "sae_door"
WAIT = 1.0  # seconds after a wrong password

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Door:
    """An ASGI layer around an app. Who has given the password gets a cookie, a secret of this process, since not every
    browser repeats the password when it opens a socket."""

    def __init__(self, app: App, password: str):
        self._app, self._password, self._cookie = app, password, secrets.token_urlsafe(32)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let it in, or answer for the app."""
        if scope["type"] not in ("http", "websocket") or _is_any(self._cookie, _cookies(scope)):
            await self._app(scope, receive, send)
        elif _is_any(self._password, given := list(_passwords(scope))):
            await self._app(scope, receive, self._with_cookie(send))
        else:
            if given:
                await asyncio.sleep(WAIT)
            await _refuse(scope, send)

    def _with_cookie(self, send: Send) -> Send:
        cookie = f"{COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/".encode()

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie)]
            await send(message)

        return with_cookie


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
    await send({"type": "http.response.body", "body": b"This app asks for a password.\n"})


def _passwords(scope: Message) -> Iterator[str]:
    """Those a request brings; what is no such header is none."""
    for name, value in scope["headers"]:
        kind, _, coded = value.partition(b" ")
        if name == b"authorization" and kind.lower() == b"basic":
            try:
                yield b64decode(coded, validate=True).decode("utf-8").partition(":")[2]
            except ValueError:
                continue


def _cookies(scope: Message) -> Iterator[str]:
    for name, value in scope["headers"]:
        if name == b"cookie":
            for part in value.decode("latin-1").split(";"):
                called, _, found = part.strip().partition("=")
                if called == COOKIE:
                    yield found


def _is_any(secret: str, given: Any) -> bool:
    """Whether the secret is among these, in a time that does not tell how much of it is right, nor how long it is."""
    digest = hashlib.sha256(secret.encode()).digest()
    return any(hmac.compare_digest(digest, hashlib.sha256(one.encode()).digest()) for one in given)
