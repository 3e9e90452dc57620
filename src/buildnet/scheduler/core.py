"""The scheduler's core: `step(event) -> effects`. No I/O, no clock, no randomness, no loop; every id may be stale.

What it promises, and what tests/explore shows to break when the mechanism is switched off:
an action that may be cached is published at most once at a time (join, fence); fences only rise; nobody is told a
result before it is published; a worker's death strands nobody (requeue, lease deadlines); a worker is told until it
hears (settle); what still runs after a break, or under a new controller, is not run again (adopt).

An action's way: `_want`, `_found`, `_place`, `_accepted`, `_command_ended`, `_done`, `_published`. Who follows it keeps
`admission.py`; whose turn it is decides `queue.py`, which worker `placement.py`, both asked by `dispatch.py`; what
runs until when keeps `leases.py`; what may come back, `returning.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from buildnet.model.action import Lease, Outcome, Wanted
from buildnet.ports import ResourceMatcher
from buildnet.scheduler import events as ev
from buildnet.scheduler.admission import Admission
from buildnet.scheduler.dispatch import Dispatch
from buildnet.scheduler.entry import Attempt, Entry
from buildnet.scheduler.leases import Leases
from buildnet.scheduler.limits import Limits, Mechanisms
from buildnet.scheduler.matching import NO_RESOURCES, matches
from buildnet.scheduler.placement import Worker
from buildnet.scheduler.returning import Returning
from buildnet.scheduler.share import Share

__all__ = ["NO_RESOURCES", "Limits", "Mechanisms", "SchedulerCore", "matches"]

# Made for each decision: held here, for each look into a module costs a compiled core 50 ns.
_ASSIGN: Final = ev.Assign
_PUBLISH: Final = ev.Publish
_RECORD: Final = ev.Record
_SETTLE: Final = ev.Settle

_LOST: Final = Outcome("node_down", None, "its worker was lost")
_OVERTAKEN: Final = Outcome("cancelled", None, "another attempt was first")


def _attempted(lease: Lease, outcome: Outcome, effects: list[ev.Effect]) -> None:
    """An attempt is over, and its action is not."""
    effects.append(ev.Record("action.attempted", lease, lease.key, outcome))


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
        # Read for each decision: a field of its own costs a compiled core nothing, one of a value 40 ns.
        self._settles = mechanisms.settle
        self._speculates = limits.speculate
        self.now_s = 0.0
        # Of an earlier controller, and not restored yet: they count as waiting.
        self.to_come = 0
        self.entries: dict[int, Entry] = {}
        self.dispatch: Dispatch = Dispatch(limits, resources, self.entries, mechanisms)
        self.workers: dict[str, Worker] = self.dispatch.room.workers
        self.leases = Leases(limits, self.dispatch, fence_first)
        self._admission = Admission(self.entries, self.dispatch, mechanisms)
        self._returning = Returning()

    @property
    def queue_length(self) -> int:
        """Entries that wait for a worker."""
        return self.dispatch.waiting

    @property
    def following(self) -> int:
        """Operations that wait for an end."""
        return self._admission.following

    @property
    def busy(self) -> int:
        """Leases that go on with workers that are here."""
        return sum(len(worker.fences) for worker in self.workers.values())

    def next_deadline_s(self) -> float | None:
        """When the next ev.Tick could change anything: a lease runs out, one straggles, one is given up."""
        leases = self.leases
        times = (
            leases.first_deadline_s(),
            leases.first_straggler_s(),
            self._returning.first_s(),
            self.dispatch.first_gone_s(),
        )
        return min((at_s for at_s in times if at_s is not None), default=None)

    def expect_workers(self) -> None:
        """An earlier controller accepted something: whoever could run it may return, though it is not known yet."""
        self.dispatch.expect_workers(self.now_s)

    def holds(self, fence: int) -> bool:
        """Whether a lease goes on: not ended, not taken back, not cancelled."""
        return self.leases.of(fence) is not None or self._returning.awaited(fence)

    def step(self, event: ev.Event) -> list[ev.Effect]:
        """Apply one event. Stale, repeated and unknown ids change nothing that matters."""
        effects: list[ev.Effect] = []
        _HANDLERS[type(event)](self, event, effects)
        return effects

    # An action comes.

    def _want(self, event: ev.Want, effects: list[ev.Effect]) -> None:
        wanted, operation = event.wanted, event.operation
        if self._admission.joined(event, effects):
            # The turn of whoever joins may have come.
            self._place(effects)
            return
        share = self.dispatch.share_of(wanted)
        if (refusal := self._refusal(wanted, share)) is not None:
            self.dispatch.shares.forget(share)
            effects.append(ev.Tell(operation, "completed", refusal))
            return
        entry = self._admission.enter(operation, wanted, share, self.now_s)
        effects.append(ev.Record("action.submitted", None, wanted.key, operation=operation))
        effects.append(ev.Tell(operation, "queued"))
        self._look(entry, effects)

    def _restore(self, event: ev.Restore, effects: list[ev.Effect]) -> None:
        """As `_want`, of what was accepted before: it has its entry in the ledger, and no bound refuses it."""
        wanted, lease = event.wanted, event.lease
        if self._admission.joined(event, effects):
            self._place(effects)
            return
        came_s = self.now_s if event.since_s is None else event.since_s
        entry = self._admission.enter(event.operation, wanted, self.dispatch.share_of(wanted), came_s)
        if lease is None or not self._on.adopt:
            self._look(entry, effects)
            return
        self._admission.looking -= 1
        self.dispatch.shares.go(entry.share)
        entry.state = "returning"
        # The death of a controller is never the attempt that is one too many.
        entry.attempts = min(lease.attempt, self.limits.attempts_max - 1)
        self._returning.expect(entry, lease, self.now_s + self.limits.return_s)

    def _refusal(self, wanted: Wanted, share: Share) -> Outcome | None:
        # What is being looked up may all be misses: it counts, or a burst would pass the bound unseen.
        waiting = self.queue_length + self._admission.looking + self.to_come
        if waiting >= self.limits.queue_length_max:
            return Outcome("overloaded", None, f"{waiting} actions are queued already; try again later")
        return self.dispatch.refusal(wanted, share)

    def _look(self, entry: Entry, effects: list[ev.Effect]) -> None:
        wanted = entry.wanted
        if wanted.do_not_cache or wanted.skip_cache_lookup or not self._on.look_again:
            self._enqueue(entry, effects)
            self._place(effects)
        else:
            effects.append(ev.Lookup(entry.id, wanted.key))

    def _found(self, event: ev.Found, effects: list[ev.Effect]) -> None:
        entry = self.entries.get(event.entry)
        if entry is None or entry.state != "looking":
            return
        if event.outcome is not None and not entry.demanded:
            effects.append(ev.Record("action.cached", None, entry.wanted.key))
            self._finish(entry, replace(event.outcome, cached=True), effects)
            return
        self._enqueue(entry, effects)
        self._place(effects)

    # It waits, and begins.

    def _enqueue(self, entry: Entry, effects: list[ev.Effect]) -> None:
        """Let it wait for a worker, or end it when none can ever come."""
        if entry.state == "looking":
            self._admission.looking -= 1
        entry.state = "queued"
        refusal = self.dispatch.enqueue(entry, self.now_s)
        if refusal is not None:
            self.dispatch.shares.go(entry.share)
            self._finish(entry, refusal, effects)
        elif len(entry.followers) > 1:
            self._admission.wait_for_all(entry)

    def _place(self, effects: list[ev.Effect]) -> None:
        """Lease what waits to workers that have room for it, as long as there are any."""
        dispatch, room = self.dispatch, self.dispatch.room
        while room.open and (chosen := dispatch.next(self.now_s)) is not None:
            entry, worker = chosen
            entry.state = "leased"
            entry.attempt = self._begin(entry, worker, effects)

    def _begin(self, entry: Entry, worker: Worker, effects: list[ev.Effect]) -> Attempt:
        attempt = self.leases.begin(entry, worker, self.now_s)
        if entry.lost is not None:
            self._returning.forget(entry)
        lease = attempt.lease
        effects += (_ASSIGN(lease, entry.followers[0]), _RECORD("action.assigned", lease, lease.key))
        return attempt

    def _accepted(self, event: ev.Accepted, effects: list[ev.Effect]) -> None:
        attempt = self.leases.of(event.fence)
        if attempt is None or attempt.entry.state != "leased":
            return
        for operation in attempt.entry.followers:
            effects.append(ev.Tell(operation, "executing", worker=event.worker, fence=event.fence))

    # It ends.

    def _command_ended(self, event: ev.CommandEnded, effects: list[ev.Effect]) -> None:
        attempt = self.leases.of(event.fence)
        if attempt is not None and attempt.lease.worker == event.worker:
            self.dispatch.command_ended(attempt)
            self._place(effects)

    def _done(self, event: ev.Done, effects: list[ev.Effect]) -> None:
        worker, fence, outcome = event.worker, event.fence, event.outcome
        if self._settles:
            effects.append(_SETTLE(worker, fence))
        attempt = self.leases.of(fence)
        if attempt is None or attempt.lease.worker != worker:
            attempt = self._returned(event) or (None if self._on.fence else self._unfenced())
            if attempt is None:
                return
        self.leases.release(attempt)
        entry, code = attempt.entry, outcome.code
        if code == "ok":
            self._publish(attempt, outcome, effects)
        elif entry.attempt is not None:
            # The other attempt goes on; how this one ended says nothing yet.
            entry.count(code)
            _attempted(attempt.lease, outcome, effects)
        elif entry.may_again(code, self.limits):
            entry.avoid_too(worker)
            _attempted(attempt.lease, outcome, effects)
            self._queue_again(entry, effects)
        else:
            self._finish(entry, outcome, effects, attempt.lease)
        self._place(effects)

    def _returned(self, event: ev.Done) -> Attempt | None:
        """What an earlier controller leased has ended: that one was told."""
        entry = self._returning.of(event.fence, event.worker)
        if entry is None or entry.lost is None or not self._returning.awaited(event.fence):
            return None
        attempt = Attempt(entry, entry.lost, None, 0, self.now_s, self.now_s)
        self._returning.forget(entry)
        return attempt

    def _unfenced(self) -> Attempt | None:
        """What a scheduler without fences would do: believe any worker. Reached by the explorer alone."""
        for entry in self.entries.values():
            if entry.attempt is not None:
                return entry.attempt
            if entry.state == "publishing" and entry.published is not None:
                return Attempt(entry, entry.published, None, 0, 0.0, 0.0)
        return None

    def _publish(self, attempt: Attempt, outcome: Outcome, effects: list[ev.Effect]) -> None:
        entry, lease = attempt.entry, attempt.lease
        if self._speculates and entry.demand is not None:
            entry.demand.took(self.now_s - attempt.began_s)
        if (loser := entry.attempt) is not None and self._on.stop_loser:
            effects.append(ev.Stop(loser.lease.worker, loser.lease.fence, "another attempt was first"))
            _attempted(loser.lease, _OVERTAKEN, effects)
            self.leases.release(loser)
        entry.state, entry.published = "publishing", lease
        entry.publications += 1
        effects.append(_PUBLISH(entry.id, lease, outcome, not entry.wanted.do_not_cache))

    def _queue_again(self, entry: Entry, effects: list[ev.Effect]) -> None:
        # Its share may have been forgotten meanwhile, or it ran in that of another who wanted it.
        entry.published = None
        ran_in, entry.share = entry.share, self.dispatch.share_of(entry.wanted)
        self.dispatch.shares.wait(entry.share)
        self.dispatch.shares.forget(ran_in)
        for operation in entry.followers:
            effects.append(ev.Tell(operation, "queued"))
        self._enqueue(entry, effects)

    def _published(self, event: ev.Published, effects: list[ev.Effect]) -> None:
        entry = self.entries.get(event.entry)
        if entry is None or entry.state != "publishing":
            return
        limits = self.limits
        again = entry.publications < limits.publications_max and entry.attempts < limits.attempts_max
        # Between ev.Done and publication the blobs went, or the trust in the worker: run it once more, if anybody still
        # waits for it.
        if event.outcome.code in ("blobs_missing", "lease_lost") and again and entry.followers:
            assert entry.published is not None, "it was being published"
            _attempted(entry.published, event.outcome, effects)
            self._queue_again(entry, effects)
            self._place(effects)
            return
        self._finish(entry, event.outcome, effects, entry.published)

    def _cancel(self, event: ev.Cancel, effects: list[ev.Effect]) -> None:
        entry = self._admission.left(event.operation)
        if entry is None:
            return
        outcome = Outcome("cancelled", None, "the operation was cancelled")
        effects.append(ev.Tell(event.operation, "completed", outcome))
        # What others still want goes on; what is being published is too late to stop.
        if entry.followers or entry.state == "publishing":
            # It may count for others now: a quota has room.
            self._place(effects)
            return
        for attempt in (entry.attempt, entry.second):
            if attempt is not None:
                effects.append(ev.Stop(attempt.lease.worker, attempt.lease.fence, "cancelled"))
        effects.append(ev.Record("action.cancelled", entry.lease, entry.wanted.key))
        self._forget(entry)
        self._place(effects)

    def _finish(self, entry: Entry, outcome: Outcome, effects: list[ev.Effect], lease: Lease | None = None) -> None:
        """Tell who waits; a result has its entry in the ledger already, any other end has it from here."""
        if outcome.code != "ok":
            effects.append(ev.Record("action.failed", lease, entry.wanted.key, outcome))
        self._admission.tell_end(entry, outcome, effects)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if entry.state == "looking":
            self.dispatch.shares.go(entry.share)
            self._admission.looking -= 1
        self.dispatch.leave(entry)
        self._returning.forget(entry)
        for attempt in (entry.second, entry.attempt):
            if attempt is not None:
                self.leases.release(attempt)
        self._admission.forget(entry)
        self.dispatch.shares.forget(entry.share)

    # Workers come and go.

    def _worker_up(self, event: ev.WorkerUp, effects: list[ev.Effect]) -> None:
        node = event.offer.node
        if node in self.workers:
            self._worker_lost(ev.WorkerLost(node), effects)
        worker = self.dispatch.joined(event.offer, cordoned=event.cordoned)
        for fence in event.running:
            if not self._adopt(worker, fence, effects):
                # Somebody else has the action, or nobody wants it any more.
                effects.append(ev.Stop(node, fence, "the lease was lost with the session"))
        # What it had before and does not tell of, it does not run: nobody need wait for it.
        for entry in self._returning.of_worker(node):
            if entry.state == "returning":
                self._wait_no_more(entry, effects)
            else:
                self._returning.forget(entry)
        self._fleet_changed(effects)

    def _adopt(self, worker: Worker, fence: int, effects: list[ev.Effect]) -> bool:
        """Let an attempt go on whose action is wanted, leased to nobody else, and whose fence is its newest."""
        entry = self._returning.of(fence, worker.offer.node)
        if entry is None or entry.lost is None or not self._on.adopt:
            return False
        lease = replace(entry.lost, reserved=worker.reserved(entry.wanted.asked))
        if entry.state == "queued":
            # It was counted as a loss when its session ended.
            entry.losses -= 1
            self.dispatch.leave(entry)
        self._returning.forget(entry)
        self.dispatch.known(entry)
        entry.state, entry.attempt = "leased", self.leases.begin(entry, worker, self.now_s, lease)
        effects.append(ev.Record("action.adopted", lease, entry.wanted.key))
        for operation in entry.followers:
            effects.append(ev.Tell(operation, "executing", worker=lease.worker, fence=fence))
        return True

    def _worker_lost(self, event: ev.WorkerLost, effects: list[ev.Effect]) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        self.dispatch.left(worker, self.now_s, may_return=event.may_return)
        for fence in sorted(worker.fences):
            attempt = self.leases.of(fence)
            if attempt is not None and self._on.requeue:
                self._take_back(attempt, effects, may_return=event.may_return)
        self._fleet_changed(effects)

    def _take_back(self, attempt: Attempt, effects: list[ev.Effect], *, may_return: bool = False) -> None:
        entry = attempt.entry
        self.leases.release(attempt)
        if entry.attempt is not None:
            entry.count("node_down")
            _attempted(attempt.lease, _LOST, effects)
            return
        self._lose(entry, attempt.lease, effects, may_return=may_return)

    def _wait_no_more(self, entry: Entry, effects: list[ev.Effect], *, may_return: bool = False) -> None:
        """What an earlier controller leased is run anew."""
        lease = entry.lost
        assert lease is not None
        self._returning.forget(entry)
        self._lose(entry, lease, effects, may_return=may_return)

    def _lose(self, entry: Entry, lease: Lease, effects: list[ev.Effect], *, may_return: bool) -> None:
        """It waits for another worker, or for this one to come back with it."""
        entry.avoid_too(lease.worker)
        if not entry.may_again("node_down", self.limits):
            outcome = Outcome(
                "node_down",
                None,
                f"{entry.losses} workers were lost while they ran this action; it may be what kills them",
            )
            self._finish(entry, outcome, effects, lease)
            return
        _attempted(lease, _LOST, effects)
        if may_return:
            self._returning.expect(entry, lease)
        self._queue_again(entry, effects)

    def _fleet_changed(self, effects: list[ev.Effect]) -> None:
        for number, outcome in list(self.dispatch.hopeless()):
            self._finish(self.entries[number], outcome, effects)
        self._place(effects)

    def _drain(self, event: ev.Drain, effects: list[ev.Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.draining = True
            self.dispatch.closed_or_opened(worker)

    def _cordon(self, event: ev.Cordon, effects: list[ev.Effect]) -> None:
        if (worker := self.workers.get(event.worker)) is not None:
            worker.cordoned = event.cordoned
            self.dispatch.closed_or_opened(worker)
            self._place(effects)

    def _resources_changed(self, event: ev.ResourcesChanged, effects: list[ev.Effect]) -> None:
        self.dispatch.resources_changed()
        self._fleet_changed(effects)

    def _heartbeat(self, event: ev.Heartbeat, effects: list[ev.Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        deadline_s = self.now_s + self.limits.lease_s
        worker = self.workers.get(event.worker)
        for fence in event.fences:
            attempt = self.leases.of(fence)
            if attempt is not None and attempt.lease.worker == event.worker:
                attempt.deadline_s = deadline_s
            elif worker is None or not self._adopt(worker, fence, effects):
                effects.append(ev.Stop(event.worker, fence, "the lease was lost"))
        if worker is not None and worker.silent:
            worker.silent = False
            self.dispatch.closed_or_opened(worker)
            self._place(effects)
        # With each beat and not with each lease: what ends sooner than the next beat has nothing to wait for.
        if worker is not None and (entry := self.dispatch.ahead(worker)) is not None:
            effects.append(ev.Prefetch(event.worker, entry.wanted.key))

    # Time passes.

    def _tick(self, event: ev.Tick, effects: list[ev.Effect]) -> None:
        self.now_s = max(self.now_s, event.now_s)
        if self.dispatch.give_up(self.now_s):
            self._fleet_changed(effects)
        if not self._on.requeue:
            return
        late = False
        for entry in self._returning.due(self.now_s):
            self._wait_no_more(entry, effects, may_return=True)
            late = True
        while (attempt := self.leases.expired(self.now_s)) is not None:
            # Nobody hears it, so it is given nothing that would be lost too; what it runs may go on once it is heard.
            if (worker := attempt.worker) is not None and not worker.silent:
                worker.silent = True
                self.dispatch.closed_or_opened(worker)
            effects.append(ev.Unheard(attempt.lease.fence))
            self._take_back(attempt, effects, may_return=True)
            late = True
        if late:
            self._place(effects)
        self._speculate(effects)

    def _speculate(self, effects: list[ev.Effect]) -> None:
        """A second attempt for what runs much longer than its like, where a worker has room that nobody waits for."""
        while (attempt := self.leases.straggling(self.now_s)) is not None:
            entry, demand = attempt.entry, attempt.entry.demand
            if entry.second is not None or attempt.ended or not entry.followers:
                continue
            if demand is None or demand.queue.waiting or entry.attempts >= self.limits.attempts_max:
                continue
            worker = self.dispatch.room.choose(demand, (), unlike=attempt.lease.worker)
            if worker is None:
                self.leases.look_at(attempt.lease.fence, self.now_s + self.limits.straggler_min_s)
                continue
            entry.second = self._begin(entry, worker, effects)


_HANDLERS: Final[dict[type, Callable[..., None]]] = {
    ev.Want: SchedulerCore._want,
    ev.Restore: SchedulerCore._restore,
    ev.Found: SchedulerCore._found,
    ev.WorkerUp: SchedulerCore._worker_up,
    ev.WorkerLost: SchedulerCore._worker_lost,
    ev.Drain: SchedulerCore._drain,
    ev.Cordon: SchedulerCore._cordon,
    ev.ResourcesChanged: SchedulerCore._resources_changed,
    ev.Heartbeat: SchedulerCore._heartbeat,
    ev.Accepted: SchedulerCore._accepted,
    ev.CommandEnded: SchedulerCore._command_ended,
    ev.Done: SchedulerCore._done,
    ev.Published: SchedulerCore._published,
    ev.Cancel: SchedulerCore._cancel,
    ev.Tick: SchedulerCore._tick,
}
