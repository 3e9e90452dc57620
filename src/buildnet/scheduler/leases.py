"""Leases in force: who runs what under which fence, and until when. Fences only rise. Pure; it ends no action.

Deadlines come in order, for a lease lasts as long as any other. One that was renewed is put right when it is met, into
a heap, where none is later than the lease's own: a heartbeat costs nothing but a number.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from buildnet.model.action import Lease
from buildnet.scheduler.dispatch import Dispatch
from buildnet.scheduler.entry import Attempt, Entry
from buildnet.scheduler.limits import Limits
from buildnet.scheduler.placement import Worker

# A straggler is known by others of its like: so many must have ended.
_RUNS_KNOWN_MIN: Final = 5


class Leases:
    """Attempts by their fences. Not thread-safe: the core owns it."""

    def __init__(self, limits: Limits, dispatch: Dispatch, fence_first: int) -> None:
        self.fence_next = fence_first
        self._limits = limits
        # Read for each lease: a field of its own costs a compiled core nothing, one of a value 40 ns.
        self._lease_s = limits.lease_s
        self._speculates = limits.speculate
        self._dispatch = dispatch
        self._attempts: dict[int, Attempt] = {}
        # As they were given, in their order; and of those that were renewed since, a heap.
        self._given: deque[tuple[float, int]] = deque()
        self._renewed: list[tuple[float, int]] = []
        self._stragglers: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """How many are in force."""
        return len(self._attempts)

    def of(self, fence: int) -> Attempt | None:
        """The attempt that goes on under this fence."""
        return self._attempts.get(fence)

    def begin(self, entry: Entry, worker: Worker, now_s: float, known: Lease | None = None) -> Attempt:
        """Lease the action to the worker, under the next fence; or count in a lease that another controller gave."""
        wanted, limits = entry.wanted, self._limits
        lease = known
        if lease is None:
            fence = self.fence_next
            self.fence_next = fence + 1
            entry.attempts = attempts = entry.attempts + 1
            reserved = worker.reserved(wanted.asked)
            lease = Lease(fence, wanted.key, worker.node, attempts, wanted.timeout_s, wanted.caller, reserved)
        else:
            fence, reserved = lease.fence, lease.reserved
        charge = self._dispatch.begun(entry, worker, fence, reserved, now_s)
        deadline_s = now_s + self._lease_s
        self._attempts[fence] = attempt = Attempt(entry, lease, worker, charge, now_s, deadline_s)
        self._given.append((deadline_s, fence))
        if self._speculates and (demand := entry.demand) is not None and demand.runs >= _RUNS_KNOWN_MIN:
            late_s = max(limits.straggler_min_s, limits.straggler_factor * demand.typical_s)
            self.look_at(fence, now_s + late_s)
        return attempt

    def release(self, attempt: Attempt) -> None:
        """End one attempt; its fence is stale from now on. A second one takes the first's place."""
        entry = attempt.entry
        if self._attempts.pop(attempt.fence, None) is None:
            return
        self._dispatch.ended(attempt)
        if entry.attempt is attempt:
            entry.attempt, entry.second = entry.second, None
        elif entry.second is attempt:
            entry.second = None

    # Time.

    def first_deadline_s(self) -> float | None:
        """When the next lease runs out, if nobody renews it."""
        first = self._first()
        return None if first is None else first.deadline_s

    def _first(self) -> Attempt | None:
        given, renewed, attempts = self._given, self._renewed, self._attempts
        while given:
            deadline_s, fence = given[0]
            attempt = attempts.get(fence)
            if attempt is not None and attempt.deadline_s <= deadline_s:
                break
            given.popleft()
            if attempt is not None:
                heapq.heappush(renewed, (attempt.deadline_s, fence))
        while renewed:
            deadline_s, fence = renewed[0]
            attempt = attempts.get(fence)
            if attempt is None:
                heapq.heappop(renewed)
            elif attempt.deadline_s > deadline_s:
                heapq.heapreplace(renewed, (attempt.deadline_s, fence))
            else:
                break
        if given and renewed:
            return attempts[min(given[0], renewed[0])[1]]
        return attempts[(given or renewed)[0][1]] if given or renewed else None

    def expired(self, now_s: float) -> Attempt | None:
        """One whose lease has run out; to be asked until there is none, each being released."""
        first = self._first()
        return first if first is not None and first.deadline_s <= now_s else None

    def look_at(self, fence: int, at_s: float) -> None:
        """Whether it straggles is to be seen then."""
        heapq.heappush(self._stragglers, (at_s, fence))

    def first_straggler_s(self) -> float | None:
        """When the next one is to be looked at."""
        heap = self._stragglers
        while heap and heap[0][1] not in self._attempts:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def straggling(self, now_s: float) -> Attempt | None:
        """One that is to be looked at by now, taken out; to be asked until there is none."""
        at_s = self.first_straggler_s()
        return self._attempts[heapq.heappop(self._stragglers)[1]] if at_s is not None and at_s <= now_s else None
