"""The scheduler's core: `step(event) -> effects`. No I/O, no clock, no randomness, no loop; every id may be stale.

What it promises, and what tests/explore shows to break when the mechanism is switched off:
an action that may be cached is published at most once at a time (join, fence); fences only rise; nobody is told a
result before it is published; a worker's death strands nobody (requeue, lease deadlines); a worker is told until it
hears (settle); what still runs after a break, or under a new controller, is not run again (adopt).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from buildnet.model.action import CONSTRAINT, ActionKey, Lease, Outcome, Wanted
from buildnet.model.node import WorkerOffer
from buildnet.ports import ResourceMatcher
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

_STALE_TICKETS_MAX: Final = 64

EntryState = Literal["looking", "queued", "leased", "publishing"]

# Failures that say more about the node than about the action: tried again on another one.
_RETRIED: Final = frozenset({"sandbox_failed", "node_down", "storage_full", "internal", "cancelled"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the scheduler. `attempts_max` counts assignments of one entry, whoever lost them.

    What a lost worker offered counts as offered for `absent_worker_s` more: it may return. A lease of an earlier
    controller waits `return_s` for its worker.
    """

    queue_length_max: int = 100_000
    attempts_max: int = 5
    lease_s: float = 4.0
    publications_max: int = 2
    absent_worker_s: float = 60.0
    return_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """Switched off one at a time by the explorer; production never passes another than the default."""

    join: bool = True
    look_again: bool = True
    fence: bool = True
    requeue: bool = True
    settle: bool = True
    adopt: bool = True


@dataclass(slots=True)
class _Entry:
    """One wanted action and everybody who waits for it."""

    id: int
    wanted: Wanted
    followers: list[str]
    state: EntryState
    demanded: bool = False
    lease: Lease | None = None
    deadline_s: float = 0.0
    attempts: int = 0
    publications: int = 0
    avoid: str = ""
    # The newest lease, while the entry is queued again because its worker was lost: it may come back with it.
    lost: Lease | None = None


@dataclass(slots=True)
class _Worker:
    """A worker whose session is open."""

    offer: WorkerOffer
    fences: set[int] = field(default_factory=set)
    draining: bool = False
    cordoned: bool = False

    @property
    def free(self) -> int:
        # What it comes back with may be more than it has slots for: results that wait to be settled count too.
        return 0 if self.draining or self.cordoned else max(0, self.offer.slots - len(self.fences))


class _NoResources:
    """Workers that offer nothing beyond their properties."""

    def meets(self, node: str, constraints: tuple[str, ...]) -> bool | None:
        return False

    def why_not(self, constraints: tuple[str, ...]) -> str:
        return "no worker announces resources"


NO_RESOURCES: Final = _NoResources()


def matches(wanted: Wanted, offer: WorkerOffer, resources: ResourceMatcher = NO_RESOURCES) -> bool | None:
    """Whether the worker offers every required name and value (REAPI Platform: all must hold); None while unknown.

    `tier` is matched with the trust that the controller has in the worker, whatever the worker says of itself;
    `require`, which may come several times, is a constraint on its resources.
    """
    constrained = False
    for name, value in wanted.requirements:
        if name == CONSTRAINT:
            constrained = True
        elif not (value == offer.tier if name == "tier" else (name, value) in offer.properties):
            return False
    return resources.meets(offer.node, wanted.constraints) if constrained else True


class SchedulerCore:
    """All state of the scheduler. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        limits: Limits,
        *,
        fence_first: int = 1,
        mechanisms: Mechanisms = Mechanisms(),
        resources: ResourceMatcher = NO_RESOURCES,
    ) -> None:
        self.limits = limits
        self._resources = resources
        self._on = mechanisms
        self._fence_next = fence_first
        self._entry_next = 1
        self.now_s = 0.0
        self.entries: dict[int, _Entry] = {}
        self.workers: dict[str, _Worker] = {}
        self._absent: dict[str, tuple[WorkerOffer, float]] = {}
        self._by_key: dict[ActionKey, int] = {}
        self._by_fence: dict[int, int] = {}
        self._by_operation: dict[str, int] = {}
        # Leases whose worker may come back with them: of queued entries, and of those that wait for it until a time.
        self._by_lost: dict[int, int] = {}
        self._returning: dict[int, float] = {}
        # (priority, entry id): lower first, then first come. Entries that left the queue are passed over when met.
        self._queue: list[tuple[int, int]] = []
        self._queued = 0
        self._looking = 0

    @property
    def queue_length(self) -> int:
        """Entries that wait for a worker."""
        return self._queued

    def next_deadline_s(self) -> float | None:
        """When the next Tick could change anything: a lease runs out, or an absent worker is given up."""
        leases = (w.fences for w in self.workers.values())
        deadlines = [self.entries[self._by_fence[f]].deadline_s for fences in leases for f in fences]
        absences = [self._gone_at_s(lost_at_s) for _, lost_at_s in self._absent.values()]
        return min((*deadlines, *absences, *self._returning.values()), default=None)

    def holds(self, fence: int) -> bool:
        """Whether a lease goes on: not ended, not taken back, not cancelled."""
        entry = self._of_fence(fence)
        return entry is not None and entry.state == "leased"

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
        merged = not wanted.do_not_cache and self._on.join
        if merged and (known := self._by_key.get(wanted.key)) is not None:
            self._join(self.entries[known], event, effects)
            return
        # What is being looked up may all be misses: it counts, or a burst would pass the bound unseen.
        waiting = self._queued + self._looking
        if waiting >= self.limits.queue_length_max:
            outcome = Outcome("overloaded", None, f"{waiting} actions are queued already; try again later")
            effects.append(Tell(operation, "completed", outcome))
            return
        entry = self._enter(operation, wanted, merged=merged)
        effects.append(Record("action.submitted", None, wanted.key))
        effects.append(Tell(operation, "queued"))
        self._look(entry, effects)

    def _restore(self, event: Restore, effects: list[Effect]) -> None:
        """As `_want`, of what was accepted before: it has its entry in the ledger, and no bound refuses it."""
        wanted, lease = event.wanted, event.lease
        if event.operation in self._by_operation:
            return
        merged = not wanted.do_not_cache and self._on.join
        if merged and (known := self._by_key.get(wanted.key)) is not None:
            self._join(self.entries[known], Want(event.operation, wanted), effects)
            return
        entry = self._enter(event.operation, wanted, merged=merged)
        if lease is None or not self._on.adopt:
            self._look(entry, effects)
            return
        self._looking -= 1
        entry.state, entry.lease = "leased", lease
        # The death of a controller is never the attempt that is one too many.
        entry.attempts = min(lease.attempt, self.limits.attempts_max - 1)
        entry.deadline_s = self._returning[lease.fence] = self.now_s + self.limits.return_s
        self._by_fence[lease.fence] = entry.id

    def _enter(self, operation: str, wanted: Wanted, *, merged: bool) -> _Entry:
        entry = _Entry(self._entry_next, wanted, [operation], "looking")
        self._entry_next += 1
        self._looking += 1
        self.entries[entry.id] = entry
        self._by_operation[operation] = entry.id
        if merged:
            self._by_key[wanted.key] = entry.id
        return entry

    def _look(self, entry: _Entry, effects: list[Effect]) -> None:
        wanted = entry.wanted
        if wanted.do_not_cache or wanted.skip_cache_lookup or not self._on.look_again:
            self._enqueue(entry)
            self._place(effects)
        else:
            effects.append(Lookup(entry.id, wanted.key))

    def _join(self, entry: _Entry, event: Want, effects: list[Effect]) -> None:
        entry.followers.append(event.operation)
        self._by_operation[event.operation] = entry.id
        # REAPI skip_cache_lookup: the result must be of an execution, which this one may share.
        entry.demanded |= event.wanted.skip_cache_lookup
        if event.wanted.priority < entry.wanted.priority:
            entry.wanted = replace(entry.wanted, priority=event.wanted.priority)
            if entry.state == "queued":
                heapq.heappush(self._queue, (entry.wanted.priority, entry.id))
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
        self._enqueue(entry)
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
        if entry.lease is not None:
            effects.append(Stop(entry.lease.worker, entry.lease.fence, "cancelled"))
        effects.append(Record("action.cancelled", entry.lease, entry.wanted.key))
        self._forget(entry)
        self._place(effects)

    # Workers.

    def _worker_up(self, event: WorkerUp, effects: list[Effect]) -> None:
        if event.offer.node in self.workers:
            self._worker_lost(WorkerLost(event.offer.node), effects)
        worker = self.workers[event.offer.node] = _Worker(event.offer, cordoned=event.cordoned)
        self._absent.pop(event.offer.node, None)
        for fence in event.running:
            if not self._adopt(worker, fence, effects):
                # Somebody else has the action, or nobody wants it any more.
                effects.append(Stop(event.offer.node, fence, "the lease was lost with the session"))
        # What it had before and does not tell of, it does not run: nobody need wait for it.
        for entry in [self.entries[entry_id] for entry_id in self._by_lost.values()]:
            if entry.lost is not None and entry.lost.worker == event.offer.node:
                self._forget_lost(entry)
        for entry in [self.entries[self._by_fence[fence]] for fence in self._returning]:
            if entry.lease is not None and entry.lease.worker == event.offer.node:
                self._take_back(entry, effects)
        self._place(effects)

    def _adopt(self, worker: _Worker, fence: int, effects: list[Effect]) -> bool:
        """Let an attempt go on whose action is wanted, leased to nobody else, and whose fence is its newest."""
        returning = self._returning.pop(fence, None) is not None
        entry_id = self._by_fence.get(fence) if returning else self._by_lost.get(fence)
        if entry_id is None or not self._on.adopt:
            return False
        entry = self.entries[entry_id]
        lease = entry.lease if returning else entry.lost
        if lease is None or lease.worker != worker.offer.node:
            if returning:
                self._returning[fence] = entry.deadline_s
            return False
        if not returning:
            # Its ticket is passed over when it is met.
            self._queued -= 1
            self._forget_lost(entry)
        entry.state, entry.lease = "leased", lease
        entry.deadline_s = self.now_s + self.limits.lease_s
        worker.fences.add(fence)
        self._by_fence[fence] = entry.id
        effects.append(Record("action.adopted", lease, entry.wanted.key))
        for operation in entry.followers:
            effects.append(Tell(operation, "executing", worker=lease.worker, fence=fence))
        return True

    def _worker_lost(self, event: WorkerLost, effects: list[Effect]) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        if event.may_return:
            self._absent[event.worker] = (worker.offer, self.now_s)
        for fence in sorted(worker.fences):
            entry = self._of_fence(fence)
            if entry is not None and self._on.requeue:
                self._take_back(entry, effects, may_return=event.may_return)
        self._place(effects)

    def _drain(self, event: Drain, effects: list[Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.draining = True

    def _cordon(self, event: Cordon, effects: list[Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.cordoned = event.cordoned
            self._place(effects)

    def _resources_changed(self, event: ResourcesChanged, effects: list[Effect]) -> None:
        self._place(effects)

    def _heartbeat(self, event: Heartbeat, effects: list[Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        for fence in event.fences:
            entry = self._of_fence(fence)
            if entry is not None and entry.lease is not None and entry.lease.worker == event.worker:
                entry.deadline_s = self.now_s + self.limits.lease_s
            else:
                effects.append(Stop(event.worker, fence, "the lease was lost"))

    def _accepted(self, event: Accepted, effects: list[Effect]) -> None:
        entry = self._of_fence(event.fence)
        if entry is None or entry.state != "leased":
            return
        for operation in entry.followers:
            effects.append(Tell(operation, "executing", worker=event.worker, fence=event.fence))

    def _done(self, event: Done, effects: list[Effect]) -> None:
        entry = self._of_fence(event.fence)
        current = (
            entry is not None
            and entry.state == "leased"
            and entry.lease is not None
            and entry.lease.worker == event.worker
        )
        if self._on.settle:
            effects.append(Settle(event.worker, event.fence))
        if not current and not self._on.fence:
            entry = self._unfenced(event, effects)
            current = entry is not None
        if not current or entry is None or entry.lease is None:
            return
        lease = entry.lease
        self._release(entry)
        entry.lease = lease
        if event.outcome.code == "ok":
            entry.state = "publishing"
            entry.publications += 1
            cacheable = not entry.wanted.do_not_cache
            effects.append(Publish(entry.id, lease, event.outcome, cacheable))
        elif event.outcome.code in _RETRIED and entry.attempts < self.limits.attempts_max:
            entry.avoid = event.worker
            entry.lease = None
            self._enqueue(entry)
            for operation in entry.followers:
                effects.append(Tell(operation, "queued"))
        else:
            effects.append(Record("action.failed", lease, entry.wanted.key, event.outcome))
            self._finish(entry, event.outcome, effects)
        self._place(effects)

    def _unfenced(self, event: Done, effects: list[Effect]) -> _Entry | None:
        """What a scheduler without fences would do: believe any worker. Reached by the explorer alone."""
        for entry in self.entries.values():
            if entry.state in ("leased", "publishing") and entry.lease is not None:
                return entry
        return None

    def _published(self, event: Published, effects: list[Effect]) -> None:
        entry = self.entries.get(event.entry)
        if entry is None or entry.state != "publishing":
            return
        limits = self.limits
        again = entry.publications < limits.publications_max and entry.attempts < limits.attempts_max
        # The blobs went between Done and publication: run it once more, if anybody still waits for it.
        if event.outcome.code == "blobs_missing" and again and entry.followers:
            entry.lease = None
            self._enqueue(entry)
            for operation in entry.followers:
                effects.append(Tell(operation, "queued"))
            self._place(effects)
            return
        self._finish(entry, event.outcome, effects)

    def _tick(self, event: Tick, effects: list[Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        gone = [n for n, (_, lost_at_s) in self._absent.items() if self._gone_at_s(lost_at_s) <= self.now_s]
        for node in gone:
            del self._absent[node]
        if not self._on.requeue:
            return
        away = [fence for fence, until_s in self._returning.items() if until_s <= self.now_s]
        for fence in away:
            self._take_back(self.entries[self._by_fence[fence]], effects, may_return=True)
        late = [entry for entry in self.entries.values() if entry.state == "leased" and entry.deadline_s <= self.now_s]
        for entry in late:
            assert entry.lease is not None
            effects.append(Stop(entry.lease.worker, entry.lease.fence, "the lease ran out"))
            self._take_back(entry, effects)
        if late or gone or away:
            self._place(effects)

    def _gone_at_s(self, lost_at_s: float) -> float:
        # One sum for the deadline and for the test of it: a difference may round to just less, and Tick for ever.
        return lost_at_s + self.limits.absent_worker_s

    # Entries.

    def _of_fence(self, fence: int) -> _Entry | None:
        entry_id = self._by_fence.get(fence)
        return None if entry_id is None else self.entries[entry_id]

    def _enqueue(self, entry: _Entry) -> None:
        if entry.state == "looking":
            self._looking -= 1
        entry.state = "queued"
        self._queued += 1
        # Tickets of entries that left the queue are met only when a worker is free: without one they would pile up.
        if len(self._queue) > 2 * self._queued + _STALE_TICKETS_MAX:
            queued = (e for e in self.entries.values() if e.state == "queued" and e is not entry)
            self._queue = [(e.wanted.priority, e.id) for e in queued]
            heapq.heapify(self._queue)
        heapq.heappush(self._queue, (entry.wanted.priority, entry.id))

    def _place(self, effects: list[Effect]) -> None:
        """Lease queued entries to workers that offer what they require, first by priority, then by age."""
        free = sum(worker.free for worker in self.workers.values())
        passed: list[tuple[int, int]] = []
        while free > 0 and self._queue:
            ticket = heapq.heappop(self._queue)
            entry = self.entries.get(ticket[1])
            if entry is None or entry.state != "queued" or entry.wanted.priority != ticket[0]:
                continue
            worker = self._choose(entry)
            if worker is not None:
                self._lease(entry, worker, effects)
                free -= 1
            elif self._hopeless(entry):
                self._finish(entry, self._unmet(entry.wanted), effects)
            else:
                passed.append(ticket)
        for ticket in passed:
            heapq.heappush(self._queue, ticket)

    def _choose(self, entry: _Entry) -> _Worker | None:
        able = [w for w in self.workers.values() if w.free > 0 and matches(entry.wanted, w.offer, self._resources)]
        # The least busy, and not the one that has just failed at it, unless there is no other.
        return min(
            able,
            key=lambda w: (w.offer.node == entry.avoid, len(w.fences) / w.offer.slots, w.offer.node),
            default=None,
        )

    def _hopeless(self, entry: _Entry) -> bool:
        present = (worker.offer for worker in self.workers.values())
        absent = (offer for offer, _ in self._absent.values())
        # What cannot be told yet may turn out to be met.
        offers = (*present, *absent)
        return not any(matches(entry.wanted, offer, self._resources) is not False for offer in offers)

    def _unmet(self, wanted: Wanted) -> Outcome:
        offered = frozenset[tuple[str, str]]().union(*(worker.offer.properties for worker in self.workers.values()))
        plain = frozenset((name, value) for name, value in wanted.requirements if name != CONSTRAINT)
        unmet = sorted(plain - offered)
        if not unmet and wanted.constraints:
            return self._unmet_constraints(wanted)
        words = ", ".join(f"{name}={value}" for name, value in unmet or sorted(plain))
        return Outcome(
            "no_capable_worker",
            None,
            f"none of the {len(self.workers)} workers that joined offers {words}; "
            "change the action's platform properties, or join a worker that does",
        )

    def _unmet_constraints(self, wanted: Wanted) -> Outcome:
        return Outcome(
            "no_capable_worker",
            None,
            f"none of the {len(self.workers)} workers that joined meets {', '.join(wanted.constraints)}"
            f" ({self._resources.why_not(wanted.constraints)}); ask `buildnet resources explain`, "
            "or join a worker that does",
        )

    def _lease(self, entry: _Entry, worker: _Worker, effects: list[Effect]) -> None:
        entry.attempts += 1
        lease = Lease(
            self._fence_next,
            entry.wanted.key,
            worker.offer.node,
            entry.attempts,
            entry.wanted.timeout_s,
            entry.wanted.caller,
        )
        self._fence_next += 1
        self._queued -= 1
        self._forget_lost(entry)
        entry.state, entry.lease = "leased", lease
        entry.deadline_s = self.now_s + self.limits.lease_s
        worker.fences.add(lease.fence)
        self._by_fence[lease.fence] = entry.id
        effects.append(Assign(lease, entry.followers[0]))
        effects.append(Record("action.assigned", lease, entry.wanted.key))

    def _release(self, entry: _Entry) -> None:
        """End the entry's lease; its fence is stale from now on."""
        if entry.lease is None:
            return
        self._by_fence.pop(entry.lease.fence, None)
        self._returning.pop(entry.lease.fence, None)
        if (worker := self.workers.get(entry.lease.worker)) is not None:
            worker.fences.discard(entry.lease.fence)
        entry.lease = None

    def _forget_lost(self, entry: _Entry) -> None:
        if entry.lost is not None:
            del self._by_lost[entry.lost.fence]
            entry.lost = None

    def _take_back(self, entry: _Entry, effects: list[Effect], *, may_return: bool = False) -> None:
        lease = entry.lease
        self._release(entry)
        if lease is not None:
            entry.avoid = lease.worker
        if entry.attempts >= self.limits.attempts_max:
            outcome = Outcome(
                "node_down",
                None,
                f"{entry.attempts} workers were lost while they ran this action; it may be what kills them",
            )
            effects.append(Record("action.failed", lease, entry.wanted.key, outcome))
            self._finish(entry, outcome, effects)
            return
        if lease is not None and may_return:
            entry.lost = lease
            self._by_lost[lease.fence] = entry.id
        self._enqueue(entry)
        for operation in entry.followers:
            effects.append(Tell(operation, "queued"))

    def _finish(self, entry: _Entry, outcome: Outcome, effects: list[Effect]) -> None:
        for operation in entry.followers:
            self._by_operation.pop(operation, None)
            effects.append(Tell(operation, "completed", outcome, worker=outcome.worker))
        entry.followers = []
        self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        if entry.state == "queued":
            # Its ticket is passed over when it is met.
            self._queued -= 1
        elif entry.state == "looking":
            self._looking -= 1
        self._release(entry)
        self._forget_lost(entry)
        del self.entries[entry.id]
        if self._by_key.get(entry.wanted.key) == entry.id:
            del self._by_key[entry.wanted.key]

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
