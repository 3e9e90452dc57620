"""What waits to be sent in one session, in order. Logs come when nothing else does, and are read
from their files only then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from buildnet.wire._gen.buildnet.v1 import fleet_pb2


def _no_log() -> fleet_pb2.JoinRequest | None:
    return None


class Outbox:
    """A queue of messages, and behind it whatever `next_log` gives when it is asked."""

    def __init__(self, next_log: Callable[[], fleet_pb2.JoinRequest | None] = _no_log) -> None:
        self._waiting: deque[fleet_pb2.JoinRequest] = deque()
        self._next_log = next_log
        self._news = asyncio.Event()
        self._closed = False

    def put(self, message: fleet_pb2.JoinRequest) -> None:
        """Queue a message; the lease book bounds how many there can be."""
        self._waiting.append(message)
        self._news.set()

    def log_waits(self) -> None:
        """`next_log` has something to give."""
        self._news.set()

    def close(self) -> None:
        """No more will be put; `get` returns None once all is taken."""
        self._closed = True
        self._news.set()

    async def get(self) -> fleet_pb2.JoinRequest | None:
        """The next message, or None when closed and empty."""
        while True:
            if self._waiting:
                return self._waiting.popleft()
            if (message := self._next_log()) is not None:
                return message
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
