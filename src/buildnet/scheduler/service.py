"""The scheduler as a service: it feeds the core and applies its effects. One loop owns it.

It decides nothing: every decision is `core.step`. A lookup or publication that fails never strands a follower. What a
client or a worker is told is kept first, where a store is given: the next controller goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from buildnet.errors import BuildNetError, NodeDown
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.entry import Entry, Value
from buildnet.model.node import WorkerOffer
from buildnet.ports import (
    ActionCache,
    Clock,
    Follower,
    OperationStore,
    Publisher,
    ResourceMatcher,
    WorkerLink,
)
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.alarm import Alarm
from buildnet.scheduler.holds import LiveActions
from buildnet.scheduler.keeping import Keeping
from buildnet.scheduler.lookups import Lookups
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.operations import Operations
from buildnet.scheduler.recovery import Recovered

log = logging.getLogger(__name__)

# Of a long queue that an earlier controller left; the first of them before anybody is served.
_ENTERED_AT_ONCE = 500
_RETRY_AFTER_S = 2.0

Recorder = Callable[[Entry], None]


class Scheduler:
    """Submit, follow and cancel operations; join, hear and lose workers."""

    def __init__(
        self,
        *,
        cache: ActionCache,
        publisher: Publisher,
        record: Recorder,
        clock: Clock,
        new_id: Callable[[], str],
        attempt_ended: Callable[[int], None] = lambda fence: None,
        operation_ended: Callable[[Operation], None] = lambda operation: None,
        limits: core.Limits = core.Limits(),  # noqa: B008 - frozen
        fence_first: int = 1,
        live: LiveActions | None = None,
        resources: ResourceMatcher = core.NO_RESOURCES,
        store: OperationStore | None = None,
        stamp: Callable[[bytes, int], bytes] = lambda result, queued_at_unix_ms: result,
    ) -> None:
        """`store`: what outlives this process; without one nothing does. `record` may lose submissions and leases with
        the process: the next tells them again. `stamp` writes into a result when it was asked for, which its worker
        does not know.
        """
        self._stamp = stamp
        self._live = live
        self._keeping = None if store is None else Keeping(store, self._spawn)
        self.known = Operations(clock, live, self._keeping, operation_ended)
        # Of an earlier controller, in the order of acceptance: the core does not have them yet.
        self._backlog: dict[str, None] = {}
        self._unheld: list[ActionKey] = []
        self._accepting = True
        self.serving = asyncio.Event()
        self._quiet = asyncio.Event()
        self._publishing: set[int] = set()
        self._lookups = Lookups(cache, self._step, self._spawn)
        self._alarm = Alarm(clock, lambda now_s: self._step(ev.Tick(now_s)))
        self._core = core.SchedulerCore(limits, fence_first=fence_first, resources=resources)
        self._publisher = publisher
        self._record = record
        self._clock = clock
        self._new_id = new_id
        self._attempt_ended = attempt_ended
        self._links: dict[str, WorkerLink] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Serve until cancelled: hold the tasks of lookups and publications, and tick when a deadline comes."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self.serving.set()
            self._alarm.due(self._core.next_deadline_s(), self._core.now_s)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._alarm.stop()
                if self._keeping is not None:
                    self._keeping.stop()

    def restore(self, recovered: Recovered) -> None:
        """Go on with what an earlier controller left, before the first client and worker come. `serving` is set."""
        if self._keeping is not None:
            self._keeping.restore(recovered)
        self._core.now_s = self._clock.monotonic_s()
        self._backlog = dict.fromkeys(self.known.restore(recovered))
        self._core.to_come = len(self._backlog)
        if recovered.waiting or recovered.graphs:
            self._core.expect_workers()
        # First what a worker may come back with.
        for waiting in recovered.waiting:
            if waiting.lease is not None:
                self._enter(waiting.operation.id, waiting.lease)
        for lease, outcome in recovered.redo:
            # As if its worker said so now: it said so before, and will not again.
            self._step(ev.Done(lease.worker, lease.fence, outcome))
        since_s = self._core.now_s
        self._spawn(self._enter_backlog(self._enter_some(since_s), since_s))

    def _enter(self, operation_id: str, lease: Lease | None = None, since_s: float | None = None) -> None:
        """Give the core an operation of an earlier controller, if it has not ended meanwhile."""
        del self._backlog[operation_id]
        self._core.to_come = len(self._backlog)
        wanted = self.known[operation_id].wanted
        if self._live is not None and self._live.began(wanted.key):
            self._unheld.append(wanted.key)
        for effect in self._core.step(ev.Restore(operation_id, wanted, lease, since_s)):
            self._apply(effect)

    def _enter_some(self, since_s: float) -> Sequence[ActionKey]:
        """Give the core some of the backlog; what is to be held for it."""
        for operation_id in list(islice(self._backlog, _ENTERED_AT_ONCE)):
            self._enter(operation_id, since_s=since_s)
        self._lookups.begin()
        unheld, self._unheld = self._unheld, []
        return unheld

    async def _enter_backlog(self, unheld: Sequence[ActionKey], since_s: float) -> None:
        """Give the core the rest, while clients and workers are served."""
        while unheld or self._backlog:
            if unheld and self._live is not None:
                await self._live.hold_each(unheld)
            unheld = self._enter_some(since_s)
            await asyncio.sleep(0)

    def stop_accepting(self) -> None:
        """Refuse new operations, and give no more work to workers: this process is to end."""
        self._accepting = False
        for node in list(self._core.workers):
            self._step(ev.Drain(node))

    @property
    def accepting(self) -> bool:
        """Whether operations are accepted."""
        return self._accepting

    def check_accepting(self) -> None:
        """Refuse what is new, if this process is to end.

        Raises:
            NodeDown: it is.
        """
        if not self._accepting:
            raise NodeDown("the controller is being stopped; ask again in a moment", retry_after_s=_RETRY_AFTER_S)

    async def quiet(self) -> None:
        """Return once no lease goes on and nothing is being published."""
        while self._core.busy or self._publishing:
            self._quiet.clear()
            await self._quiet.wait()

    # Clients.

    def watch(self, listener: Callable[[str], None]) -> None:
        """Hear the id of every operation that changes, for ever."""
        self.known.watch(listener)

    def submit(self, wanted: Wanted, follower: Follower, *, operation_id: str = "", client_id: str = "") -> str:
        """Ask for a result; `follower` hears of every change, now and later. Returns the operation's id.

        `operation_id` is of one that was announced; else the operation is a new one. The id of a new one may be told to
        nobody before `kept` has returned.

        Raises:
            NodeDown: this controller is stopping.
            Overloaded: the store cannot keep up.
        """
        self.check_accepting()
        operation = self.known.get(operation_id) if operation_id else None
        if operation is None:
            (number,) = self.known.numbered(1)
            operation = Operation(operation_id or self._new_id(), wanted, self._clock.now_unix_ms(), number, client_id)
        operation.wanted = wanted
        if self._keeping is not None:
            self._keeping.begin(operation.stored())
        operation.withdraw = None
        operation.followers.append(follower)
        self.known.add(operation)
        if self._live is not None and self._live.began(wanted.key):
            self._spawn(self._live.hold(wanted.key))
        self._step(ev.Want(operation.id, wanted))
        return operation.id

    async def kept(self, *operation_ids: str) -> None:
        """Return once these operations, and all before them, outlive this process. Else they are cancelled.

        Raises:
            StorageFull, StateCorrupt: they cannot be kept.
        """
        if self._keeping is None:
            return
        try:
            await self._keeping.kept()
        except BuildNetError:
            for operation_id in operation_ids:
                self.cancel(operation_id)
            raise

    async def told(self) -> None:
        """Return once all that was decided by now outlives this process, and those who follow know it.

        Raises:
            StorageFull, StateCorrupt: it cannot be kept.
        """
        if self._keeping is None:
            return
        await self._keeping.acted()

    def follow(self, operation_id: str, follower: Follower) -> None:
        """Hear of an operation's present state at once and of its changes later. Unknown ids are a bug."""
        self.known.follow(operation_id, follower)

    def unfollow(self, operation_id: str, follower: Follower) -> None:
        """Hear no more. The operation goes on: a client that went away may come back and wait."""
        self.known.unfollow(operation_id, follower)

    def cancel(self, operation_id: str) -> None:
        """Stop an operation; one that has ended stays as it ended."""
        operation = self.known.get(operation_id)
        if operation is not None and operation.withdraw is not None:
            operation.withdraw()
            return
        if operation_id in self._backlog:
            self._enter(operation_id)
        self._step(ev.Cancel(operation_id))

    def find_operation(self, operation_id: str) -> Operation | None:
        """An operation by its id."""
        return self.known.get(operation_id)

    def operations(self) -> Iterator[Operation]:
        """What is known, newest first."""
        return self.known.newest_first()

    # Workers.

    def worker_joined(
        self, offer: WorkerOffer, link: WorkerLink, running: tuple[int, ...], *, cordoned: bool = False
    ) -> None:
        """A session began."""
        self._links[offer.node] = link
        self._end_attempts_of(offer.node)
        self._step(ev.WorkerUp(offer, running, cordoned or not self._accepting))

    def worker_lost(self, node: str, *, may_return: bool = True) -> None:
        """A session ended."""
        self._links.pop(node, None)
        self._end_attempts_of(node)
        self._step(ev.WorkerLost(node, may_return))

    def cordon(self, node: str, cordoned: bool) -> None:
        """A worker is given no more work, or work again."""
        self._step(ev.Cordon(node, cordoned))

    def leases_of(self, node: str) -> tuple[int, ...]:
        """Fences of what a worker was given and has not ended."""
        worker = self._core.workers.get(node)
        return tuple(sorted(worker.fences)) if worker is not None else ()

    def used_of(self, node: str) -> Amounts:
        """What is reserved of a worker for the attempts that it was given."""
        worker = self._core.workers.get(node)
        return NOTHING if worker is None else worker.used

    def leased(self, node: str, fence: int) -> bool:
        """Whether a worker holds this lease."""
        worker = self._core.workers.get(node)
        return worker is not None and fence in worker.fences

    def heartbeat(self, node: str, fences: tuple[int, ...]) -> None:
        """A worker lives."""
        worker = self._core.workers.get(node)
        if not fences and (worker is None or not worker.silent):
            # Nothing is renewed. A step for each beat of an idle fleet would look for the next deadline each time.
            return
        self._step(ev.Heartbeat(node, fences, self._clock.monotonic_s()))

    def accepted(self, node: str, fence: int) -> None:
        """A worker has begun an attempt."""
        self._step(ev.Accepted(node, fence))

    def command_ended(self, node: str, fence: int) -> None:
        """The command of an attempt has ended, and its outputs are on their way."""
        self._step(ev.CommandEnded(node, fence))

    def done(self, node: str, fence: int, outcome: Outcome) -> None:
        """A worker has ended an attempt."""
        self._attempt_ended(fence)
        self._step(ev.Done(node, fence, outcome))

    def drain(self, node: str) -> None:
        """A worker takes no more."""
        self._step(ev.Drain(node))

    def resources_changed(self) -> None:
        """What workers offer beyond their properties has changed."""
        self._step(ev.ResourcesChanged())

    def statistics(self) -> dict[str, int]:
        """Counts for a status page."""
        return {
            "queued": self._core.queue_length + len(self._backlog),
            "entries": len(self._core.entries),
            "workers": len(self._core.workers),
            "operations": len(self.known),
        }

    def _end_attempts_of(self, node: str) -> None:
        # No Stop is due for what a lost worker ran, and its readers must not wait for more.
        worker = self._core.workers.get(node)
        for fence in sorted(worker.fences if worker is not None else ()):
            self._attempt_ended(fence)

    # Effects.

    def _step(self, event: ev.Event) -> None:
        # Leases that begin now must not begin at an older time.
        self._core.now_s = max(self._core.now_s, self._clock.monotonic_s())
        effects = self._core.step(event)
        # A worker keeps its result until that is published: a start after a kill may have to ask for it again.
        self._publishing |= {effect.lease.fence for effect in effects if isinstance(effect, ev.Publish)}
        for effect in effects:
            self._apply(effect)
        self._lookups.begin()
        if self._tasks is not None:
            self._alarm.due(self._core.next_deadline_s(), self._core.now_s)
        self._quiet.set()

    def _apply(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Tell():
                self.known.tell(effect)
            case ev.Lookup():
                self._lookups.add(effect)
            case ev.Publish():
                self._spawn(self._publish(effect))
            case ev.Assign():
                self._assign(effect)
            case ev.Prefetch():
                if (link := self._links.get(effect.worker)) is not None:
                    link.prefetch(effect.key)
            case ev.Stop():
                self._attempt_ended(effect.fence)
                if (link := self._links.get(effect.worker)) is not None:
                    link.cancel(effect.fence, effect.reason)
            case ev.Unheard():
                self._attempt_ended(effect.fence)
            case ev.Settle():
                if self._keeping is None:
                    self._settle(effect.worker, effect.fence)
                elif effect.fence not in self._publishing:
                    self._keeping.once(partial(self._settle_kept, effect.worker, effect.fence))
            case ev.Record():
                self._record(_entry_of(effect, self._clock.now_unix_ms()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None, "run() serves"
        return self._tasks.create_task(work)

    def _assign(self, effect: ev.Assign) -> None:
        lease, operation = effect.lease, self.known.get(effect.operation)
        if self._keeping is None or operation is None:
            self._send(lease)
            return
        # Kept first: of the leases that workers may hold, the newest of an action is then always known.
        self._keeping.lease(lease, operation.stored())

        def send(error: BuildNetError | None) -> None:
            if error is not None:
                outcome = Outcome(error.code, None, f"the lease could not be kept: {error.message}", lease.worker)
                self._step(ev.Done(lease.worker, lease.fence, outcome))
            elif self._core.holds(lease.fence):
                self._send(lease)

        self._keeping.once(send)

    def _settle_kept(self, node: str, fence: int, error: BuildNetError | None) -> None:
        # One that cannot be kept is told again by its worker, in its next session.
        if error is None:
            self._settle(node, fence)

    def _settle(self, node: str, fence: int) -> None:
        if (link := self._links.get(node)) is not None:
            link.settle(fence)

    def _send(self, lease: Lease) -> None:
        if (link := self._links.get(lease.worker)) is not None:
            link.assign(lease)

    async def _publish(self, effect: ev.Publish) -> None:
        try:
            outcome = self._stamped(effect)
            outcome = await self._publisher.publish(effect.lease, outcome, cacheable=effect.cacheable)
        except BuildNetError as error:
            missing = tuple(error.fields.get("digests", ())) if error.code == "blobs_missing" else ()
            outcome = Outcome(error.code, None, error.message, effect.lease.worker, missing=missing)
        except Exception:
            log.exception("publication failed inside")
            outcome = Outcome("internal", None, "publication failed; the server's log has the details")
        self._publishing.discard(effect.lease.fence)
        if self._keeping is not None:
            self._settle(effect.lease.worker, effect.lease.fence)
        self._step(ev.Published(effect.entry, outcome))

    def _stamped(self, effect: ev.Publish) -> Outcome:
        entry = self._core.entries.get(effect.entry)
        followers = entry.followers if entry is not None else []
        known = [one for id_ in followers if (one := self.known.get(id_)) is not None]
        if effect.outcome.result is None or not known:
            return effect.outcome
        queued_at_unix_ms = min(operation.submitted_at_unix_ms for operation in known)
        return replace(effect.outcome, result=self._stamp(effect.outcome.result, queued_at_unix_ms))


def _entry_of(effect: ev.Record, now_unix_ms: int) -> Entry:
    fields: dict[str, Value] = {
        "action": effect.key.digest.text,
        "instance": effect.key.instance,
    }
    if effect.operation:
        fields["operation"] = effect.operation
    lease: Lease | None = effect.lease
    if lease is not None:
        fields |= {"worker": lease.worker, "fence": lease.fence, "attempt": lease.attempt}
    if effect.outcome is not None:
        fields |= {"error": effect.outcome.code, "message": effect.outcome.message[:1000]}
    return Entry(effect.kind, now_unix_ms, fields)
