"""How a client bears the absence of its server: it tries again with growing delays, for a bounded time.

Only a server that was reached before is waited for: an address where nobody is must fail at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from buildnet.errors import NodeDown

_T = TypeVar("_T")
_FIRST_S: Final = 0.1
_MAX_S: Final = 2.0

OnBreak = Callable[[NodeDown], None]


class Absence:
    """One wish among a server's absences."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._began_s: float | None = None
        self._delay_s = _FIRST_S
        self._told = False

    def over(self) -> None:
        """The server has answered."""
        self._patience.reached = True
        self._began_s, self._delay_s = None, _FIRST_S
        self._told = False

    @property
    def is_borne(self) -> bool:
        """Whether `wait` would wait now."""
        away_s = 0.0 if self._began_s is None else asyncio.get_running_loop().time() - self._began_s
        return self._patience.reached and away_s < self._patience.away_s

    async def broke(self, failure: NodeDown, on_break: OnBreak | None) -> None:
        """As `wait`; `on_break` hears why, once until the server answers again."""
        if on_break is not None and not self._told and self.is_borne:
            self._told = True
            on_break(failure)
        await self.wait(failure)

    async def wait(self, failure: NodeDown) -> None:
        """Wait before the next try.

        Raises:
            NodeDown: `failure`, once the server was away for too long, or was never there.
        """
        if self._began_s is None:
            self._began_s = asyncio.get_running_loop().time()
        if not self.is_borne:
            raise failure
        await asyncio.sleep(self._delay_s)
        self._delay_s = min(self._delay_s * 2, _MAX_S)


class Patience:
    """What a client knows of its server: whether it was ever reached, and for how long it is waited for."""

    def __init__(self, away_s: float) -> None:
        self.away_s = away_s
        self.reached = False

    def absence(self) -> Absence:
        """For one wish."""
        return Absence(self)

    async def tried(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Do what may be repeated, again while the server is away.

        Raises:
            NodeDown: it was away for too long, or was never reached.
        """
        absence = self.absence()
        while True:
            try:
                answer = await call()
            except NodeDown as error:
                await absence.wait(error)
            else:
                absence.over()
                return answer


async def watched(
    stream: Callable[[], AsyncGenerator[_T, None]], absence: Absence, on_break: OnBreak | None = None
) -> AsyncIterator[_T]:
    """What a stream tells, for ever, over as many connections as it takes: when one breaks, `stream` makes the next.
    `on_break` hears why, once until something comes again.

    Raises:
        NodeDown: the server stayed away for longer than `absence` bears.
    """
    while True:
        failure = NodeDown("the server ended the stream; is it being stopped?")
        try:
            async with aclosing(stream()) as events:
                async for event in events:
                    absence.over()
                    yield event
        except NodeDown as error:
            failure = error
        await absence.broke(failure, on_break)
