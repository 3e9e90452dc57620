"""Flow control of one call through the door: room for what is sent, word of what is taken. It knows no service.

The numbers of the decisions are the door's (native/py/src/door.rs).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from buildnet._native import Body

WINDOW_BYTES: Final = 64 << 10
_MESSAGE_COST_BYTES: Final = 16
REPLY, SEND, END, FAIL, ACK, START = range(6)

Emit = Callable[[tuple[int, int, Any]], None]


class Outgoing:
    """Flow control of what one call sends: what the transport has not taken is at most a window and a message."""

    def __init__(self, emit: Emit, call_id: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._emit = emit
        self._id = call_id
        self._room = window_bytes
        self._has_room = asyncio.Event()

    def credit(self, size_bytes: int) -> None:
        """The transport took bytes."""
        self._room += size_bytes
        if self._room > 0:
            self._has_room.set()

    async def send(self, body: bytes, rest: Body | None = None) -> None:
        """Send a piece, once there is room for it; `rest` is what of it stays native, and follows."""
        while self._room <= 0:
            self._has_room.clear()
            await self._has_room.wait()
        self._room -= len(body) + _MESSAGE_COST_BYTES + (0 if rest is None else len(rest))
        self._emit((self._id, SEND, body if rest is None else (body, rest)))


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

    def __init__(
        self, emit: Emit, call_id: int, decode: Callable[[bytes | Body], Any], window_bytes: int = WINDOW_BYTES
    ) -> None:
        super().__init__(emit, call_id, window_bytes)
        self._decode = decode
        self._inbox: deque[bytes | Body] = deque()
        self._ended = False
        self._taken = 0
        self._has_news = asyncio.Event()

    def message(self, body: bytes | Body) -> None:
        """One more request came."""
        self._inbox.append(body)
        self._has_news.set()

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._has_news.set()

    def _pop(self) -> Any:
        body = self._inbox.popleft()
        # The price at which the door let it through (native/door/src/bridge.rs, pump).
        self._taken += min(len(body) + _MESSAGE_COST_BYTES, WINDOW_BYTES // 2)
        if self._taken >= WINDOW_BYTES // 2:
            self._emit((self._id, ACK, self._taken))
            self._taken = 0
        return self._decode(body)

    async def requests(self) -> AsyncIterator[Any]:
        """Requests in their order, decoded."""
        while True:
            while self._inbox:
                yield self._pop()
            if self._ended:
                return
            self._has_news.clear()
            await self._has_news.wait()


class Duplex(Requests):
    """A stream of gRPC both of whose directions go without a task: what comes is heard in the turn of the loop that it
    came in, and what is put leaves at the end of the turn that it was put in.

    `over` ends with the requests, or fails with what `hear` raised.
    """

    def __init__(self, emit: Emit, call_id: int, decode: Callable[[bytes | Body], Any]) -> None:
        super().__init__(emit, call_id, decode)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hear: Callable[[Any], Coroutine[Any, Any, None] | None] | None = None
        self._waits: asyncio.Task[None] | None = None
        self._outbox: deque[bytes] = deque()

    # What comes.

    async def first(self) -> Any | None:
        """The first request, or None where there is none."""
        while not self._inbox and not self._ended:
            self._has_news.clear()
            await self._has_news.wait()
        return self._pop() if self._inbox else None

    def attach(self, hear: Callable[[Any], Coroutine[Any, Any, None] | None]) -> None:
        """Have every further request heard, in order: the next one once the work that `hear` returns is done."""
        self._hear = hear
        self._go_on()

    def message(self, body: bytes | Body) -> None:
        """One more request came."""
        super().message(body)
        self._go_on()

    def end(self) -> None:
        """No more will come."""
        super().end()
        self._go_on()

    def _go_on(self) -> None:
        if self._hear is None or self._waits is not None or self.over.done():
            return
        try:
            while self._inbox:
                if (work := self._hear(self._pop())) is not None:
                    self._waits = asyncio.ensure_future(work)
                    self._waits.add_done_callback(self._worked)
                    return
        except Exception as error:  # noqa: BLE001 - whoever waits for the end raises it
            self.over.set_exception(error)
            return
        if self._ended:
            self.over.set_result(None)

    def _worked(self, work: asyncio.Task[None]) -> None:
        self._waits = None
        if work.cancelled() or self.over.done():
            return
        if (error := work.exception()) is not None:
            self.over.set_exception(error)
            return
        self._go_on()

    def detach(self) -> None:
        """Hear nothing more."""
        self._hear = None
        if self._waits is not None:
            self._waits.cancel()
        if not self.over.done():
            self.over.cancel()

    # What goes.

    @property
    def queued(self) -> int:
        """Messages that wait for room."""
        return len(self._outbox)

    def put(self, body: bytes) -> None:
        """Send a message, once there is room for it."""
        if self._room > 0 and not self._outbox:
            self._room -= len(body) + _MESSAGE_COST_BYTES
            self._emit((self._id, SEND, body))
        else:
            self._outbox.append(body)
            self._has_room.clear()

    def credit(self, size_bytes: int) -> None:
        """The transport took bytes."""
        self._room += size_bytes
        while self._outbox and self._room > 0:
            body = self._outbox.popleft()
            self._room -= len(body) + _MESSAGE_COST_BYTES
            self._emit((self._id, SEND, body))
        if not self._outbox:
            self._has_room.set()

    async def sent(self) -> None:
        """Return once all that was put has been handed to the transport."""
        while self._outbox:
            self._has_room.clear()
            await self._has_room.wait()
