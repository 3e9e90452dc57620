"""One attempt as its session and its executor share it: a wish to stop goes in, live logs and an
outcome come out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from buildnet.model.action import Outcome
from buildnet.worker.lease_book import Assignment

Log = Callable[[int, int, bytes], None]
"""Stream (1 stdout, 2 stderr), offset, bytes. Never blocks: what has no room is dropped, the blob
has it all.
"""


class Handle:
    """The strings of one attempt. `news` is set when it should look: logs have come, or somebody
    wants it to stop.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.news = asyncio.Event()
        self.stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ask the attempt to stop; safe to repeat."""
        if self.stop_reason is None:
            self.stop_reason = reason or "cancelled"
        self.news.set()


class Runner(Protocol):
    """What a session needs of whoever runs attempts."""

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Run one attempt to its end; every failure is an Outcome. Nothing of it stays behind."""
        ...
