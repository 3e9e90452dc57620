"""A thousand workers and a hundred thousand actions under faults from a seed: `python -m tests.sim.large [SEED]`.

Time is simulated. Workers are killed and return; they are cut off for a while, so that what they say comes late, what
they are told is lost, and long enough that their session ends; messages are lost; actions fail by their worker. Some
actions are wanted again meanwhile, mostly by others, and some operations are cancelled. The controller is killed too,
in the middle of a step: the next one starts from what the real bookkeeping (scheduler/keeping.py) had kept by then, by
the real decisions (scheduler/recovery.py), while workers run on and come back soon, late or never.

Every step is checked for what it touched: fences rise, one publication of an action at a time and of a fence in force
alone, an operation is told its end once, no worker holds more than it has, the counts of leases, of what waits and of
who follows agree, and whom a decision was for had least of the fleet for its weight. All books are checked in full
every so many steps, after each restart and at the end, when every action has ended exactly once.

Over a restart: what was accepted is known, what was told has not ended in another way, no fence is used or published
again, and what a worker still runs is leased to nobody else before it is back or its time to come back is over.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.model.operation import Intended, StoredOperation
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.keeping import Keeping
from buildnet.scheduler.limits import ORGANISATION, Quota, Quotas
from buildnet.scheduler.recovery import Recovered, decide
from buildnet.scheduler.share import Share
from tests.sim.kept import TornOperations

ORGANISATIONS = {"flood": 1, "heavy": 3, "bounded": 1, "trickle": 1}
QUOTAS = Quotas({name: Quota(weight, 300 if name == "bounded" else None) for name, weight in ORGANISATIONS.items()})
ASKED = (
    *(NOTHING, NOTHING, NOTHING, Amounts(250, 1 << 28), Amounts(1000, 2 << 30), Amounts(4000, 8 << 30)),
    Amounts(1000, 1 << 30, gpus=1),
)
RUN_S_MAX = 30.0
SESSION_S = (3.0, 15.0)
"""A session ends when its connection breaks, or when nothing was heard for long: sooner or later than a lease."""
SAME_AS = (0.05, 500)
"""How many want what one of the last so many wanted."""
CANCELLED = (0.03, 30.0)
"""How many operations are cancelled, and after how many seconds in the mean."""
KILLED = (1 / 40, 200)
"""In how many seconds the controller is killed, and within how many steps of such a second."""
DOWN_S = (0.2, 8.0)
DIAL_S_MAX = 5.0
"""How soon a worker is back that knows of no trouble but the controller's."""
WAIT_OF_TRICKLE_S_MAX = 10 * RUN_S_MAX
"""One that waits has its turn at once; then room is kept free while what runs ends, and a fault may take that away."""


@dataclass
class Summary:
    """What a run came to."""

    steps: int = 0
    assigned: int = 0
    told: dict[str, str] = field(default_factory=dict)
    killed: int = 0
    cut: int = 0
    broken: int = 0
    late: int = 0
    adopted: int = 0
    entered: int = 0
    faults: int = 0
    restarts: int = 0
    awaited: int = 0
    taken_up: int = 0
    checked: int = 0
    simulated_s: float = 0.0
    waits_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Back:
    """A worker that was killed is there again."""

    node: str


@dataclass(frozen=True)
class Broken:
    """The controller has heard nothing for so long that the session of a worker that is cut off ends."""

    node: str


@dataclass(frozen=True)
class Healed:
    """A worker that was cut off is heard again, with all that it has to say."""

    node: str


@dataclass(frozen=True)
class Ledgered:
    """The ledger has a result that was to be published."""

    entry: int


Happening = ev.Event | Back | Broken | Healed | Ledgered


class KilledError(Exception):
    """The controller is killed, between what it wrote and what it does once that is kept."""


class Large:
    """The core, its workers' clocks, and what each action is doing."""

    def __init__(self, seed: int, workers: int, actions: int, check_every: int) -> None:
        self.random = random.Random(seed)
        self.limits = core.Limits(
            queue_length_max=1 << 30,
            quotas=QUOTAS,
            attempts_max=1000,
            losses_max=1000,
            faults_max=1000,
            lease_s=8.0,
        )
        self.core = core.SchedulerCore(self.limits)
        self.seen = Summary()
        self.actions, self.check_every = actions, check_every
        self.now_s = 0.0
        self.serial = itertools.count()
        self.beat_at_s = 1.0
        self.asked = 0
        self.todo: list[tuple[float, int, Happening]] = []
        self.running: dict[str, dict[int, None]] = {f"w{n}": {} for n in range(workers)}
        # What each has run and was not told to be settled: it says so again in its next session.
        self.results: dict[str, dict[int, ev.Done]] = {node: {} for node in self.running}
        # Workers that live, those of them that are cut off, and those that have a session.
        self.up: set[str] = set()
        self.cut: set[str] = set()
        self.session: set[str] = set()
        # How many leases each worker held when it was last touched, and all together.
        self.held: dict[str, int] = {}
        self.held_sum = 0
        self.asked_at_s: dict[str, tuple[str, float]] = {}
        self.wanted: dict[str, Wanted] = {}
        self.cancelled: set[str] = set()
        self.publishing: dict[int, Lease] = {}
        self.fence = 0
        # What outlives the controller, what it does once all is kept that it wrote, and how many steps it has left.
        self.store = TornOperations()
        self.keeping = Keeping(self.store, spawned)
        self.due: list[Callable[[], None]] = []
        self.named: set[str] = set()
        self.ledger: dict[int, int] = {}
        # The first is killed amid the first flood, while most steps accept something.
        self.steps_left: int | None = self.random.randrange(actions)
        self.cancelled_again: set[str] = set()
        # Leases of the controller before: of these actions, until then, by the worker that may come back with them.
        self.awaited: dict[ActionKey, Lease] = {}
        self.awaited_at: dict[str, list[Lease]] = {}
        self.awaited_until_s = 0.0
        self.nodes = tuple(self.running)
        for node in self.nodes:
            self.join(node)

    def offer(self, node: str) -> WorkerOffer:
        number = int(node[1:])
        cpus = (4, 8, 16)[number % 3]
        capacity = Amounts(1000 * cpus, cpus << 31, 1 << 40, 2 if number % 10 == 0 else 0)
        return WorkerOffer(node, "boot", cpus, frozenset({("os", "linux")}), capacity=capacity)

    def at(self, after_s: float, event: Happening) -> None:
        heapq.heappush(self.todo, (self.now_s + after_s, next(self.serial), event))

    def join(self, node: str) -> None:
        """It has a session, and tells of what it runs and of what it has to say."""
        self.up.add(node)
        self.session.add(node)
        told = [*self.running[node], *self.results[node]]
        for lease in self.awaited_at.pop(node, ()):
            if lease.fence not in told:
                self.awaited.pop(lease.key, None)
        self.step(ev.WorkerUp(self.offer(node), tuple(told)))

    def want(self, number: int) -> None:
        # The trickle comes all along, one at a time; the others come as floods.
        organisation = "trickle" if number % 100 == 0 else ("flood", "heavy", "bounded")[number % 3]
        share, back = SAME_AS
        key = max(0, number - self.random.randrange(1, back)) if self.random.random() < share else number
        wanted = Wanted(
            ActionKey("", Digest(f"{key:064x}", 1)),
            frozenset({("os", "linux")}),
            60.0,
            priority=self.random.randrange(-3, 4),
            skip_cache_lookup=True,
            asked=ASKED[key // 7 % len(ASKED)],
            share=(organisation, f"user{number % 7}", f"run{number % 21}"),
        )
        self.asked_at_s[str(number)] = (organisation, self.now_s)
        self.wanted[str(number)] = wanted
        share, after_s = CANCELLED
        if self.random.random() < share:
            self.at(self.random.expovariate(1 / after_s), ev.Cancel(str(number)))
        self.ask(str(number))

    def ask(self, operation: str) -> None:
        """Who is told no name asks again."""
        self.keeping.begin(self.stored(operation))
        self.due.append(partial(self.named.add, operation))
        self.step(ev.Want(operation, self.wanted[operation]))

    def stored(self, operation: str, outcome: Outcome | None = None) -> StoredOperation:
        ended_at_unix_ms = None if outcome is None else 0
        number = int(operation)
        return StoredOperation(number, operation, self.wanted[operation], 0, "", outcome, ended_at_unix_ms)

    def step(self, event: ev.Event) -> None:
        self.core.now_s = max(self.core.now_s, self.now_s)
        self.seen.steps += 1
        ended = self.core.leases.of(event.fence) if isinstance(event, ev.Done) else None
        effects = self.core.step(event)
        assigned = [effect for effect in effects if isinstance(effect, ev.Assign)]
        for effect in effects:
            if isinstance(effect, ev.Publish):
                assert ended is not None, "nothing is published of a fence that is stale"
                assert effect.lease is ended.lease
            self.apply(effect)
        self.keep()
        if isinstance(event, ev.Done):
            self.seen.late += ended is None
            if len(assigned) == 1:
                self.check_turn(assigned[0].lease.fence)
        self.check_counts(event, effects)
        if self.seen.steps % self.check_every == 0:
            self.check_books()

    def keep(self) -> None:
        """What was written is kept, and what waited for that is done; or the controller is killed before."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise KilledError
        self.store.keep()
        due, self.due = self.due, []
        for act in due:
            act()

    def check_counts(self, event: ev.Event, effects: list[ev.Effect]) -> None:
        """What the step touched, and the sums over everything that follow from it."""
        touched = {effect.lease.worker for effect in effects if isinstance(effect, ev.Assign)}
        touched.update(effect.worker for effect in effects if isinstance(effect, ev.Stop))
        match event:
            case ev.Done() | ev.WorkerLost():
                touched.add(event.worker)
            case ev.WorkerUp():
                touched.add(event.offer.node)
            case ev.Tick():
                # A lease that ran out may have been anybody's.
                touched.update(self.held)
        for node in touched:
            worker = self.core.workers.get(node)
            now = 0 if worker is None else len(worker.fences)
            self.held_sum += now - self.held.get(node, 0)
            self.held[node] = now
        shares = self.core.dispatch.shares.root.children.values()
        assert self.held_sum == len(self.core.leases), "every slot is held for a lease"
        assert sum(share.running for share in shares) == self.held_sum
        assert sum(share.queued for share in shares) >= self.core.queue_length
        assert self.core.following == len(self.asked_at_s), "nobody is stranded, and nobody is told twice"

    def apply(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Assign(lease=lease, operation=operation):
                assert lease.fence > self.fence, "fences rise"
                self.fence = lease.fence
                self.seen.assigned += 1
                worker = self.core.workers[lease.worker]
                assert len(worker.fences) <= worker.offer.attempts_max
                assert worker.offer.capacity is not None
                assert worker.used.within(worker.offer.capacity), "no worker holds more than it has"
                awaited = self.awaited.pop(lease.key, None)
                assert awaited is None or self.now_s >= self.awaited_until_s, "its worker may still be back with it"
                self.keeping.lease(lease, self.stored(operation))
                self.due.append(partial(self.send, lease))
            case ev.Publish(entry=entry, lease=lease, outcome=outcome):
                assert entry not in self.publishing, "one publication at a time"
                self.publishing[entry] = lease
                self.store.intend(lease.fence, Intended(outcome, cacheable=True, ledger_size=len(self.ledger)))
                self.due.append(partial(self.at, 0.005, Ledgered(entry)))
            case ev.Settle(worker=node, fence=fence):
                if all(lease.fence != fence for lease in self.publishing.values()):
                    self.due.append(partial(self.settle, node, fence))
            case ev.Stop(worker=node, fence=fence) if node not in self.cut:
                self.running[node].pop(fence, None)
                self.results[node].pop(fence, None)
            case ev.Record(kind="action.adopted", lease=lease):
                assert lease is not None
                assert lease.fence in self.running[lease.worker] or lease.fence in self.results[lease.worker]
                self.seen.adopted += 1
                self.seen.taken_up += self.awaited.pop(lease.key, None) is not None
            case ev.Record(kind="action.submitted"):
                self.seen.entered += 1
            case ev.Record(kind="action.cancelled", key=key):
                self.awaited.pop(key, None)
            case ev.Tell(operation=operation, stage="completed", outcome=outcome) if outcome is not None:
                self.keeping.end(self.stored(operation, outcome))
                if outcome.code == "ok":
                    # It would end in the same way again (scheduler/operations.py).
                    self.tell(operation, outcome)
                else:
                    self.due.append(partial(self.tell, operation, outcome))

    def send(self, lease: Lease) -> None:
        """The lease is kept."""
        if not self.core.holds(lease.fence) or lease.worker in self.cut or self.random.random() < 0.001:
            return  # the message is lost: the lease runs out
        self.running[lease.worker][lease.fence] = None
        ran_s = self.random.expovariate(1 / 4.0)
        code = "sandbox_failed" if self.random.random() < 0.002 else "ok"
        self.at(min(ran_s, RUN_S_MAX), ev.Done(lease.worker, lease.fence, Outcome(code, b"r")))

    def settle(self, node: str, fence: int) -> None:
        if node not in self.cut:
            self.results[node].pop(fence, None)

    def tell(self, operation: str, outcome: Outcome) -> None:
        assert operation not in self.seen.told, "told once"
        if operation in self.cancelled and outcome.code == "ok":
            assert operation in self.cancelled_again, "what was cancelled has no result"
            self.cancelled.discard(operation)
        self.seen.told[operation] = outcome.code
        organisation, asked_at_s = self.asked_at_s.pop(operation)
        waits = self.seen.waits_s
        waits[organisation] = max(waits.get(organisation, 0.0), self.now_s - asked_at_s)

    def check_turn(self, fence: int) -> None:
        """The organisation that a single decision was for had no more than any other that waits for the same."""
        attempt = self.core.leases.of(fence)
        assert attempt is not None
        entry = attempt.entry
        assert entry.demand is not None
        chosen: Share = entry.share
        while chosen.depth > ORGANISATION:
            assert chosen.parent is not None
            chosen = chosen.parent
        had = (chosen.used - entry.demand.cost) / chosen.weight
        for other in self.core.dispatch.shares.root.children.values():
            if other is not chosen and entry.demand.queue in other.branches and other.admits(entry.demand.cpu_milli):
                assert had <= other.used / other.weight, f"{chosen.name} had more than {other.name}"
        self.seen.checked += 1

    def check_books(self) -> None:
        attempts = [entry.attempt for entry in self.core.entries.values() if entry.attempt is not None]
        held = sorted(fence for worker in self.core.workers.values() for fence in worker.fences)
        assert held == sorted(attempt.lease.fence for attempt in attempts), "every slot is held for a lease"
        shares = self.core.dispatch.shares.root.children.values()
        assert sum(share.running for share in shares) == len(attempts)
        queued = [entry for entry in self.core.entries.values() if entry.state == "queued"]
        assert self.core.queue_length == len(queued)
        assert sum(share.queued for share in shares) == sum(1 + len(entry.also or ()) for entry in queued)
        following = {operation for entry in self.core.entries.values() for operation in entry.followers}
        assert following == set(self.asked_at_s), "nobody is stranded, and nobody is told twice"

    def fault(self) -> None:
        """A machine dies, or nobody hears it for a while, which is longer or shorter than its session lasts."""
        node = self.random.choice(self.nodes)
        if node not in self.up or node in self.cut:
            return
        after_s = self.random.uniform(2.0, 40.0)
        if self.random.random() < 0.5:
            self.up.discard(node)
            self.session.discard(node)
            self.running[node].clear()
            self.results[node].clear()
            self.seen.killed += 1
            self.at(after_s, Back(node))
            self.step(ev.WorkerLost(node))
            return
        self.cut.add(node)
        self.seen.cut += 1
        self.at(after_s, Healed(node))
        broken_s = self.random.uniform(*SESSION_S)
        if after_s > broken_s:
            self.at(broken_s, Broken(node))

    def beat(self) -> None:
        """A second passed: workers renew their leases, some do not; machines fail, the controller's too."""
        share, steps_max = KILLED
        if self.random.random() < share and self.steps_left is None:
            self.steps_left = self.random.randrange(steps_max)
        for node in self.nodes:
            if node not in self.session or node in self.cut or not self.running[node]:
                continue
            if self.random.random() > 0.001:
                self.step(ev.Heartbeat(node, tuple(self.running[node]), self.now_s))
        self.step(ev.Tick(self.now_s))
        for _ in range(max(1, len(self.running) // 200)):
            self.fault()

    def happen(self, event: Happening) -> None:
        """What was due."""
        match event:
            case Back(node):
                self.join(node)
            case Broken(node):
                self.seen.broken += 1
                self.session.discard(node)
                self.step(ev.WorkerLost(node))
            case Healed(node):
                if node not in self.session:
                    self.join(node)
                self.cut.discard(node)
                for done in list(self.results[node].values()):
                    self.step(done)
            case ev.Done(worker=node, fence=fence):
                if node not in self.up or fence not in self.running[node]:
                    return  # it died with its worker, or was stopped
                self.running[node].pop(fence)
                self.seen.faults += event.outcome.code != "ok"
                self.results[node][fence] = event
                if node not in self.cut:
                    self.step(event)
            case ev.Cancel(operation=operation):
                if operation in self.asked_at_s:
                    self.cancelled.add(operation)
                self.step(event)
            case Ledgered(entry):
                fence = self.publishing[entry].fence
                assert fence not in self.ledger, "published once"
                self.ledger[fence] = len(self.ledger)
                self.at(0.005, ev.Published(entry, Outcome("ok", b"r", entry_index=self.ledger[fence])))
            case ev.Published(entry=entry):
                lease = self.publishing.pop(entry)
                self.settle(lease.worker, lease.fence)
                self.step(event)

    def restart(self) -> None:
        """The controller is gone; the next one starts a while later, and workers come back to it."""
        self.seen.restarts += 1
        stored = self.store.torn(self.random)
        self.steps_left = None
        self.due.clear()
        self.publishing.clear()
        self.session.clear()
        self.absent(self.now_s + self.random.uniform(*DOWN_S))
        self.core = core.SchedulerCore(self.limits, fence_first=(self.seen.restarts << 32) + 1)
        self.core.now_s = self.now_s
        self.held, self.held_sum = {}, 0
        since = min((held.intended.ledger_size for held in stored.leases if held.intended), default=0)
        recovered = decide(stored, {fence: index for fence, index in self.ledger.items() if index >= since}, 0)
        self.store = TornOperations(stored)
        self.keeping = Keeping(self.store, spawned)
        self.keeping.restore(recovered)
        for ended in recovered.ended:
            assert ended.outcome is not None
            if ended.id not in self.seen.told:
                self.tell(ended.id, ended.outcome)
            assert self.seen.told[ended.id] == ended.outcome.code, "it ends in one way"
        self.enter(recovered)
        known = {waiting.operation.id for waiting in recovered.waiting}
        for operation in list(self.asked_at_s):
            if operation not in known:
                assert operation not in self.named, "what was accepted is not forgotten"
                self.ask(operation)
        self.check_books()

    def absent(self, until_s: float) -> None:
        """Workers run on, and dial; what clients say is said to the next controller."""
        todo, self.todo = self.todo, []
        for at_s, serial, event in todo:
            if not isinstance(event, Ledgered | ev.Published | Broken):
                later_s = until_s + self.random.uniform(0.0, DIAL_S_MAX)
                waits = at_s < until_s and not isinstance(event, ev.Done)
                self.todo.append((later_s if waits else at_s, serial, event))
        heapq.heapify(self.todo)
        returning = {event.node for _, _, event in todo if isinstance(event, Back | Healed)}
        for node in self.nodes:
            if node not in returning:
                self.at(until_s - self.now_s + self.random.uniform(0.0, DIAL_S_MAX), Healed(node))
        self.cut |= self.up
        self.again(self.cancelled - self.seen.told.keys(), until_s)
        while self.todo and self.todo[0][0] < until_s:
            self.now_s, _, event = heapq.heappop(self.todo)
            self.happen(event)
        self.now_s, self.beat_at_s = until_s, until_s + 1.0

    def again(self, unanswered: Iterable[str], until_s: float) -> None:
        """Whose cancel was not answered cancels again; it may have ended meanwhile."""
        for operation in sorted(unanswered):
            self.cancelled_again.add(operation)
            self.at(until_s - self.now_s + self.random.uniform(0.0, DIAL_S_MAX), ev.Cancel(operation))

    def enter(self, recovered: Recovered) -> None:
        """Give the core what waits, as the service does (scheduler/service.py, `restore`)."""
        redone = {lease.fence for lease, _ in recovered.redo}
        self.awaited, self.awaited_at = {}, {}
        self.awaited_until_s = self.now_s + self.limits.return_s
        self.core.expect_workers()
        leased = [waiting for waiting in recovered.waiting if waiting.lease is not None]
        for waiting in (*leased, *(waiting for waiting in recovered.waiting if waiting.lease is None)):
            assert waiting.operation.id not in self.seen.told, "what was told waits for nothing"
            lease = waiting.lease
            if lease is not None and lease.fence not in redone and lease.key not in self.awaited:
                self.awaited[lease.key] = lease
                self.awaited_at.setdefault(lease.worker, []).append(lease)
            self.apply_all(ev.Restore(waiting.operation.id, waiting.operation.wanted, lease))
            if waiting is leased[-1] if leased else False:
                for done, outcome in recovered.redo:
                    assert done.fence not in self.ledger, "published once"
                    self.apply_all(ev.Done(done.worker, done.fence, outcome))
        self.seen.awaited += len(self.awaited)

    def apply_all(self, event: ev.Event) -> None:
        for effect in self.core.step(event):
            self.apply(effect)
        self.keep()

    def run(self) -> Summary:
        """Until every action has ended."""
        while self.asked < self.actions or self.asked_at_s:
            try:
                self.go_on()
            except KilledError:
                self.restart()
        self.check_books()
        assert len(self.seen.told) == self.actions, "every action ends exactly once"
        ended_ok = {operation for operation, code in self.seen.told.items() if code == "ok"}
        assert ended_ok == self.seen.told.keys() - self.cancelled, "what nobody cancelled has its result"
        assert all(self.seen.told[operation] == "cancelled" for operation in self.cancelled)
        assert self.seen.waits_s["trickle"] <= WAIT_OF_TRICKLE_S_MAX, self.seen.waits_s
        assert not any(worker.fences for worker in self.core.workers.values())
        assert not self.core.dispatch.shares.root.children, "nobody is remembered for nothing"
        self.seen.simulated_s = self.now_s
        return self.seen

    def go_on(self) -> None:
        """Until what is due next has happened."""
        flood = self.actions // 2
        while self.asked < flood or (self.asked < self.actions and self.random.random() < 0.5):
            self.asked += 1
            self.want(self.asked - 1)
        if self.todo and self.todo[0][0] < self.beat_at_s:
            self.now_s, _, event = heapq.heappop(self.todo)
            self.happen(event)
        else:
            self.now_s, self.beat_at_s = self.beat_at_s, self.beat_at_s + 1.0
            self.beat()


def spawned(_: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    raise AssertionError("what waits for the store is done by the simulation")


def summary(seed: int, workers: int, actions: int, check_every: int) -> str:
    """Run one, and say what it came to."""
    began_s = time.process_time()
    large = Large(seed, workers, actions, check_every)
    seen = large.run()
    waits = ", ".join(f"{name} {seen.waits_s[name]:.0f} s" for name in sorted(seen.waits_s))
    return (
        f"seed {seed}: {workers} workers, {actions} actions, {seen.steps} steps, {seen.assigned} leases, "
        f"{actions - seen.entered} joined another's, {len(large.cancelled)} cancelled, "
        f"{seen.killed} workers killed, {seen.cut} cut off ({seen.broken} until their session ended), "
        f"{seen.restarts} restarts with {seen.awaited} leases, {seen.taken_up} of them adopted, "
        f"{seen.adopted} leases adopted in all, {seen.late} ends too late, {seen.faults} faults, "
        f"0 twice, 0 lost, 0 over capacity, {seen.checked} turns fair, "
        f"longest waits: {waits}; {seen.simulated_s:.0f} s in {time.process_time() - began_s:.1f} s of processor time"
    )


if __name__ == "__main__":
    print(summary(int(sys.argv[1]) if len(sys.argv) > 1 else 1, 1000, 100_000, 20_000))
