"""Every order of wants, ends, losses and time in a small fleet: who is placed where. Each mechanism switched off shows
its hole.

Unlike the world of messages, nothing here is lost or repeated: what is explored is whose turn it is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.core import Mechanisms
from buildnet.scheduler.limits import Quota, Quotas
from buildnet.scheduler.placement import Worker
from tests.explore.cloning import SharedCore

OK = Outcome("ok", b"")
FAULT = Outcome("sandbox_failed", None)
STATES_MAX = 60_000
OVERTAKEN_MAX = 3


@dataclass(frozen=True)
class Scene:
    """A fleet, what is wanted from the start, and what may still come, in order."""

    offers: tuple[WorkerOffer, ...]
    first: tuple[ev.Want, ...]
    later: tuple[ev.Want, ...] = ()
    watched: str = ""
    faults: int = 0
    losses: int = 0
    cancels: tuple[str, ...] = ()
    sends: bool = False
    limits: core.Limits = field(default_factory=lambda: core.Limits(lease_s=1e9, hold_after_s=2.0, age_s=1.0))


@dataclass
class World:
    """The core, and what has happened."""

    shared: SharedCore
    scene: Scene
    running: tuple[tuple[int, str, str], ...] = ()
    # Fences of those that run no more, and whose outputs are on their way.
    ended: frozenset[int] = frozenset()
    told: frozenset[str] = frozenset()
    later: int = 0
    faults: int = 0
    losses: int = 0
    overtaken: int = 0
    failed: frozenset[tuple[str, str]] = frozenset()
    cancelled: frozenset[str] = frozenset()
    wrong: str = ""
    path: tuple[object, ...] = ()

    def key(self) -> tuple[object, ...]:
        """Fences are only compared; what the core holds is told by what runs, what waits and who was served."""
        c = self.shared.core
        waits = tuple(
            (tuple(e.followers), e.state, e.avoid, e.order, e.wanted.share, e.share.path) for e in c.entries.values()
        )
        shares = tuple((s.name, s.used, s.virtual) for s in c.dispatch.shares.root.children.values())
        users = tuple(
            (u.name, u.used, u.virtual) for s in c.dispatch.shares.root.children.values() for u in s.children.values()
        )
        held = tuple((d.held, d.since_s) for d in c.dispatch._active)
        counts = (self.later, self.faults, self.losses, self.cancelled)
        facts = (tuple((w, o, fence in self.ended) for fence, w, o in self.running), self.told, counts)
        return (waits, shares, users, held, c.now_s, facts, self.overtaken, tuple(c.workers))


def feed(world: World, event: ev.Event) -> None:
    shared, effects = world.shared.after(event)
    world.shared = shared
    for effect in effects:
        match effect:
            case ev.Assign(lease=lease):
                number = int(lease.key.digest.hash, 16)
                name = chr(number)
                world.running = (*world.running, (lease.fence, lease.worker, name))
                if name == world.scene.watched:
                    world.overtaken = 0
                elif any(e.followers == [world.scene.watched] and e.state == "queued" for e in entries(world)):
                    world.overtaken += 1
                others = {w.node for w in world.scene.offers} & set(shared.core.workers)
                if (name, lease.worker) in world.failed and any((name, o) not in world.failed for o in others):
                    world.wrong = f"{name} was tried again where it had failed"
            case ev.Stop(fence=fence):
                world.running = tuple(r for r in world.running if r[0] != fence)
            case ev.Publish(entry=entry):
                feed(world, ev.Published(entry, OK))
            case ev.Tell(operation=operation, stage="completed"):
                world.told |= {operation}


def entries(world: World) -> list[core.Entry]:
    return list(world.shared.core.entries.values())


def successors(world: World) -> Iterator[tuple[object, World]]:
    for fence, worker, name in world.running:
        rest = tuple(r for r in world.running if r[0] != fence)
        after = replace(world, running=rest)
        feed(after, ev.Done(worker, fence, OK))
        # Whoever floods has the next at once.
        if after.later < len(after.scene.later):
            feed(after, after.scene.later[after.later])
            after.later += 1
        yield ("end", name), after
        if world.scene.sends and fence not in world.ended:
            after = replace(world, ended=world.ended | {fence})
            feed(after, ev.CommandEnded(worker, fence))
            yield ("command ended", name), after
        if world.faults < world.scene.faults:
            after = replace(world, running=rest, faults=world.faults + 1, failed=world.failed | {(name, worker)})
            feed(after, ev.Done(worker, fence, FAULT))
            yield ("fault", name), after
    for operation in set(world.scene.cancels) - world.cancelled:
        after = replace(world, cancelled=world.cancelled | {operation})
        feed(after, ev.Cancel(operation))
        yield ("cancel", operation), after
    if world.losses < world.scene.losses:
        for node in world.shared.core.workers:
            after = replace(world, losses=world.losses + 1)
            after.failed |= {(name, node) for _, where, name in after.running if where == node}
            after.running = tuple(r for r in after.running if r[1] != node)
            feed(after, ev.WorkerLost(node))
            yield ("lost", node), after
    for offer in world.scene.offers:
        if offer.node not in world.shared.core.workers:
            after = replace(world)
            feed(after, ev.WorkerUp(offer))
            yield ("up", offer.node), after
    if world.shared.core.now_s < 3.0:
        after = replace(world)
        feed(after, ev.Tick(world.shared.core.now_s + 1.0))
        yield ("time",), after


def broken(world: World) -> str:
    """What is wrong with a world, if anything."""
    if world.wrong:
        return world.wrong
    c = world.shared.core
    for node, worker in c.workers.items():
        if worker.offer.capacity is not None and not worker.used.within(worker.offer.capacity):
            return f"{node} holds more than it has"
        if worker.fences != {fence for fence, where, _ in world.running if where == node}:
            return f"{node} holds slots for nobody"
        if why := lent_twice(world, worker):
            return why
    for share in c.dispatch.shares.root.children.values():
        for user in share.children.values():
            most = world.scene.limits.quotas.users.get(user.name, Quota()).actions_max
            if most is not None and user.running > most:
                return f"{user.name} runs {user.running}, over the quota"
    if why := kept_or_miscounted(world):
        return why
    if world.overtaken > OVERTAKEN_MAX:
        return f"{world.scene.watched} was passed by {world.overtaken} times"
    if not world.running and entries(world) and len(c.workers) == len(world.scene.offers):
        return "what waits has room, and does not begin"
    return ""


def lent_twice(world: World, worker: Worker) -> str:
    """Whether commands run beside each other for which there is no room, or more send than may."""
    leases = [at.lease for fence in worker.fences if (at := world.shared.core.leases.of(fence)) is not None]
    cpu_milli = sum(lease.reserved.cpu_milli for lease in leases if lease.fence not in world.ended)
    if worker.offer.capacity is not None and cpu_milli > worker.offer.capacity.cpu_milli:
        return f"commands on {worker.node} use {cpu_milli} thousandths of a processor"
    if worker.sending > min(worker.slots, len(worker.fences & world.ended)):
        return f"{worker.sending} send on {worker.node}"
    if worker.sending < min(worker.slots, len(worker.fences & world.ended)):
        return f"what is free on {worker.node} is lent to nobody"
    return ""


def running_of(world: World, name: str) -> int:
    users = [share.children.get(name) for share in world.shared.core.dispatch.shares.root.children.values()]
    return sum(user.running for user in users if user is not None)


def kept_or_miscounted(world: World) -> str:
    """Whether the quota of one keeps what another wants; whether each share counts what waits and runs there."""
    c, scene = world.shared.core, world.scene
    asked = {event.operation: event.wanted for event in (*scene.first, *scene.later)}
    waits, runs = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for entry in entries(world):
        paths = {c.dispatch.path_of(asked[operation]) for operation in entry.followers}
        counted = paths if c._on.inherit else {entry.share.path}
        if entry.state == "leased" and entry.attempt is not None and not entry.attempt.sending:
            runs[entry.share.path] += 1
        if entry.state != "queued":
            continue
        waits.update(counted)
        room = c.dispatch.room
        if (
            entry.avoid
            or room.held
            or not any(one.level >= 0 and one.has_room(entry.demand) for one in room.workers.values())
        ):
            continue
        for path in paths:
            most = scene.limits.quotas.users.get(path[1], Quota()).actions_max
            if most is None or running_of(world, path[1]) < most:
                return f"{entry.followers} wait for a quota that is not that of {path[1]!r}"
    for share in c.dispatch.shares.root.children.values():
        for user in share.children.values():
            for leaf in user.children.values():
                if (leaf.queued, leaf.running) != (waits[leaf.path], runs[leaf.path]):
                    return f"{leaf.path} counts {leaf.queued} that wait and {leaf.running} that run"
    return ""


def explore(scene: Scene, mechanisms: Mechanisms) -> tuple[str, int]:
    """Search breadth first; return what went wrong, and how many worlds were seen."""
    first = World(SharedCore(partial(core.SchedulerCore, scene.limits, mechanisms=mechanisms)), scene)
    for offer in scene.offers:
        feed(first, ev.WorkerUp(offer))
    for event in scene.first:
        feed(first, event)
    first.overtaken = 0
    seen, todo = {first.key()}, deque([first])
    while todo:
        world = todo.popleft()
        if why := broken(world):
            return f"{why} after {list(world.path)}", len(seen)
        for step, after in successors(world):
            if (key := after.key()) not in seen or after.wrong:
                assert len(seen) < STATES_MAX, "the world is too large to walk"
                seen.add(key)
                after.path = (*world.path, step)
                todo.append(after)
    return "", len(seen)


def want(name: str, user: str = "", asked: Amounts = NOTHING, priority: int = 0, operation: str = "") -> ev.Want:
    key = ActionKey("", Digest(f"{ord(name):064x}", 1))
    share = ("", user, "")
    return ev.Want(
        operation or name, Wanted(key, frozenset(), 9.0, priority, skip_cache_lookup=True, asked=asked, share=share)
    )


def offer(node: str, slots: int, cpu_milli: int) -> WorkerOffer:
    return WorkerOffer(node, "boot", slots, frozenset(), capacity=Amounts(cpu_milli))


TWO = Amounts(2000)
ONE_SLOT = (offer("v", 1, 1000),)
TWO_SLOTS = (offer("v", 2, 2000),)
SCENES = {
    "fits": Scene((offer("v", 3, 3000),), (want("a"), want("b", asked=TWO), want("c", asked=TWO)), losses=1),
    "fair": Scene(
        ONE_SLOT,
        (*(want(name, "flood") for name in "abcdef"), want("z", "late")),
        watched="z",
    ),
    "hold": Scene(
        TWO_SLOTS,
        (want("a"), want("b"), want("z", "other", asked=TWO)),
        tuple(want(name) for name in "cdefghij"),
        watched="z",
        limits=core.Limits(lease_s=1e9, hold_after_s=0.0, age_s=1.0),
    ),
    "age": Scene(
        ONE_SLOT,
        (want("a"), want("z", priority=1), want("b")),
        tuple(want(name) for name in "cdefghij"),
        watched="z",
        limits=core.Limits(lease_s=1e9, age_s=0.0),
    ),
    "quota": Scene(
        TWO_SLOTS,
        (want("a", "u"), want("b", "u"), want("c", "u"), want("d", "w")),
        losses=1,
        limits=core.Limits(lease_s=1e9, quotas=Quotas(users={"u": Quota(actions_max=1)})),
    ),
    "inherit": Scene(
        TWO_SLOTS,
        (want("a", "u"), want("b", "u"), want("b", "w", operation="y"), want("c", "w")),
        (want("c", "u", operation="x"), want("b", "u", operation="z")),
        losses=1,
        cancels=("b", "y", "x"),
        limits=core.Limits(lease_s=1e9, quotas=Quotas(users={"u": Quota(actions_max=1), "w": Quota(actions_max=1)})),
    ),
    "elsewhere": Scene((offer("v", 1, 1000), offer("w", 1, 1000)), (want("a"), want("b"), want("c")), faults=2),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mechanism", SCENES)
def test_nothing_goes_wrong_and_each_mechanism_closes_a_hole(mechanism: str) -> None:
    why, states = explore(SCENES[mechanism], Mechanisms())
    assert not why, why
    assert states > 10
    hole, without = explore(SCENES[mechanism], replace(Mechanisms(), **{mechanism: False}))
    assert hole, f"without {mechanism} nothing goes wrong in {without} worlds"
    print(f"{mechanism}: {states} worlds; without it: {hole}")


SENDING = {
    "one slot": Scene(ONE_SLOT, tuple(want(name) for name in "abcd"), sends=True, cancels=("a", "c"), losses=1),
    "amounts": Scene(
        (offer("v", 2, 3000),), (want("a"), want("b", asked=TWO), want("c", asked=TWO), want("d")), sends=True, faults=1
    ),
    "quota": Scene(
        TWO_SLOTS,
        (want("a", "u"), want("b", "u"), want("b", "w", operation="y"), want("c", "w")),
        (want("c", "u", operation="x"),),
        sends=True,
        cancels=("b", "y"),
        limits=core.Limits(lease_s=1e9, quotas=Quotas(users={"u": Quota(actions_max=1), "w": Quota(actions_max=1)})),
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scene", SENDING)
def test_what_ended_commands_leave_free_is_lent_once(scene: str) -> None:
    why, states = explore(SENDING[scene], Mechanisms())
    assert not why, why
    alone, without = explore(replace(SENDING[scene], sends=False), Mechanisms())
    assert not alone, alone
    assert states > without
