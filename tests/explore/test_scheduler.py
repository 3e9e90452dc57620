"""Every order of a small world: two clients, two workers, messages lost and repeated, one worker's death and return.

The real core is driven through all of them. Each mechanism is then switched off, and its hole must appear: a mechanism
whose absence breaks nothing would be one too many, and a world that finds nothing would be too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import EMPTY
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.core import Mechanisms
from tests.explore.cloning import SharedCore
from tests.explore.search import search

KEY = ActionKey("", EMPTY)
WANTED = Wanted(KEY, frozenset(), 10.0)
CLIENTS = ("a", "b")
NODES = ("v", "w")
STATES_MAX = 400_000

Message = tuple[object, ...]


@dataclass
class World:
    """The core, what is on its way, and what the world has seen."""

    shared: SharedCore
    net: frozenset[Message]
    running: frozenset[tuple[str, int]] = frozenset()
    # Of these the commands that have ended, and whose outputs are on their way.
    sending: frozenset[tuple[str, int]] = frozenset()
    up: frozenset[str] = frozenset(NODES)
    cached: bool = False
    writing: int = 0
    written: int = 0
    told: tuple[tuple[str, str], ...] = ()
    losses: int = 1
    repeats: int = 1
    expiries: int = 1
    cancels: int = 1
    overlaps: int = 0
    lookups: int = 0
    returns: bool = False
    wrong: str = ""
    path: tuple[object, ...] = field(default=(), compare=False)

    @property
    def core(self) -> core.SchedulerCore:
        return self.shared.core

    def copy(self) -> World:
        return replace(self)

    def key(self) -> tuple[object, ...]:
        """Equal keys, equal futures: fences and entry ids are counted from the oldest that still matters."""
        c = self.core
        fences = sorted({m[2] for m in self.net if m[0] in ("assign", "done")} | {f for _, f in self.running})
        entries = tuple(
            (
                e.id,
                e.state,
                tuple(e.followers),
                e.demanded,
                e.lease and (e.lease.worker, e.lease.fence),
                e.attempt and e.attempt.sending,
                e.attempts,
                e.avoid,
                e.lost and (e.lost.worker, e.lost.fence),
            )
            for e in c.entries.values()
        )
        workers = tuple((n, w.silent, tuple(sorted(w.fences))) for n, w in sorted(c.workers.items()))
        facts = (self.net, self.running, self.sending, self.up, self.cached, self.writing, self.written, self.told)
        bounds = (self.losses, self.repeats, self.expiries, self.cancels, self.overlaps)
        return (entries, workers, tuple(fences), facts, bounds, self.wrong)


def start(mechanisms: Mechanisms) -> World:
    shared = SharedCore(partial(core.SchedulerCore, core.Limits(attempts_max=9), mechanisms=mechanisms))
    for node in NODES:
        shared, _ = shared.after(ev.WorkerUp(WorkerOffer(node, "boot", 1, frozenset())))
    return World(shared, frozenset(("want", client) for client in CLIENTS))


def feed(world: World, event: ev.Event) -> None:
    """Let the core have an event, and put what it wants done on its way."""
    net = set(world.net)
    world.shared, effects = world.shared.after(event)
    for effect in effects:
        match effect:
            case ev.Lookup(entry=entry):
                net.add(("lookup", entry))
            case ev.Assign(lease=lease):
                # A fence that was seen before, anywhere, would let two attempts pass for one.
                if any(m[0] in ("assign", "done") and m[2] >= lease.fence for m in net):
                    world.wrong = world.wrong or "a fence did not rise"
                net.add(("assign", lease.worker, lease.fence))
            case ev.Publish(entry=entry, lease=lease):
                if world.cached:
                    world.wrong = world.wrong or "published although it was published"
                if world.writing:
                    world.wrong = world.wrong or "published twice at once"
                world.writing += 1
                net.add(("publish", entry, lease.fence))
            case ev.Settle(worker=worker, fence=fence):
                net.discard(("done", worker, fence))
            case ev.Stop(worker=worker, fence=fence):
                net.add(("stop", worker, fence))
            case ev.Tell(operation=operation, stage="completed", outcome=outcome):
                assert outcome is not None
                if outcome.code == "ok" and not world.cached:
                    world.wrong = world.wrong or "told before it was published"
                if any(client == operation for client, _ in world.told):
                    world.wrong = world.wrong or "told twice"
                world.told = (*world.told, (operation, outcome.code))
    world.net = frozenset(net)


def successors(world: World) -> Iterator[tuple[object, World]]:
    """Everything that may happen next."""
    for message in world.net:
        yield from _deliver(world, message)
    for node, fence in world.running:
        after = world.copy()
        after.running -= {(node, fence)}
        after.net |= {("done", node, fence)}
        yield ("finish", node, fence), after
        if world.overlaps and (node, fence) not in world.sending:
            after = world.copy()
            after.overlaps -= 1
            after.sending |= {(node, fence)}
            after.net |= {("command ended", node, fence)}
            if world.repeats:
                after.repeats -= 1
                after.net |= {("command ended", node, fence, "again")}
            yield ("command ended", node, fence), after
    if world.losses:
        for node in world.up:
            after = world.copy()
            after.losses -= 1
            after.up -= {node}
            # What it ran dies with it, or goes on unseen and ends late: both are explored.
            feed(after, ev.WorkerLost(node))
            yield ("lost", node), after
            dead = after.copy()
            dead.running = frozenset(r for r in after.running if r[0] != node)
            told = ("assign", "command ended", "done")
            dead.net = frozenset(m for m in after.net if m[0] not in told or m[1] != node)
            yield ("killed", node), dead
    for node in frozenset(NODES) - world.up:
        after = world.copy()
        after.up |= {node}
        feed(after, ev.WorkerUp(WorkerOffer(node, "boot", 1, frozenset()), held(world, node)))
        yield ("up", node), after
    if world.expiries and any(e.state == "leased" for e in world.core.entries.values()):
        after = world.copy()
        after.expiries -= 1
        feed(after, ev.Tick(after.core.now_s + 100.0))
        yield ("expire",), after
    for node in world.up:
        if world.core.workers[node].silent:
            after = world.copy()
            running = tuple(sorted(fence for at, fence in world.running if at == node))
            feed(after, ev.Heartbeat(node, running, after.core.now_s))
            yield ("heard", node), after
    if world.cancels:
        after = world.copy()
        after.cancels -= 1
        feed(after, ev.Cancel("a"))
        yield ("cancel", "a"), after


def held(world: World, node: str) -> tuple[int, ...]:
    """What a worker that comes back tells of: what it runs, and results that wait to be settled."""
    if not world.returns:
        return ()
    waiting = {int(str(m[2])) for m in world.net if m[0] == "done" and m[1] == node}
    return tuple(sorted(waiting | {fence for at, fence in world.running if at == node}))


def _deliver(world: World, message: Message) -> Iterator[tuple[object, World]]:
    after = world.copy()
    after.net -= {message}
    match message:
        case ("want", str(client)):
            feed(after, ev.Want(client, WANTED))
        case ("lookup", int(entry)):
            # The cache answers now; its answer may be overtaken.
            after.net |= {("found", entry, after.cached)}
        case ("found", int(entry), bool(hit)):
            feed(after, ev.Found(entry, Outcome("ok", b"") if hit else None))
        case ("assign", str(node), int(fence)):
            if node in world.up:
                after.running |= {(node, fence)}
            yield ("drop", *message), _dropped(world, message)
        case ("stop", str(node), int(fence)):
            after.running -= {(node, fence)}
        case ("command ended", str(node), int(fence), *_):
            # Told by an open session; the next one tells it again.
            if node not in world.up:
                return
            feed(after, ev.CommandEnded(node, fence))
        case ("done", str(node), int(fence)):
            if node not in world.up:
                return  # kept by the worker until it has a session again
            feed(after, ev.Done(node, fence, Outcome("ok", b"", worker=node)))
            # A worker repeats a Done until it is settled.
            if not after.core._on.settle:
                after.net |= {message}
            if world.repeats:
                again = after.copy()
                again.repeats -= 1
                feed(again, ev.Done(node, fence, Outcome("ok", b"", worker=node)))
                yield ("repeat", *message), again
        case ("publish", int(entry), int(_fence)):
            after.cached = True
            after.writing -= 1
            after.written += 1
            feed(after, ev.Published(entry, Outcome("ok", b"", entry_index=0)))
    yield message, after


def _dropped(world: World, message: Message) -> World:
    after = world.copy()
    after.net -= {message}
    return after


def broken(world: World) -> str:
    """What is wrong with a world, if anything."""
    if world.wrong:
        return world.wrong
    c = world.core
    for node, worker in c.workers.items():
        if not 0 <= len(worker.fences) - worker.sending <= worker.offer.slots or worker.sending > worker.offer.slots:
            return f"{node} has {len(worker.fences)} leases for one slot"
        if sum((node, fence) in world.running - world.sending for fence in worker.fences) > worker.offer.slots:
            return f"more than one command runs in the slot of {node}"
    live = {e.lease.fence for e in c.entries.values() if e.state == "leased" and e.lease is not None}
    held = {fence for worker in c.workers.values() for fence in worker.fences}
    if held - live:
        return "a slot is held for nobody"
    if c.queue_length != sum(e.state == "queued" for e in c.entries.values()):
        return "the queue is miscounted"
    waiting = {m[1] for m in world.net if m[0] == "want"}
    following = {o for e in c.entries.values() for o in e.followers}
    told = {client for client, _ in world.told}
    stranded = set(CLIENTS) - waiting - following - told
    if stranded:
        return f"{sorted(stranded)} wait for nothing"
    if not world.net and not world.running and following and world.up == frozenset(NODES):
        leased = any(e.state == "leased" for e in c.entries.values())
        silent = any(worker.silent for worker in c.workers.values())
        # A lost assignment is mended by its lease's end, silence by the next beat; all else would wait for ever.
        if (not leased and not silent) or not c._on.requeue:
            return f"nothing will ever happen for {sorted(following)}"
    unsettled = [m for m in world.net if m[0] == "done"]
    if unsettled and len(world.net) == len(unsettled) and not following and told == set(CLIENTS) and not c._on.settle:
        return "a Done is repeated for ever"
    return ""


def explore(mechanisms: Mechanisms, **changes: Any) -> tuple[str, int]:
    """Search breadth first; return what went wrong (empty when nothing can) and how many worlds were seen."""
    return search(replace(start(mechanisms), **changes), broken, successors, STATES_MAX)


@pytest.mark.timeout(300)
def test_nothing_goes_wrong_in_any_order() -> None:
    why, states = explore(Mechanisms())
    assert not why, why
    assert states > 1_000
    print(f"{states} worlds")


@pytest.mark.timeout(300)
def test_what_comes_back_after_a_break_goes_on_or_is_stopped_in_any_order() -> None:
    why, states = explore(Mechanisms(), returns=True, expiries=0, cancels=0, repeats=0)
    assert not why, why
    print(f"{states} worlds")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("returns", [False, True])
def test_a_command_that_ends_before_its_attempt_goes_wrong_in_no_order(returns: bool) -> None:
    why, states = explore(Mechanisms(), overlaps=2, returns=returns, cancels=int(not returns), expiries=0)
    assert not why, why
    print(f"{states} worlds")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("missing", ["join", "look_again", "fence", "requeue", "settle"])
def test_each_mechanism_closes_a_hole(missing: str) -> None:
    why, states = explore(replace(Mechanisms(), **{missing: False}))
    assert why, f"without {missing} nothing goes wrong in {states} worlds"
    print(f"without {missing}: {why} ({states} worlds)")
