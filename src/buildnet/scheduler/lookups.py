"""What is looked up in the action cache: at once where that waits for nothing, else many in one turn of a thread.

A lookup that fails is a miss: it never strands a follower.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from buildnet.errors import BuildNetError
from buildnet.model.action import Outcome
from buildnet.ports import ActionCache
from buildnet.scheduler.events import Found, Lookup
from buildnet.scheduler.keeping import Spawn

log = logging.getLogger(__name__)

# A graph of thousands asks for all of them at once.
_AT_ONCE: Final = 500
# More of them are worth a thread.
_INLINE_MAX: Final = 16


class Lookups:
    """What waits to be looked up, in order; `found` hears of each."""

    def __init__(self, cache: ActionCache, found: Callable[[Found], None], spawn: Spawn) -> None:
        self._cache = cache
        self._found = found
        self._spawn = spawn
        self._waiting: deque[Lookup] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, effect: Lookup) -> None:
        """Look it up with the next `begin`."""
        self._waiting.append(effect)

    def begin(self) -> None:
        """Look up what waits."""
        if len(self._waiting) <= _INLINE_MAX:
            while self._waiting:
                result = self._cache.peek(self._waiting[0].key)
                if result is False:
                    break
                self._tell(self._waiting.popleft(), result)
        if self._waiting and (self._task is None or self._task.done()):
            self._task = self._spawn(self._look())

    async def _look(self) -> None:
        while self._waiting:
            asked = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
            results: Sequence[bytes | None] = [None] * len(asked)
            try:
                results = await self._cache.get_each([effect.key for effect in asked])
            except BuildNetError as error:
                # The action runs, and the cause is in the log.
                log.warning("the action cache could not be read: %s", error)
            except Exception:
                # Also one of ours: a task that raises would end every other task beside it.
                log.exception("the lookup failed inside")
            for effect, result in zip(asked, results, strict=True):
                self._tell(effect, result)

    def _tell(self, effect: Lookup, result: bytes | None) -> None:
        self._found(Found(effect.entry, None if result is None else Outcome("ok", result)))
