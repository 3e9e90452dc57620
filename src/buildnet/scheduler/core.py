"""The scheduler's core: `step(event) -> effects`. No I/O, no clock, no randomness, no loop; every id may be stale.

What it promises, and what tests/explore shows to break when the mechanism is switched off:
an action that may be cached is published at most once at a time (join, fence); fences only rise; nobody is told a
result before it is published; a worker's death strands nobody (requeue, lease deadlines); a worker is told until it
hears (settle); what still runs after a break, or under a new controller, is not run again (adopt). Whose turn it is
decides `queue.py`, which worker `placement.py`; what runs and how it ends, this.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.ports import ResourceMatcher
from buildnet.scheduler.dispatch import Dispatch
from buildnet.scheduler.entry import Attempt, Entry, Limits, Mechanisms
from buildnet.scheduler.events import (
    Accepted,
    Assign,
    Cancel,
    Cordon,
    Done,
    Drain,
    Effect,
    Event,
    Found,
    Heartbeat,
    Lookup,
    Publish,
    Published,
    Record,
    ResourcesChanged,
    Restore,
    Settle,
    Stop,
    Tell,
    Tick,
    Want,
    WorkerLost,
    WorkerUp,
)
from buildnet.scheduler.placement import NO_RESOURCES, Worker, matches
from buildnet.scheduler.share import Share

__all__ = ["NO_RESOURCES", "Limits", "Mechanisms", "SchedulerCore", "matches"]

# Failures that say more about the node than about the action: tried again on another one.
_FAULTS: Final = frozenset({"sandbox_failed", "storage_full", "internal"})
# The worker itself was ended.
_LOSSES: Final = frozenset({"node_down", "cancelled"})

# A straggler is known by others of its like: so many must have ended.
_RUNS_KNOWN_MIN: Final = 5


class SchedulerCore:
    """All state of the scheduler. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        limits: Limits,
        *,
        fence_first: int = 1,
        mechanisms: Mechanisms = Mechanisms(),  # noqa: B008 - frozen
        resources: ResourceMatcher = NO_RESOURCES,
    ) -> None:
        self.limits = limits
        self._on = mechanisms
        self._fence_next = fence_first
        self._entry_next = 1
        self.now_s = 0.0
        # Of an earlier controller, and not restored yet: they count as waiting.
        self.to_come = 0
        self.entries: dict[int, Entry] = {}
        self.dispatch = Dispatch(limits, resources, self.entries, mechanisms)
        self.workers: dict[str, Worker] = self.dispatch.room.workers
        self._by_key: dict[ActionKey, int] = {}
        self._by_fence: dict[int, int] = {}
        self._by_operation: dict[str, int] = {}
        # Leases whose worker may come back with them: of entries that are queued again, or wait for it until a time.
        self._by_lost: dict[int, int] = {}
        self._returning: dict[int, float] = {}
        # (time, fence), each never later than the fence's own deadline: a renewed lease is put right when it is met.
        self._deadlines: list[tuple[float, int]] = []
        self._stragglers: list[tuple[float, int]] = []
        self._looking = 0

    @property
    def queue_length(self) -> int:
        """Entries that wait for a worker."""
        return self.dispatch.waiting

    def next_deadline_s(self) -> float | None:
        """When the next Tick could change anything: a lease runs out, one straggles, one is given up."""
        times = []
        if (deadline_s := self._first_deadline_s()) is not None:
            times.append(deadline_s)
        while self._stragglers and self._attempt_of(self._stragglers[0][1]) is None:
            heapq.heappop(self._stragglers)
        if self._stragglers:
            times.append(self._stragglers[0][0])
        # Both are in the order in which they end.
        times += itertools.islice(self._returning.values(), 1)
        for _, lost_at_s in self.dispatch.absent.values():
            times.append(self._gone_at_s(lost_at_s))
            break
        return min(times, default=None)

    def _first_deadline_s(self) -> float | None:
        heap = self._deadlines
        while heap:
            deadline_s, fence = heap[0]
            attempt = self._attempt_of(fence)
            if attempt is None:
                heapq.heappop(heap)
            elif attempt.deadline_s > deadline_s:
                heapq.heapreplace(heap, (attempt.deadline_s, fence))
            else:
                return deadline_s
        return None

    def holds(self, fence: int) -> bool:
        """Whether a lease goes on: not ended, not taken back, not cancelled."""
        return self._attempt_of(fence) is not None or fence in self._returning

    @property
    def busy(self) -> int:
        """Leases that go on with workers that are here."""
        return sum(len(worker.fences) for worker in self.workers.values())

    def step(self, event: Event) -> list[Effect]:
        """Apply one event. Stale, repeated and unknown ids change nothing that matters."""
        effects: list[Effect] = []
        handler: Callable[..., None] = self._HANDLERS[type(event)]
        handler(self, event, effects)
        return effects

    # Clients.

    def _want(self, event: Want, effects: list[Effect]) -> None:
        wanted, operation = event.wanted, event.operation
        if operation in self._by_operation:
            return
        if self._joined(event, effects):
            return
        share = self.dispatch.share_of(wanted)
        if (refusal := self._refusal(wanted, share)) is not None:
            self.dispatch.shares.forget(share)
            effects.append(Tell(operation, "completed", refusal))
            return
        entry = self._enter(operation, wanted, share)
        effects.append(Record("action.submitted", None, wanted.key))
        effects.append(Tell(operation, "queued"))
        self._look(entry, effects)

    def _restore(self, event: Restore, effects: list[Effect]) -> None:
        """As `_want`, of what was accepted before: it has its entry in the ledger, and no bound refuses it."""
        wanted, lease = event.wanted, event.lease
        if event.operation in self._by_operation:
            return
        if self._joined(event, effects):
            return
        entry = self._enter(event.operation, wanted, self.dispatch.share_of(wanted))
        if event.since_s is not None:
            entry.order = self.dispatch.ticket_of(wanted, event.since_s)
        if lease is None or not self._on.adopt:
            self._look(entry, effects)
            return
        self._looking -= 1
        self.dispatch.shares.go(entry.share)
        entry.state = "returning"
        # The death of a controller is never the attempt that is one too many.
        entry.attempts = min(lease.attempt, self.limits.attempts_max - 1)
        self._await(entry, lease)
        self._returning[lease.fence] = self.now_s + self.limits.return_s

    def _may_join(self, wanted: Wanted) -> bool:
        return not wanted.do_not_cache and self._on.join

    def _joined(self, event: Want | Restore, effects: list[Effect]) -> bool:
        """Whether somebody wants the same already, and it is shared."""
        known = self._by_key.get(event.wanted.key) if self._may_join(event.wanted) else None
        if known is not None:
            self._join(self.entries[known], event, effects)
        return known is not None

    def _enter(self, operation: str, wanted: Wanted, share: Share) -> Entry:
        entry = Entry(self._entry_next, wanted, share, followers=[operation])
        entry.order = self.dispatch.ticket_of(wanted, self.now_s)
        self._entry_next += 1
        self._looking += 1
        self.dispatch.shares.wait(share)
        self.entries[entry.id] = entry
        self._by_operation[operation] = entry.id
        if self._may_join(wanted):
            self._by_key[wanted.key] = entry.id
        return entry

    def _look(self, entry: Entry, effects: list[Effect]) -> None:
        wanted = entry.wanted
        if wanted.do_not_cache or wanted.skip_cache_lookup or not self._on.look_again:
            self._enqueue(entry, effects)
            self._place(effects)
        else:
            effects.append(Lookup(entry.id, wanted.key))

    def _refusal(self, wanted: Wanted, share: Share) -> Outcome | None:
        # What is being looked up may all be misses: it counts, or a burst would pass the bound unseen.
        waiting = self.queue_length + self._looking + self.to_come
        if waiting >= self.limits.queue_length_max:
            return Outcome("overloaded", None, f"{waiting} actions are queued already; try again later")
        return self.dispatch.refusal(wanted, share)

    def _join(self, entry: Entry, event: Want | Restore, effects: list[Effect]) -> None:
        entry.followers.append(event.operation)
        self._by_operation[event.operation] = entry.id
        # REAPI skip_cache_lookup: the result must be of an execution, which this one may share.
        entry.demanded |= event.wanted.skip_cache_lookup
        if event.wanted.priority < entry.wanted.priority:
            was = self.dispatch.ticket_of(entry.wanted, 0.0)
            # It keeps the time that it has waited, and waits on in the share of the first who wanted it.
            entry.wanted = replace(entry.wanted, priority=event.wanted.priority)
            self.dispatch.reordered(entry, entry.order + self.dispatch.ticket_of(entry.wanted, 0.0) - was)
        lease = entry.lease
        if entry.state in ("leased", "publishing") and lease is not None:
            effects.append(Tell(event.operation, "executing", worker=lease.worker, fence=lease.fence))
        else:
            effects.append(Tell(event.operation, "queued"))

    def _found(self, event: Found, effects: list[Effect]) -> None:
        entry = self.entries.get(event.entry)
        if entry is None or entry.state != "looking":
            return
        if event.outcome is not None and not entry.demanded:
            self._finish(entry, replace(event.outcome, cached=True), effects)
            return
        self._enqueue(entry, effects)
        self._place(effects)

    def _cancel(self, event: Cancel, effects: list[Effect]) -> None:
        entry_id = self._by_operation.pop(event.operation, None)
        if entry_id is None:
            return
        entry = self.entries[entry_id]
        outcome = Outcome("cancelled", None, "the operation was cancelled")
        entry.followers.remove(event.operation)
        effects.append(Tell(event.operation, "completed", outcome))
        # What others still want goes on; what is being published is too late to stop.
        if entry.followers or entry.state == "publishing":
            return
        for attempt in (entry.attempt, entry.second):
            if attempt is not None:
                effects.append(Stop(attempt.lease.worker, attempt.lease.fence, "cancelled"))
        effects.append(Record("action.cancelled", entry.lease, entry.wanted.key))
        self._forget(entry)
        self._place(effects)

    # Workers.

    def _worker_up(self, event: WorkerUp, effects: list[Effect]) -> None:
        if event.offer.node in self.workers:
            self._worker_lost(WorkerLost(event.offer.node), effects)
        worker = self.dispatch.joined(event.offer, cordoned=event.cordoned)
        for fence in event.running:
            if not self._adopt(worker, fence, effects):
                # Somebody else has the action, or nobody wants it any more.
                effects.append(Stop(event.offer.node, fence, "the lease was lost with the session"))
        # What it had before and does not tell of, it does not run: nobody need wait for it.
        lost = [(fence, self.entries[entry_id]) for fence, entry_id in self._by_lost.items()]
        for fence, entry in lost:
            if entry.lost is None or entry.lost.worker != event.offer.node:
                continue
            if fence in self._returning:
                self._wait_no_more(fence, effects)
            else:
                self._forget_lost(entry)
        self._fleet_changed(effects)

    def _adopt(self, worker: Worker, fence: int, effects: list[Effect]) -> bool:
        """Let an attempt go on whose action is wanted, leased to nobody else, and whose fence is its newest."""
        entry_id = self._by_lost.get(fence)
        entry = None if entry_id is None else self.entries[entry_id]
        if entry is None or entry.lost is None or entry.lost.worker != worker.offer.node or not self._on.adopt:
            return False
        lease = replace(entry.lost, reserved=worker.reserved(entry.wanted.asked))
        if entry.state == "queued":
            # It was counted as a loss when its session ended.
            entry.losses -= 1
            self.dispatch.leave(entry)
            self.dispatch.shares.go(entry.share)
        self._forget_lost(entry)
        self.dispatch.known(entry)
        entry.state, entry.attempt = "leased", self._hold(entry, worker, lease)
        effects.append(Record("action.adopted", lease, entry.wanted.key))
        for operation in entry.followers:
            effects.append(Tell(operation, "executing", worker=lease.worker, fence=fence))
        return True

    def _await(self, entry: Entry, lease: Lease) -> None:
        """Its worker may come back with this lease."""
        entry.lost = lease
        self._by_lost[lease.fence] = entry.id

    def _forget_lost(self, entry: Entry) -> None:
        if entry.lost is not None:
            del self._by_lost[entry.lost.fence]
            self._returning.pop(entry.lost.fence, None)
            entry.lost = None

    def _returned(self, event: Done) -> tuple[Entry | None, Attempt | None]:
        """What an earlier controller leased has ended: that one was told."""
        entry = self.entries[self._by_lost[event.fence]]
        lease = entry.lost
        if lease is None or lease.worker != event.worker:
            return None, None
        self._forget_lost(entry)
        return entry, Attempt(lease, 0, self.now_s, self.now_s)

    def _wait_no_more(self, fence: int, effects: list[Effect], *, may_return: bool = False) -> None:
        """What an earlier controller leased is run anew."""
        entry = self.entries[self._by_lost[fence]]
        lease = entry.lost
        assert lease is not None
        self._forget_lost(entry)
        self._lose(entry, lease, effects, may_return=may_return)

    def _worker_lost(self, event: WorkerLost, effects: list[Effect]) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        self.dispatch.left(worker)
        if event.may_return:
            self.dispatch.absent.pop(event.worker, None)
            self.dispatch.absent[event.worker] = (worker.offer, self.now_s)
        for fence in sorted(worker.fences):
            entry = self._of_fence(fence)
            if entry is not None and self._on.requeue:
                self._take_back(entry, fence, effects, may_return=event.may_return)
        self._fleet_changed(effects)

    def _fleet_changed(self, effects: list[Effect]) -> None:
        for number, outcome in list(self.dispatch.hopeless()):
            self._finish(self.entries[number], outcome, effects)
        self._place(effects)

    def _drain(self, event: Drain, effects: list[Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.draining = True
            self.dispatch.closed_or_opened(worker)

    def _cordon(self, event: Cordon, effects: list[Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.cordoned = event.cordoned
            self.dispatch.closed_or_opened(worker)
            self._place(effects)

    def _resources_changed(self, event: ResourcesChanged, effects: list[Effect]) -> None:
        self.dispatch.resources_changed()
        self._fleet_changed(effects)

    def _heartbeat(self, event: Heartbeat, effects: list[Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        for fence in event.fences:
            attempt = self._attempt_of(fence)
            if attempt is not None and attempt.lease.worker == event.worker:
                attempt.deadline_s = self.now_s + self.limits.lease_s
            else:
                effects.append(Stop(event.worker, fence, "the lease was lost"))

    def _accepted(self, event: Accepted, effects: list[Effect]) -> None:
        entry = self._of_fence(event.fence)
        if entry is None or entry.state != "leased":
            return
        for operation in entry.followers:
            effects.append(Tell(operation, "executing", worker=event.worker, fence=event.fence))

    def _done(self, event: Done, effects: list[Effect]) -> None:
        entry, attempt = self._of_fence(event.fence), self._attempt_of(event.fence)
        if self._on.settle:
            effects.append(Settle(event.worker, event.fence))
        if attempt is None and event.fence in self._returning:
            entry, attempt = self._returned(event)
        if attempt is not None and attempt.lease.worker != event.worker:
            attempt = None
        if attempt is None and not self._on.fence:
            entry, attempt = self._unfenced()
        if entry is None or attempt is None:
            return
        self._release(entry, attempt)
        code, lease = event.outcome.code, attempt.lease
        if code == "ok":
            self._publish(entry, attempt, event.outcome, effects)
        elif entry.attempt is not None:
            # The other attempt goes on; how this one ended says nothing yet.
            self._count(entry, code)
        elif self._may_again(entry, code):
            self._avoid(entry, event.worker)
            self._queue_again(entry, effects)
        else:
            effects.append(Record("action.failed", lease, entry.wanted.key, event.outcome))
            self._finish(entry, event.outcome, effects)
        self._place(effects)

    def _publish(self, entry: Entry, attempt: Attempt, outcome: Outcome, effects: list[Effect]) -> None:
        if entry.demand is not None:
            entry.demand.took(self.now_s - attempt.began_s)
        if (loser := entry.attempt) is not None and self._on.stop_loser:
            effects.append(Stop(loser.lease.worker, loser.lease.fence, "another attempt was first"))
            self._release(entry, loser)
        entry.state, entry.published = "publishing", attempt.lease
        entry.publications += 1
        effects.append(Publish(entry.id, attempt.lease, outcome, cacheable=not entry.wanted.do_not_cache))

    def _count(self, entry: Entry, code: str) -> None:
        entry.losses += code in _LOSSES
        entry.faults += code in _FAULTS

    def _may_again(self, entry: Entry, code: str) -> bool:
        """Whether a failed attempt is the worker's or the node's fault, and may be repeated elsewhere."""
        if code not in _LOSSES and code not in _FAULTS:
            return False
        self._count(entry, code)
        limits = self.limits
        spent = entry.attempts >= limits.attempts_max
        return not spent and entry.losses < limits.losses_max and entry.faults < limits.faults_max

    def _avoid(self, entry: Entry, node: str) -> None:
        if node not in entry.avoid:
            entry.avoid = tuple(sorted((*entry.avoid, node)))

    def _queue_again(self, entry: Entry, effects: list[Effect]) -> None:
        # Its share may have been forgotten meanwhile.
        entry.published = None
        entry.share = self.dispatch.share_of(entry.wanted)
        self.dispatch.shares.wait(entry.share)
        for operation in entry.followers:
            effects.append(Tell(operation, "queued"))
        self._enqueue(entry, effects)

    def _unfenced(self) -> tuple[Entry | None, Attempt | None]:
        """What a scheduler without fences would do: believe any worker. Reached by the explorer alone."""
        for entry in self.entries.values():
            if entry.attempt is not None:
                return entry, entry.attempt
            if entry.state == "publishing" and entry.published is not None:
                return entry, Attempt(entry.published, 0, 0.0, 0.0)
        return None, None

    def _published(self, event: Published, effects: list[Effect]) -> None:
        entry = self.entries.get(event.entry)
        if entry is None or entry.state != "publishing":
            return
        limits = self.limits
        again = entry.publications < limits.publications_max and entry.attempts < limits.attempts_max
        # The blobs went between Done and publication: run it once more, if anybody still waits for it.
        if event.outcome.code == "blobs_missing" and again and entry.followers:
            self._queue_again(entry, effects)
            self._place(effects)
            return
        self._finish(entry, event.outcome, effects)

    def _tick(self, event: Tick, effects: list[Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        absent = self.dispatch.absent
        gone = [node for node, (_, lost_at_s) in absent.items() if self._gone_at_s(lost_at_s) <= self.now_s]
        for node in gone:
            del absent[node]
        if gone:
            self._fleet_changed(effects)
        if not self._on.requeue:
            return
        late = False
        for fence in [fence for fence, until_s in self._returning.items() if until_s <= self.now_s]:
            self._wait_no_more(fence, effects, may_return=True)
            late = True
        while (deadline_s := self._first_deadline_s()) is not None and deadline_s <= self.now_s:
            fence = self._deadlines[0][1]
            entry, attempt = self._of_fence(fence), self._attempt_of(fence)
            assert entry is not None
            assert attempt is not None
            effects.append(Stop(attempt.lease.worker, fence, "the lease ran out"))
            self._take_back(entry, fence, effects)
            late = True
        if late:
            self._place(effects)
        self._speculate(effects)

    def _speculate(self, effects: list[Effect]) -> None:
        """A second attempt for what runs much longer than its like, where a worker has room that nobody waits for."""
        while self._stragglers and self._stragglers[0][0] <= self.now_s:
            _, fence = heapq.heappop(self._stragglers)
            entry, attempt = self._of_fence(fence), self._attempt_of(fence)
            if entry is None or attempt is None or entry.second is not None or not entry.followers:
                continue
            demand = entry.demand
            if demand is None or demand.queue.waiting or entry.attempts >= self.limits.attempts_max:
                continue
            worker = self.dispatch.room.choose(demand, (), unlike=attempt.lease.worker)
            if worker is None:
                heapq.heappush(self._stragglers, (self.now_s + self.limits.straggler_min_s, fence))
                continue
            entry.second = self._begin(entry, worker, effects)

    def _gone_at_s(self, lost_at_s: float) -> float:
        # One sum for the deadline and for the test of it: a difference may round to just less, and Tick for ever.
        return lost_at_s + self.limits.absent_worker_s

    # Entries.

    def _of_fence(self, fence: int) -> Entry | None:
        entry_id = self._by_fence.get(fence)
        return None if entry_id is None else self.entries[entry_id]

    def _attempt_of(self, fence: int) -> Attempt | None:
        entry_id = self._by_fence.get(fence)
        if entry_id is None:
            return None
        entry = self.entries[entry_id]
        attempt = entry.attempt
        return attempt if attempt is not None and attempt.lease.fence == fence else entry.second

    def _enqueue(self, entry: Entry, effects: list[Effect]) -> None:
        """Let it wait for a worker, or end it when none can ever come."""
        if entry.state == "looking":
            self._looking -= 1
        entry.state = "queued"
        refusal = self.dispatch.enqueue(entry, self.now_s)
        if refusal is not None:
            self._finish(entry, refusal, effects)

    def _place(self, effects: list[Effect]) -> None:
        """Lease what waits to workers that have room for it, as long as there are any."""
        while (chosen := self.dispatch.next(self.now_s)) is not None:
            self._lease(self.entries[chosen[0]], chosen[1], effects)

    def _lease(self, entry: Entry, worker: Worker, effects: list[Effect]) -> None:
        self.dispatch.leave(entry)
        self.dispatch.shares.go(entry.share)
        entry.state, entry.attempt = "leased", self._begin(entry, worker, effects)

    def _begin(self, entry: Entry, worker: Worker, effects: list[Effect]) -> Attempt:
        wanted = entry.wanted
        entry.attempts += 1
        lease = Lease(
            self._fence_next,
            wanted.key,
            worker.offer.node,
            entry.attempts,
            wanted.timeout_s,
            wanted.caller,
            worker.reserved(wanted.asked),
        )
        self._fence_next += 1
        self._forget_lost(entry)
        effects.append(Assign(lease, entry.followers[0]))
        effects.append(Record("action.assigned", lease, wanted.key))
        return self._hold(entry, worker, lease)

    def _hold(self, entry: Entry, worker: Worker, lease: Lease) -> Attempt:
        """Count a lease in, whoever gave it."""
        now_s, limits, fence = self.now_s, self.limits, lease.fence
        charge = self.dispatch.begun(entry, worker, fence, lease.reserved, now_s)
        self._by_fence[fence] = entry.id
        deadline_s = now_s + limits.lease_s
        heapq.heappush(self._deadlines, (deadline_s, fence))
        demand = entry.demand
        if limits.speculate and demand is not None and demand.runs >= _RUNS_KNOWN_MIN:
            late_s = max(limits.straggler_min_s, limits.straggler_factor * demand.typical_s)
            heapq.heappush(self._stragglers, (now_s + late_s, fence))
        return Attempt(lease, charge, now_s, deadline_s)

    def _release(self, entry: Entry, attempt: Attempt) -> None:
        """End one attempt; its fence is stale from now on. A second one takes the first's place."""
        lease = attempt.lease
        if self._by_fence.pop(lease.fence, None) is None:
            return
        self.dispatch.ended(entry, self.workers.get(lease.worker), lease.fence, lease.reserved, attempt.charge)
        if entry.second is attempt:
            entry.second = None
        elif entry.attempt is attempt:
            entry.attempt, entry.second = entry.second, None

    def _take_back(self, entry: Entry, fence: int, effects: list[Effect], *, may_return: bool = False) -> None:
        attempt = self._attempt_of(fence)
        if attempt is None:
            return
        lease = attempt.lease
        self._release(entry, attempt)
        if entry.attempt is not None:
            self._count(entry, "node_down")
            return
        self._lose(entry, lease, effects, may_return=may_return)

    def _lose(self, entry: Entry, lease: Lease, effects: list[Effect], *, may_return: bool) -> None:
        """It waits for another worker, or for this one to come back with it."""
        self._avoid(entry, lease.worker)
        if not self._may_again(entry, "node_down"):
            outcome = Outcome(
                "node_down",
                None,
                f"{entry.losses} workers were lost while they ran this action; it may be what kills them",
            )
            effects.append(Record("action.failed", lease, entry.wanted.key, outcome))
            self._finish(entry, outcome, effects)
            return
        if may_return:
            self._await(entry, lease)
        self._queue_again(entry, effects)

    def _finish(self, entry: Entry, outcome: Outcome, effects: list[Effect]) -> None:
        for operation in entry.followers:
            self._by_operation.pop(operation, None)
            effects.append(Tell(operation, "completed", outcome, worker=outcome.worker))
        entry.followers = []
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if entry.state in ("looking", "queued"):
            self.dispatch.shares.go(entry.share)
        if entry.state == "looking":
            self._looking -= 1
        self.dispatch.leave(entry)
        self._forget_lost(entry)
        for attempt in (entry.second, entry.attempt):
            if attempt is not None:
                self._release(entry, attempt)
        del self.entries[entry.id]
        if self._by_key.get(entry.wanted.key) == entry.id:
            del self._by_key[entry.wanted.key]
        self.dispatch.shares.forget(entry.share)

    _HANDLERS: Final[dict[type, Callable[..., None]]] = {
        Want: _want,
        Restore: _restore,
        Found: _found,
        WorkerUp: _worker_up,
        WorkerLost: _worker_lost,
        Drain: _drain,
        Cordon: _cordon,
        ResourcesChanged: _resources_changed,
        Heartbeat: _heartbeat,
        Accepted: _accepted,
        Done: _done,
        Published: _published,
        Cancel: _cancel,
        Tick: _tick,
    }
