"""One attempt as its session and its executor share it: a wish to stop goes in, its log and an
outcome come out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from buildnet.model.action import Outcome
from buildnet.ports import Clock
from buildnet.worker.lease_book import Assignment
from buildnet.worker.log_progress import LogProgress
from buildnet.worker.messages import log_head
from buildnet.worker.stream import Excerpt

_log = logging.getLogger(__name__)
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class AttemptLog:
    """What one attempt prints, on its way from the sandbox's files to the controller. No byte of it is kept in memory.

    Args:
        fence: the attempt's.
        clock: for the times of what is printed.
        news: called when something waits to be sent.
    """

    def __init__(self, fence: int, clock: Clock, news: Callable[[], None] = lambda: None) -> None:
        self._fence = fence
        self._clock = clock
        self._news = news
        self._progress = LogProgress()
        # Open for as long as they are sent from: the scratch that they are in may go before.
        self._files = [-1, -1]
        self._closed = False
        self._emptied = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether both files are known."""
        return min(self._files) >= 0

    def open(self, stdout_path: str, stderr_path: str) -> None:
        """The command runs, and prints to these files.

        Raises:
            OSError: they cannot be read.
        """
        for stream, path in enumerate((stdout_path, stderr_path)):
            self._keep(stream, os.open(path, _FLAGS))

    def follow(self, *files: int) -> None:
        """Take the descriptors of what was printed so far, -1 for a stream that has none yet."""
        for stream, file in enumerate(files):
            if file >= 0:
                self._keep(stream, file)

    def _keep(self, stream: int, file: int) -> None:
        if self._closed or self._files[stream] >= 0:
            os.close(file)
        else:
            self._files[stream] = file

    def look(self) -> int:
        """Notice what was printed since the last look; returns how many bytes."""
        if max(self._files) < 0:
            return 0
        sizes = [os.fstat(file).st_size if file >= 0 else 0 for file in self._files]
        news_bytes = self._progress.printed(sizes, self._clock.now_unix_ms())
        if news_bytes:
            self._emptied.clear()
            self._news()
        return news_bytes

    @property
    def waits(self) -> bool:
        """Whether something was printed that is not sent."""
        return self._progress.waits

    def next_message(self) -> Excerpt | None:
        """The next piece to send, at once: its file may be closed later. None while there is none or too much is on its
        way.
        """
        piece = self._progress.take()
        if piece is None:
            return None
        if not self._progress.waits:
            self._emptied.set()
        head = log_head(self._fence, piece.stream, piece.offset, piece.size_bytes, piece.printed_at_unix_ms)
        return Excerpt(head, self._files[piece.stream - 1], piece.offset, piece.size_bytes, self._cut)

    def _cut(self) -> None:
        # Without namespaces a command can shorten the very files that it prints to.
        _log.warning("the log of fence %016x was cut while it was read; no more of it is sent", self._fence)
        self.close()

    def taken(self, offsets: Sequence[int], *, resend: bool) -> None:
        """The controller has everything before these offsets of stdout and stderr."""
        self._progress.taken(offsets, resend=resend)
        if self._progress.waits:
            self._emptied.clear()
            self._news()

    def rewind(self) -> None:
        """The session broke: what was on its way is not known to have come."""
        self._progress.rewind()
        if self._progress.waits:
            self._emptied.clear()

    def give_up(self) -> None:
        """End every wait for `emptied`: there is nobody to send to."""
        self._emptied.set()

    async def emptied(self) -> None:
        """Return once all that was printed is sent, or nobody is there to send it to."""
        if self._progress.waits:
            await self._emptied.wait()

    def close(self) -> None:
        """Send no more. Safe to repeat."""
        files, self._files, self._closed = self._files, [-1, -1], True
        for file in files:
            if file >= 0:
                os.close(file)
        self._progress = LogProgress()
        self._emptied.set()


class Handle:
    """The strings of one attempt."""

    def __init__(self, log: AttemptLog) -> None:
        self.log = log
        self.stop_reason: str | None = None
        self._stopping: list[Callable[[str], object]] = []
        self._ended: Callable[[], object] = lambda: None
        self.has_ended = False

    def on_stop(self, call: Callable[[str], object]) -> None:
        """Have this called with the reason once somebody wants it to stop, or now if somebody does."""
        self._stopping.append(call)
        if self.stop_reason is not None:
            call(self.stop_reason)

    def on_command_ended(self, call: Callable[[], object]) -> None:
        """Have this called once the command has ended, if its outputs are still to be sent then."""
        self._ended = call

    def command_ended(self) -> None:
        """The command has ended, and its outputs are still to be sent; told once, or never."""
        self.has_ended = True
        self._ended()

    def stop(self, reason: str) -> None:
        """Ask the attempt to stop; safe to repeat."""
        if self.stop_reason is None:
            self.stop_reason = reason or "cancelled"
            for call in self._stopping:
                call(self.stop_reason)


class Runner(Protocol):
    """What a session needs of whoever runs attempts."""

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Run one attempt to its end; every failure is an Outcome. Nothing of it stays behind."""
        ...
