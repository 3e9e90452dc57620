"""Flow control of one call through the door: room for what is sent, word of what is taken. It knows no service.

The numbers of the decisions are the door's (native/py/src/door.rs).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

WINDOW_BYTES: Final = 64 << 10
_MESSAGE_COST_BYTES: Final = 16
REPLY, SEND, END, FAIL, ACK, START = range(6)

Emit = Callable[[tuple[int, int, Any]], None]


class Outgoing:
    """Flow control of what one call sends: never more than a window that the transport has not taken."""

    def __init__(self, emit: Emit, call_id: int) -> None:
        self._emit = emit
        self._id = call_id
        self._room = WINDOW_BYTES
        self._has_room = asyncio.Event()

    def credit(self, size_bytes: int) -> None:
        """The transport took bytes."""
        self._room += size_bytes
        if self._room > 0:
            self._has_room.set()

    async def send(self, body: bytes) -> None:
        """Send a piece, once there is room for it."""
        while self._room <= 0:
            self._has_room.clear()
            await self._has_room.wait()
        self._room -= len(body) + _MESSAGE_COST_BYTES
        self._emit((self._id, SEND, body))


class Exchange(Outgoing):
    """The answer to one HTTP request: `start` once, then `send` pieces of the body.

    `leave` is set when the answer should end early, because the server is stopping.
    """

    def __init__(self, emit: Emit, call_id: int) -> None:
        super().__init__(emit, call_id)
        self.leave = asyncio.Event()

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer with this status; names and values of headers as they go out."""
        self._emit((self._id, START, (status, headers)))


class Requests(Outgoing):
    """A stream of gRPC: what is sent, and the requests, acknowledged as they are taken."""

    def __init__(self, emit: Emit, call_id: int, decode: Callable[[bytes], Any]) -> None:
        super().__init__(emit, call_id)
        self._decode = decode
        self._inbox: deque[bytes] = deque()
        self._ended = False
        self._taken = 0
        self._has_news = asyncio.Event()

    def message(self, body: bytes) -> None:
        """One more request came."""
        self._inbox.append(body)
        self._has_news.set()

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._has_news.set()

    async def requests(self) -> AsyncIterator[Any]:
        """Requests in their order, decoded."""
        while True:
            while self._inbox:
                body = self._inbox.popleft()
                # The price at which the door let it through (native/door/src/bridge.rs, pump).
                self._taken += min(len(body) + _MESSAGE_COST_BYTES, WINDOW_BYTES // 2)
                if self._taken >= WINDOW_BYTES // 2:
                    self._emit((self._id, ACK, self._taken))
                    self._taken = 0
                yield self._decode(body)
            if self._ended:
                return
            self._has_news.clear()
            await self._has_news.wait()
