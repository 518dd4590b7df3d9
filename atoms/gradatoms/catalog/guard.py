"""What the catalog's server lets in: a middleware before every route.

The page can run a model on this machine, so it must not be reached from another site that the same browser has open. A request
must name this server as its Host (or DNS rebinding would make a foreign name ours), one that changes or computes must come from
our own pages (Origin, Sec-Fetch-Site) and carry the token that only they hold, and no body is read beyond a few kilobytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

BODY_BYTES = 64 * 1024
HEADERS = {
    # Plotly sets styles on what it draws; scripts are files of ours alone.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer a browser posts our own forms with the Origin null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI middleware.

    Args:
        hosts: values of the Host header that name this server, such as ``127.0.0.1:8765``.
        token: what a request that computes must carry, in the header ``x-token`` or the form field ``token``; the field is
            checked where the form is read.
    """

    def __init__(self, app: App, *, hosts: frozenset[str], token: str) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        wrong = self._wrong(scope["method"], headers)
        if wrong is not None:
            await _refuse(send, *wrong)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_BYTES:
                raise TooLongError
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in known),
                ]
            await send(message)

        try:
            await self.app(scope, bounded, guarded)
        except TooLongError:
            await _refuse(send, 413, f"expected at most {BODY_BYTES} bytes")

    def _wrong(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            return 421, "this server answers to its own address only"
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "expected GET or POST"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}":
            return 403, "expected a request from this server's own pages"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "expected a request from this server's own pages"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES:
            return 413, f"expected at most {BODY_BYTES} bytes"
        return None


class TooLongError(Exception):
    """A body went on beyond what is read."""


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(32)


def same(given: str | None, token: str) -> bool:
    """Whether a token is the right one, in a time that does not tell how much of it is."""
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers += [(n.encode(), v.encode()) for n, v in HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
