"""Runs an ASGI 3 application against the door's HTTP exchanges. What the application says is passed on, never judged.

The request is whole before the application begins. A client that goes away cancels the application's task; a server
that stops is told as `http.disconnect`, so that streams end at once and short answers are finished. There is no
lifespan: what an application stands on is opened and closed by whoever makes it.

Source: ASGI specification 3.0, HTTP & WebSocket message format 2.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from buildnet.edge.bridge import WebRequest
from buildnet.edge.flow import WINDOW_BYTES, Exchange

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# A larger piece would leave the window as one, however slow its reader is.
_PIECE_BYTES: Final = WINDOW_BYTES // 2


class Asgi:
    """An application, as the bridge calls it."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, request: WebRequest, exchange: Exchange) -> None:
        """Answer one request.

        Raises:
            RuntimeError: the application broke the protocol.
        """
        answer = _Answer(request, exchange)
        await self._application(scope_of(request), answer.receive, answer.send)
        if not answer.ended:
            raise RuntimeError(f"the application left {request.method} {request.path} without its end")


class Deferred:
    """An application that is made, in a thread of its own, when it is first called."""

    def __init__(self, make: Callable[[], Application]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._made: Application | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            BuildNetError: it cannot be made; the next call tries again.
        """
        async with self._making:
            if self._made is None:
                self._made = await asyncio.to_thread(self._make)
        await self._made(scope, receive, send)


def scope_of(request: WebRequest) -> dict[str, Any]:
    """The connection scope; `state.caller` is who asks, as the door knows them."""
    host, _, port = request.peer.rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.version,
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "query_string": request.query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": request.headers,
        "client": (host.strip("[]"), int(port)) if port.isdigit() else None,
        "server": None,
        "state": {"caller": request.caller},
    }


class _Answer:
    def __init__(self, request: WebRequest, exchange: Exchange) -> None:
        self._request = request
        self._exchange = exchange
        self._given = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._begun = False
        self.ended = False

    async def receive(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        if not self.ended:
            await self._exchange.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._head is None:
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._head = (int(message["status"]), headers)
        elif kind == "http.response.body" and self._head is not None and not self.ended:
            # The head waits for the first piece, as ASGI has it: a failure before that is still a status of its own.
            if not self._begun:
                self._begun = True
                self._exchange.start(*self._head)
            body = bytes(message.get("body", b""))
            for at in range(0, len(body), _PIECE_BYTES):
                await self._exchange.send(body[at : at + _PIECE_BYTES])
            self.ended = not message.get("more_body", False)
        else:
            raise RuntimeError(f"{kind} cannot be sent now")
