"""Every moment at which a controller may be killed, in every order of a small world: two clients and two workers.

The real core, the real bookkeeping and the real decisions of a start are driven through all of them; the store is what
had been kept by then. Nothing is lost, published twice or run twice. Each mechanism is then switched off, and its hole
appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from buildnet.model.action import Lease, Outcome
from buildnet.model.node import WorkerOffer
from buildnet.model.operation import Intended, Stored, StoredLease, StoredOperation
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.core import Mechanisms
from buildnet.scheduler.recovery import decide
from tests.explore.cloning import SharedCore
from tests.explore.search import search
from tests.explore.test_scheduler import CLIENTS, NODES, WANTED

STATES_MAX = 400_000
RESTARTS = 2
OK = Outcome("ok", b"")
NOTHING = Stored((), ())
Message = tuple[object, ...]


@dataclass(frozen=True)
class Without:
    """What is switched off."""

    kept_before_told: bool = True
    lease_before_sent: bool = True
    intent_before_published: bool = True
    result_until_published: bool = True
    adopt: bool = True


@dataclass
class Store:
    """What is written, and of it what was kept."""

    operations: dict[int, StoredOperation] = field(default_factory=dict)
    leases: dict[int, StoredLease] = field(default_factory=dict)
    kept: Stored = NOTHING

    def keep(self) -> None:
        self.kept = Stored(tuple(self.operations.values()), tuple(self.leases.values()))

    @property
    def dirty(self) -> bool:
        return self.kept != Stored(tuple(self.operations.values()), tuple(self.leases.values()))

    def copy(self) -> Store:
        return Store(dict(self.operations), dict(self.leases), self.kept)


@dataclass
class World:
    """The core, the store, what is on its way, and what the world has seen."""

    shared: SharedCore
    on: Without
    store: Store
    net: frozenset[Message]
    running: frozenset[tuple[str, int]] = frozenset()
    up: frozenset[str] = frozenset(NODES)
    # What is done once the store has kept what is written by now.
    due: tuple[Message, ...] = ()
    ledger: frozenset[int] = frozenset()
    cached: bool = False
    named: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    begun: int = 0
    restarts: int = RESTARTS
    wrong: str = ""
    path: tuple[object, ...] = ()

    @property
    def core(self) -> core.SchedulerCore:
        return self.shared.core

    def copy(self) -> World:
        return replace(self, store=self.store.copy())

    def key(self) -> tuple[object, ...]:
        entries = tuple(
            (e.id, e.state, tuple(e.followers), e.lease and (e.lease.worker, e.lease.fence), e.attempts, e.lost)
            for e in self.core.entries.values()
        )
        workers = tuple((n, tuple(sorted(w.fences))) for n, w in sorted(self.core.workers.items()))
        written = (tuple(self.store.operations.items()), tuple(self.store.leases.items()), self.store.kept)
        kept = (written[0], written[1], tuple(written[2].operations), tuple(written[2].leases))
        seen = (self.ledger, self.cached, self.named, self.told, self.begun, self.restarts, self.wrong)
        return (entries, workers, kept, self.net, self.running, self.up, self.due, seen)


def core_of(on: Without, term: int) -> SharedCore:
    limits, mechanisms = core.Limits(attempts_max=9, losses_max=9), Mechanisms(adopt=on.adopt)
    return SharedCore(partial(core.SchedulerCore, limits, fence_first=(term << 8) + 1, mechanisms=mechanisms))


def start(on: Without) -> World:
    world = World(core_of(on, 1), on, Store(), frozenset(("want", client) for client in CLIENTS))
    for node in NODES:
        world.shared, _ = world.shared.after(ev.WorkerUp(WorkerOffer(node, "boot", 1, frozenset())))
    return world


def once_kept(world: World, act: Message, *, waits: bool = True) -> None:
    if waits:
        world.due = (*world.due, act)
    else:
        done(world, act)


def done(world: World, act: Message) -> None:
    """What follows once it is kept."""
    match act:
        case ("name", str(client)):
            world.named |= {client}
        case ("assign", str(_), int(fence)):
            if world.core.holds(fence):
                world.net |= {act}
        case ("ledger", int(_), int(_)):
            world.net |= {act}


def feed(world: World, event: ev.Event) -> None:
    """Let the core have an event, and do what the service does about it."""
    world.shared, effects = world.shared.after(event)
    publishing = {e.lease.fence for e in world.core.entries.values() if e.state == "publishing" and e.lease is not None}
    for effect in effects:
        match effect:
            case ev.Lookup(entry=entry):
                world.net |= {("lookup", entry)}
            case ev.Assign(lease=lease, operation=operation):
                assign(world, lease, operation)
            case ev.Publish(entry=entry, lease=lease, outcome=outcome):
                held = world.store.leases.get(lease.fence)
                if held is not None and world.on.intent_before_published:
                    about = Intended(outcome, cacheable=True, ledger_size=0)
                    world.store.leases[lease.fence] = replace(held, intended=about)
                once_kept(world, ("ledger", entry, lease.fence))
            case ev.Settle(worker=worker, fence=fence):
                if fence not in publishing or not world.on.result_until_published:
                    world.net -= {("done", worker, fence)}
            case ev.Stop(worker=worker, fence=fence):
                # At once: what is on its way to a worker is explored by tests/explore/test_scheduler.py.
                world.running -= {(worker, fence)}
                world.net -= {("done", worker, fence), ("assign", worker, fence)}
            case ev.Tell(operation=operation, stage="completed", outcome=outcome):
                assert outcome is not None
                end(world, operation, outcome)


def assign(world: World, lease: Lease, operation: str) -> None:
    number = CLIENTS.index(operation)
    if any(fence >= lease.fence for _, fence in world.running):
        world.wrong = world.wrong or "a fence did not rise"
    world.store.leases = {lease.fence: StoredLease(lease, number, alone=False)}
    once_kept(world, ("assign", lease.worker, lease.fence), waits=world.on.lease_before_sent)


def end(world: World, client: str, outcome: Outcome) -> None:
    if client in world.told:
        world.wrong = world.wrong or "told twice"
    if outcome.code == "ok" and not world.ledger:
        world.wrong = world.wrong or "told before it was published"
    world.told |= {client}
    number = CLIENTS.index(client)
    stored = world.store.operations[number]
    world.store.operations[number] = replace(stored, outcome=outcome, completed_at_unix_ms=0)
    if all(one.outcome is not None for one in world.store.operations.values()):
        world.store.leases = {}


def successors(world: World) -> Iterator[tuple[object, World]]:
    """Everything that may happen next."""
    for message in world.net:
        if (after := delivered(world, message)) is not None:
            yield message, after
    for node, fence in world.running:
        after = world.copy()
        after.running -= {(node, fence)}
        after.net |= {("done", node, fence)}
        yield ("finish", node, fence), after
    if world.store.dirty or world.due:
        after = world.copy()
        after.store.keep()
        due, after.due = after.due, ()
        for act in due:
            done(after, act)
        yield ("keep",), after
    for node in frozenset(NODES) - world.up:
        after = world.copy()
        after.up |= {node}
        held = {fence for at, fence in world.running if at == node}
        held |= {int(str(m[2])) for m in world.net if m[0] == "done" and m[1] == node}
        feed(after, ev.WorkerUp(WorkerOffer(node, "boot", 1, frozenset()), tuple(sorted(held))))
        yield ("up", node), after
    if world.restarts:
        yield ("kill",), restarted(world)


def delivered(world: World, message: Message) -> World | None:
    after = world.copy()
    after.net -= {message}
    match message:
        case ("want", str(client)):
            number = CLIENTS.index(client)
            after.store.operations[number] = StoredOperation(number, client, WANTED, 0)
            feed(after, ev.Want(client, WANTED))
            once_kept(after, ("name", client), waits=after.on.kept_before_told)
        case ("lookup", int(entry)):
            feed(after, ev.Found(entry, OK if after.cached else None))
        case ("assign", str(node), int(fence)):
            after.running |= {(node, fence)}
            after.begun += 1
            if after.begun > 1:
                after.wrong = after.wrong or "run twice"
        case ("done", str(node), int(fence)):
            if node not in after.up:
                return None
            after.net |= {message}
            feed(after, ev.Done(node, fence, replace(OK, worker=node)))
            if after.net == world.net and after.due == world.due:
                return None
        case ("ledger", int(entry), int(fence)):
            if after.ledger:
                after.wrong = after.wrong or "published twice"
            after.ledger |= {fence}
            after.net |= {("cache", entry, fence)}
        case ("cache", int(entry), int(fence)):
            after.cached = True
            after.net -= {("done", node, fence) for node in NODES}
            feed(after, ev.Published(entry, replace(OK, entry_index=0)))
    return after


def restarted(world: World) -> World:
    """Kill the controller and start the next: what was kept, the ledger, the cache and the workers remain."""
    after = world.copy()
    after.restarts -= 1
    after.shared, after.due, after.up = core_of(after.on, 1 + RESTARTS - after.restarts), (), frozenset()
    after.net = frozenset(m for m in after.net if m[0] in ("want", "done"))
    # Who was told no name, or of no end, asks again, or waits again.
    unnamed = set(CLIENTS) - after.named - after.told
    after.net |= {("want", client) for client in unnamed}
    recovered = decide(after.store.kept, dict.fromkeys(after.ledger, 0), 0)
    kept = [one for one in after.store.kept.operations if one.id not in unnamed]
    leases = [held for held in after.store.kept.leases if held.lease.fence not in recovered.stale]
    after.store = Store({one.number: one for one in kept}, {held.lease.fence: held for held in leases})
    after.store.keep()
    if recovered.fresh:
        after.cached = True
    for one in recovered.ended:
        after.told |= {one.id} & after.named
    for waiting in recovered.waiting:
        if waiting.operation.id not in unnamed and waiting.operation.id not in after.told:
            feed(after, ev.Restore(waiting.operation.id, WANTED, waiting.lease))
    for lease, outcome in recovered.redo:
        feed(after, ev.Done(lease.worker, lease.fence, outcome))
    return after


def broken(world: World) -> str:
    """What is wrong with a world, if anything."""
    if world.wrong:
        return world.wrong
    waiting = {str(m[1]) for m in world.net if m[0] == "want"}
    following = {o for e in world.core.entries.values() for o in e.followers}
    stranded = set(CLIENTS) - waiting - following - world.told
    if stranded:
        return f"{sorted(stranded)} wait for nothing"
    quiet = not world.net and not world.running and not world.due and not world.store.dirty
    if quiet and following and world.up == frozenset(NODES):
        return f"nothing will ever happen for {sorted(following)}"
    return ""


def explore(on: Without) -> tuple[str, int]:
    """Search breadth first; return what went wrong (empty when nothing can) and how many worlds were seen."""
    return search(start(on), broken, successors, STATES_MAX)


@pytest.mark.timeout(300)
def test_a_kill_at_any_moment_loses_nothing_and_repeats_nothing() -> None:
    why, states = explore(Without())
    assert not why, why
    assert states > 1_000
    print(f"{states} worlds")


HOLES: Sequence[tuple[str, str]] = (
    ("kept_before_told", "wait for nothing"),
    ("lease_before_sent", "run twice"),
    ("intent_before_published", "published twice"),
    ("result_until_published", "run twice"),
    ("adopt", "run twice"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("missing", "hole"), HOLES)
def test_each_mechanism_closes_a_hole(missing: str, hole: str) -> None:
    why, states = explore(replace(Without(), **{missing: False}))
    assert hole in why, f"without {missing}: {why or 'nothing'} in {states} worlds"
    print(f"without {missing}: {why} ({states} worlds)")
