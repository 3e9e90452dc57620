"""The stream of what changes, as server-sent events. A slow reader costs one window of memory: it gets the newest state
when it reads again, and of the ledger what it missed, up to a limit that it is told of.

Source: HTML Living Standard, section Server-sent events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import Response

from buildnet.edge.web.asgi import Message, Receive, Send
from buildnet.edge.web.facts import Fact
from buildnet.edge.web.view import View, Watch
from buildnet.model.caller import Caller

# Entries in one event; of a longer gap the newest are told, with how many were left out.
ENTRIES_MAX: Final = 200
ENTRIES_FIRST: Final = 50
# Often enough that no proxy ends a stream for its silence, nor the door a connection that moves no bytes for 60 s.
HEARTBEAT_S: Final = 10.0
_RETRY_MS: Final = 2000
_HEARTBEAT: Final = b": still here\n\n"


def event(name: str, data: str, event_id: str = "") -> bytes:
    """One event; `data` is JSON on one line."""
    named = f"id: {event_id}\n" if event_id else ""
    return f"{named}event: {name}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Answers with events until the client leaves or the server stops.

    `last_id` is what the client saw last, None at its first visit: the number of entries that it knows of.
    """

    def __init__(self, view: View, caller: Caller, hello: Fact, last_id: int | None) -> None:
        self.background = None
        self._view = view
        self._caller = caller
        self._hello = hello
        self._last_id = last_id

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await receive()
        gone = asyncio.ensure_future(receive())
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            with self._view.watch(self._caller) as watch:
                async with aclosing(self._pieces(watch, gone)) as pieces:
                    async for piece in pieces:
                        await self._send(send, piece, gone)
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, piece: bytes, gone: asyncio.Future[Message]) -> None:
        sending = asyncio.ensure_future(send({"type": "http.response.body", "body": piece, "more_body": True}))
        try:
            waited: set[asyncio.Future[Any]] = {sending, gone}
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if sending in done:
                sending.result()
        finally:
            # A reader that has stopped to read must not hold up the end.
            sending.cancel()

    async def _pieces(self, watch: Watch, gone: asyncio.Future[Message]) -> AsyncGenerator[bytes, None]:
        yield f"retry: {_RETRY_MS}\n".encode() + event("hello", json.dumps(self._hello))
        told: dict[str, str] = {}
        next_index, size = self._last_id, -1
        while not gone.done():
            watch.news.clear()
            for name, data in watch.parts.items():
                if told.get(name) != data:
                    told[name] = data
                    yield event(name, data)
            if watch.sees_ledger and watch.size != size:
                size = watch.size
                next_index, pieces = await self._ledger(next_index)
                for piece in pieces:
                    yield piece
            news: asyncio.Future[Any] = asyncio.ensure_future(watch.news.wait())
            try:
                waited: set[asyncio.Future[Any]] = {news, gone}
                done, _ = await asyncio.wait(waited, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if not done:
                yield _HEARTBEAT

    async def _ledger(self, next_index: int | None) -> tuple[int, list[bytes]]:
        head = await self._view.head()
        size = int(head["size"])
        pieces = []
        if next_index is not None and next_index > size:
            # What the client knows of is not of this ledger, or this ledger is an older copy of itself.
            pieces.append(event("reset", json.dumps({"known": next_index, "size": size})))
            next_index = None
        start = max(0, size - ENTRIES_FIRST) if next_index is None else next_index
        skipped = max(0, size - start - ENTRIES_MAX)
        entries = await self._view.entries(start + skipped, size - start - skipped)
        data = json.dumps({"skipped": skipped, "entries": entries, "head": head})
        pieces.append(event("ledger", data, str(size)))
        return size, pieces
