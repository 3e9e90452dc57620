"""What runs for clients that are gone is stopped, after a time in which they could have come back.

A build tool that is interrupted or killed ends its calls and says nothing more: without this its actions would hold the
fleet for as long as they may run. REAPI lets a client come back (WaitExecution), so its going alone means nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from buildnet.ports import Clock
from buildnet.scheduler.alarm import Alarm


class Absence:
    """Operations that nobody waits for, in the order in which they were last asked after."""

    def __init__(self, clock: Clock, after_s: float, stop: Callable[[str], bool]) -> None:
        """`stop` is told the id of one for which nobody came back in `after_s` seconds; it says False, and hears of it
        later, when somebody is there.
        """
        self._clock = clock
        self._after_s = after_s
        self._stop = stop
        self._since_s: dict[str, float] = {}
        self._alarm = Alarm(clock, self.look)

    def begins(self, operation_id: str) -> None:
        """Who waited for it has gone."""
        now_s = self._clock.monotonic_s()
        self._since_s.pop(operation_id, None)
        self._since_s[operation_id] = now_s
        self._alarm.due(next(iter(self._since_s.values())) + self._after_s, now_s)

    def asked_after(self, operation_id: str) -> None:
        """Somebody looked at it, and may look again."""
        if operation_id in self._since_s:
            self.begins(operation_id)

    def look(self, now_s: float) -> None:
        """Stop those whose time has come."""
        while self._since_s:
            operation_id, since_s = next(iter(self._since_s.items()))
            if since_s + self._after_s > now_s:
                self._alarm.due(since_s + self._after_s, now_s)
                return
            del self._since_s[operation_id]
            if not self._stop(operation_id):
                self.begins(operation_id)
