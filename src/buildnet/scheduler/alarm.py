"""Rings when the next deadline comes. Deadlines move with every step: a bell is set anew only for an earlier one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from buildnet.ports import Clock


class Alarm:
    """One bell of one loop. It may ring too early: who hears it looks at the deadline again."""

    def __init__(self, clock: Clock, ring: Callable[[float], None]) -> None:
        """`ring` is told the time, by the monotonic clock."""
        self._clock = clock
        self._ring = ring
        self._at_s = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def due(self, deadline_s: float | None, now_s: float) -> None:
        """Ring at this deadline, or before it; never for None."""
        if deadline_s is None or now_s < self._at_s <= deadline_s:
            return
        self.stop()
        self._at_s = deadline_s
        delay_s = max(0.0, deadline_s - self._clock.monotonic_s())
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._rings)

    def stop(self) -> None:
        """Be silent until `due` is called again."""
        if self._handle is not None:
            self._handle.cancel()
        self._at_s, self._handle = math.inf, None

    def _rings(self) -> None:
        self._at_s, self._handle = math.inf, None
        self._ring(self._clock.monotonic_s())
