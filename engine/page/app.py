"""The page's own web server: its files, and a socket for each visitor.

A message of a page is JSON; one with a photo is bytes: a line of JSON, then the file. An answer is bytes: a line of
JSON, then pixels, uint8 [N, S, S, 3], if it has some.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import WebSocketException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from engine.page.session import Answer, Server, Session

STATIC = Path(__file__).with_name("static")
MAX_HEADER_BYTES = 65_536

_UNREADABLE = 1007
_TRY_LATER = 1013

_HEADERS = {
    # Nothing comes from elsewhere, and nobody frames the page.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(server: Server, hosts: Iterable[str], max_visitors: int) -> Starlette:
    """The page as an ASGI application, for so many visitors at once; the server's connection ends with it.

    `hosts` are names that the page is called by, beside addresses, localhost and this machine's name.
    """
    places = asyncio.Semaphore(max_visitors)

    async def serve(visitor: WebSocket) -> None:
        """Answers one page, until it closes; what it brought is forgotten then."""
        await visitor.accept()
        if places.locked():
            raise WebSocketException(_TRY_LATER, f"The page serves {max_visitors} at a time, and is full.")
        session = Session(server)
        try:
            async with places:
                while (message := await visitor.receive())["type"] == "websocket.receive":
                    ask, file = _read(message)
                    await visitor.send_bytes(_written(await session.answer(ask, file)))
        except WebSocketDisconnect:  # before its answer
            pass
        finally:
            await session.close()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with server.client:
            yield

    return Starlette(
        routes=[WebSocketRoute("/session", serve), Mount("/", StaticFiles(directory=STATIC, html=True))],
        middleware=[Middleware(OriginCheck, hosts={"localhost", socket.gethostname(), *hosts})],
        lifespan=lifespan,
    )


class OriginCheck:
    """Answers only those who call the page by a name of its own, and lets sockets be opened by the page itself only.

    A site elsewhere could otherwise have a visitor's browser open a socket here, or, once its own name leads to this
    address, read the answers. Addresses are names, too.
    """

    def __init__(self, app: ASGIApp, hosts: set[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif fault := self._fault(scope):
            await PlainTextResponse(f"{fault}\n", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _fault(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._knows(host):
            return f"This page is not called {host!r}; --allow-host allows the name."
        if scope["type"] == "websocket":
            origin = headers.get("origin", "")
            if urlsplit(origin).netloc.lower() != host.lower():
                return f"Only the page itself may open its socket, not {origin!r}."
        return None

    def _knows(self, host: str) -> bool:
        with suppress(ValueError):
            name = (urlsplit(f"//{host}").hostname or "").lower()
            return name in self._hosts or ipaddress.ip_address(name) is not None  # ValueError where it is none
        return False


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending


def _read(message: Message) -> tuple[dict[str, Any], bytes]:
    """What is asked, and the photo that comes with it."""
    data = message.get("bytes") or (message.get("text") or "").encode()
    header, _, file = data.partition(b"\n")
    if len(header) > MAX_HEADER_BYTES:
        raise WebSocketException(_UNREADABLE, f"An ask has more than {MAX_HEADER_BYTES} bytes beside its photo.")
    try:
        ask = json.loads(header)
    except (ValueError, RecursionError):
        raise WebSocketException(_UNREADABLE, "An ask is not JSON.") from None
    if not isinstance(ask, dict):
        raise WebSocketException(_UNREADABLE, "An ask is not an object.")
    return ask, file


def _written(answer: Answer) -> bytes:
    header = json.dumps(answer.header, separators=(",", ":")).encode()
    return header + b"\n" + (b"" if answer.images is None else answer.images.tobytes())
