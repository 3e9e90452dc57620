"""What running actions print, kept for live readers only. The log of record is the stdout and stderr blob.

A slow reader never stalls an action: past the limit the oldest bytes are dropped and the reader is told of the gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

_LOG_BYTES_MAX = 4 << 20
_LOGS_MAX = 2048


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream (1 stdout, 2 stderr) from `offset` on; `gap` when bytes before it were dropped."""

    stream: int
    offset: int
    data: bytes
    gap: bool = False


@dataclass(slots=True)
class _Log:
    chunks: deque[Chunk] = field(default_factory=deque)
    first: int = 0
    size_bytes: int = 0
    ended: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Wake every reader; each later wait is for later news."""
        self.news.set()
        self.news = asyncio.Event()


class LogBook:
    """Live logs by fence, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._logs: dict[int, _Log] = {}

    def _log(self, fence: int) -> _Log:
        log = self._logs.get(fence)
        if log is None:
            while len(self._logs) >= _LOGS_MAX:
                self.end(next(iter(self._logs)))
            log = self._logs[fence] = _Log()
        return log

    def append(self, fence: int, stream: int, offset: int, data: bytes) -> None:
        """Add what a worker sent."""
        log = self._log(fence)
        log.chunks.append(Chunk(stream, offset, data))
        log.size_bytes += len(data)
        while log.size_bytes > _LOG_BYTES_MAX and len(log.chunks) > 1:
            log.size_bytes -= len(log.chunks.popleft().data)
            log.first += 1
        log.wake()

    def end(self, fence: int) -> None:
        """No more will come; readers finish, and the bytes are let go once they have."""
        log = self._logs.pop(fence, None)
        if log is not None:
            log.ended = True
            log.wake()

    def reader(self, fence: int) -> LogReader:
        """Read a log from its beginning, as far as it is kept."""
        return LogReader(self._log(fence))


class LogReader:
    """One reader's place in one log."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._next = 0

    def read_nowait(self) -> list[Chunk]:
        """What is new since the last call."""
        log = self._log
        start = max(self._next, log.first)
        skipped = start > self._next
        fresh = [log.chunks[i] for i in range(start - log.first, len(log.chunks))]
        self._next = log.first + len(log.chunks)
        if skipped and fresh:
            first = fresh[0]
            fresh[0] = Chunk(first.stream, first.offset, first.data, gap=True)
        return fresh

    @property
    def ended(self) -> bool:
        """Whether the action has ended."""
        return self._log.ended

    async def wait_news(self) -> None:
        """Return when there is something new, at once if there already is."""
        log = self._log
        if log.ended or log.first + len(log.chunks) > self._next:
            return
        await log.news.wait()
