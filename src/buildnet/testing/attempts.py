"""Attempts that end when and as a test says. Runs nothing."""

from __future__ import annotations

import asyncio

from buildnet.model.action import Outcome
from buildnet.worker.attempt import Handle
from buildnet.worker.lease_book import Assignment


class ScriptedRunner:
    """A Runner whose attempts wait for `finish`, or for the wish to stop unless `stubborn`."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.begun: list[int] = []
        self.stopped: list[tuple[int, str]] = []
        self.handles: dict[int, Handle] = {}
        self._stubborn = stubborn
        self._outcomes: dict[int, Outcome] = {}
        self._news: dict[int, asyncio.Event] = {}

    def finish(self, fence: int, outcome: Outcome) -> None:
        """Let an attempt end, now or as soon as it begins."""
        self._outcomes[fence] = outcome
        if fence in self._news:
            self._news[fence].set()

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Wait for the end of one attempt."""
        fence = assignment.fence
        self.begun.append(fence)
        self.handles[fence] = handle
        news = self._news[fence] = asyncio.Event()
        handle.on_stop(lambda _: news.set())
        while fence not in self._outcomes:
            if handle.stop_reason is not None and not self._stubborn:
                self.stopped.append((fence, handle.stop_reason))
                return Outcome("cancelled", None, handle.stop_reason)
            news.clear()
            await news.wait()
        return self._outcomes[fence]


async def until(condition: asyncio.Event, timeout_s: float = 5.0) -> None:
    """Wait for an event that a test demands.

    Raises:
        TimeoutError: it did not come.
    """
    async with asyncio.timeout(timeout_s):
        await condition.wait()
