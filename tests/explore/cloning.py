"""What a core becomes by an event, without changing it: worlds that differ elsewhere share what it becomes."""

from __future__ import annotations

from collections.abc import Callable

from buildnet.scheduler.core import SchedulerCore
from buildnet.scheduler.events import Effect, Event


class SharedCore:
    """A core that nobody changes: `after` makes another, once for each event.

    A compiled core cannot be copied. It is what its events made it, so one that has had the same is the same.
    """

    def __init__(self, make: Callable[[], SchedulerCore], events: tuple[Event, ...] = ()) -> None:
        self._make = make
        self._events = events
        self._after: dict[Event, SharedCore] = {}
        self.core = make()
        self.effects: list[Effect] = []
        for event in events:
            self.effects = self.core.step(event)

    def after(self, event: Event) -> tuple[SharedCore, list[Effect]]:
        """The core once it has had the event, and what it wants done."""
        known = self._after.get(event)
        if known is None:
            known = self._after[event] = SharedCore(self._make, (*self._events, event))
        return known, known.effects
