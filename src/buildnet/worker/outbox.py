"""What waits to be sent in one session, in order and bounded. Logs give way when it is full;
nothing else ever does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from buildnet.wire._gen.buildnet.v1 import fleet_pb2

_LOG_BYTES_MAX: Final = 1 << 20


class Outbox:
    """A queue of messages. A full one drops log chunks: readers see the gap in the offsets."""

    def __init__(self) -> None:
        self._waiting: deque[fleet_pb2.JoinRequest] = deque()
        self._log_bytes = 0
        self._news = asyncio.Event()
        self._closed = False

    def put(self, message: fleet_pb2.JoinRequest) -> None:
        """Queue a message; the lease book bounds how many there can be."""
        self._waiting.append(message)
        self._news.set()

    def put_log(self, message: fleet_pb2.JoinRequest) -> None:
        """Queue a log chunk if there is room."""
        size = len(message.log.data)
        if self._log_bytes + size > _LOG_BYTES_MAX:
            return
        self._log_bytes += size
        self.put(message)

    def close(self) -> None:
        """No more will be put; `get` returns None once all is taken."""
        self._closed = True
        self._news.set()

    async def get(self) -> fleet_pb2.JoinRequest | None:
        """The next message, or None when closed and empty."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        message = self._waiting.popleft()
        if message.WhichOneof("message") == "log":
            self._log_bytes -= len(message.log.data)
        return message
