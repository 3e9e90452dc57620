"""Which gpus each attempt has: no two have one at once, and each is given back whatever the end. It opens none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from buildnet.errors import SandboxFailed


class Gpus:
    """The gpus of one worker, by the numbers of their device files. For one event loop.

    Args:
        numbers: those that attempts may have.
    """

    def __init__(self, numbers: Sequence[int] = ()) -> None:
        self._free = set(numbers)
        self._count = len(self._free)
        self._given_back = asyncio.Condition()

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return self._count > 0

    @asynccontextmanager
    async def held(self, count: int) -> AsyncIterator[tuple[int, ...]]:
        """Have `count` of them within the context, the lowest that are free; waits for one that is being stopped, which
        the controller does not count any more.

        Raises:
            SandboxFailed: there are not so many.
        """
        if count > self._count:
            raise SandboxFailed(f"{count} gpus are asked for, and this worker has {self._count}")
        if not count:
            yield ()
            return
        async with self._given_back:
            await self._given_back.wait_for(lambda: len(self._free) >= count)
            taken = tuple(sorted(self._free)[:count])
            self._free.difference_update(taken)
        try:
            yield taken
        finally:
            self._free.update(taken)
            async with self._given_back:
                self._given_back.notify_all()
