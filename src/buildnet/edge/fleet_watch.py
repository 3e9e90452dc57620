"""Who watches nodes, or actions: each watcher is told the latest state, never a backlog of earlier ones.

What waits for a slow reader is one name for each that changed: a thousand changes of one node are one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from buildnet.errors import Overloaded

WATCHERS_MAX: Final = 256
# So that an assignment a millisecond does not become a message a millisecond.
_PACE_S: Final = 0.1


class Watchers:
    """Hands the names of what changed to everybody who watches; `what` is for people."""

    def __init__(self, what: str = "the fleet") -> None:
        self._what = what
        self._waiting: set[_Watcher] = set()

    def changed(self, name: str) -> None:
        """What is called so is not what it was."""
        for watcher in self._waiting:
            watcher.names[name] = None
            watcher.news.set()

    async def watch(self, known: list[str]) -> AsyncIterator[str | None]:
        """Names of `known` first, then None, then names as they change, for ever.

        Raises:
            Overloaded: as many watch as may.
        """
        if len(self._waiting) >= WATCHERS_MAX:
            raise Overloaded(f"{WATCHERS_MAX} callers watch {self._what} already; try again later", limit=WATCHERS_MAX)
        watcher = _Watcher()
        self._waiting.add(watcher)
        try:
            for name in known:
                # What changed meanwhile is told as it is now, and need not be told twice.
                watcher.names.pop(name, None)
                yield name
            yield None
            while True:
                await watcher.news.wait()
                watcher.news.clear()
                while watcher.names:
                    name = next(iter(watcher.names))
                    del watcher.names[name]
                    yield name
                await asyncio.sleep(_PACE_S)
        finally:
            self._waiting.discard(watcher)


class _Watcher:
    def __init__(self) -> None:
        # In the order of their first change; a dictionary is an ordered set.
        self.names: dict[str, None] = {}
        self.news = asyncio.Event()
