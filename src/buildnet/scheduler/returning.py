"""What may come back: leases whose worker broke off, or was told by an earlier controller. Pure; it ends nothing.

A worker that returns with one of these goes on with it. Meanwhile its entry is queued again, or, after a restart of the
controller, waits for that worker alone until a time.
"""

from __future__ import annotations

import itertools

from buildnet.model.action import Lease
from buildnet.scheduler.entry import Entry


class Returning:
    """At most one lease of each entry: its newest."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        # In the order in which they end.
        self._until_s: dict[int, float] = {}

    def expect(self, entry: Entry, lease: Lease, until_s: float | None = None) -> None:
        """Its worker may come back with this lease. With a time the entry waits for nobody else until then."""
        entry.lost = lease
        self._entries[lease.fence] = entry
        if until_s is not None:
            self._until_s[lease.fence] = until_s

    def forget(self, entry: Entry) -> None:
        """Its worker, if it comes back, has nothing to go on with."""
        if entry.lost is not None:
            del self._entries[entry.lost.fence]
            self._until_s.pop(entry.lost.fence, None)
            entry.lost = None

    def of(self, fence: int, worker: str) -> Entry | None:
        """The entry whose newest lease this is, if that worker had it."""
        entry = self._entries.get(fence)
        return entry if entry is not None and entry.lost is not None and entry.lost.worker == worker else None

    def awaited(self, fence: int) -> bool:
        """Whether the entry waits for this lease's worker alone."""
        return fence in self._until_s

    def of_worker(self, worker: str) -> list[Entry]:
        """What it might come back with."""
        return [entry for entry in self._entries.values() if entry.lost is not None and entry.lost.worker == worker]

    def first_s(self) -> float | None:
        """When the next entry has waited long enough for its worker."""
        return next(itertools.islice(self._until_s.values(), 1), None)

    def due(self, now_s: float) -> list[Entry]:
        """Those that have waited long enough."""
        return [self._entries[fence] for fence, until_s in self._until_s.items() if until_s <= now_s]
