"""A large world, driven by a seed: workers die and return, messages are lost, repeated and overtake each other.

After every step the core's books must balance, and at the end nobody may be left waiting. A failure prints its seed;
more seeds: BUILDNET_SIM_SEEDS=1000 pytest tests/sim.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev

SEEDS = int(os.environ.get("BUILDNET_SIM_SEEDS", "120"))
WORKERS, SLOTS, ACTIONS, OPERATIONS = 8, 2, 60, 150
LEASE_S = 4.0
STEPS_MAX = 60_000


class World:
    """The core among unreliable neighbours."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.core = core.SchedulerCore(
            core.Limits(lease_s=LEASE_S, attempts_max=1000, losses_max=1000, faults_max=1000)
        )
        self.now_s = 0.0
        self.events: list[ev.Event] = []
        self.running: dict[str, set[int]] = {f"w{i}": set() for i in range(WORKERS)}
        # Of these the commands that have ended, and whose outputs are on their way.
        self.sending: set[int] = set()
        self.up: set[str] = set()
        self.unsettled: dict[str, set[int]] = {node: set() for node in self.running}
        self.cache: set[ActionKey] = set()
        self.keys: dict[int, ActionKey] = {}
        self.published: Counter[ActionKey] = Counter()
        self.told: dict[str, str] = {}
        self.asked: dict[str, Wanted] = {}
        self.last_fence = 0
        self.faults = True

    def offer(self, node: str) -> WorkerOffer:
        properties = {("os", "linux")} | ({("gpu", "yes")} if int(node[1:]) % 2 else set())
        return WorkerOffer(node, "boot", SLOTS, frozenset(properties))

    def send(self, event: ev.Event) -> None:
        """Put an event on its way; it may come twice, and in any order."""
        self.events.append(event)
        if self.faults and self.random.random() < 0.1:
            self.events.append(event)

    def step(self, event: ev.Event) -> None:
        for effect in self.core.step(event):
            self._apply(effect)
        self.check()

    def _apply(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Lookup(entry=entry, key=key):
                self.events.append(ev.Found(entry, Outcome("ok", b"") if key in self.cache else None))
            case ev.Assign(lease=lease):
                assert lease.fence > self.last_fence, "fences only rise"
                self.last_fence = lease.fence
                self.keys[lease.fence] = lease.key
                if lease.worker in self.up and not (self.faults and self.random.random() < 0.05):
                    self.running[lease.worker].add(lease.fence)
            case ev.Publish(entry=entry, lease=lease, cacheable=cacheable):
                if cacheable:
                    assert lease.key not in self.cache, "published although it was published"
                if self.faults and self.random.random() < 0.03:
                    self.events.append(ev.Published(entry, Outcome("blobs_missing", None)))
                    return
                self.published[lease.key] += 1
                if cacheable:
                    self.cache.add(lease.key)
                self.events.append(ev.Published(entry, Outcome("ok", b"", entry_index=1)))
            case ev.Settle(worker=worker, fence=fence):
                self.unsettled[worker].discard(fence)
            case ev.Stop(worker=worker, fence=fence):
                self.running[worker].discard(fence)
            case ev.Tell(operation=operation, stage="completed", outcome=outcome):
                assert outcome is not None
                assert operation not in self.told, "told once"
                self.told[operation] = outcome.code
                if outcome.code == "ok" and not self.asked[operation].do_not_cache:
                    assert self.asked[operation].key in self.cache, "told after it was published"

    def check(self) -> None:
        c = self.core
        leased = {e.lease.fence: e for e in c.entries.values() if e.state == "leased" and e.lease is not None}
        held = [fence for worker in c.workers.values() for fence in worker.fences]
        assert len(held) == len(set(held))
        assert set(held) == set(leased), "every slot that is held is held for a lease, and every lease holds one"
        for node, worker in c.workers.items():
            sending = [fence for fence in worker.fences if (at := c.leases.of(fence)) is not None and at.sending]
            assert worker.sending == len(sending) <= worker.offer.slots
            assert set(sending) <= self.sending, "no command that runs lends what it uses to another"
            assert len(worker.fences - self.sending) <= worker.offer.slots
            assert len(worker.fences & self.running[node] - self.sending) <= worker.offer.slots
        assert c.queue_length == sum(e.state == "queued" for e in c.entries.values())
        following = {o for e in c.entries.values() for o in e.followers}
        waiting = {o for o in self.asked if o not in self.told}
        on_their_way = {e.operation for e in self.events if isinstance(e, ev.Want)}
        assert waiting <= following | on_their_way, "nobody is stranded"

    def fault(self) -> None:
        """Something that a machine room does."""
        node = self.random.choice(sorted(self.running))
        match self.random.randrange(4):
            case 0 if node in self.up:
                self.up.discard(node)
                if self.random.random() < 0.5:
                    # Killed; otherwise it only lost its session, and goes on.
                    self.running[node].clear()
                    self.unsettled[node].clear()
                self.step(ev.WorkerLost(node))
            case 1 if node not in self.up:
                self.join(node)
            case 2:
                operation = self.random.choice(sorted(self.asked) or [""])
                self.send(ev.Cancel(operation))
            case _:
                self.random.shuffle(self.events)

    def join(self, node: str) -> None:
        self.up.add(node)
        self.step(ev.WorkerUp(self.offer(node), tuple(sorted(self.running[node]))))

    def pass_time(self) -> None:
        """Half a second: workers end things, live ones say so and that they live, leases run out."""
        self.now_s += 0.5
        for node in sorted(self.running):
            for fence in sorted(self.running[node]):
                if fence not in self.sending and self.random.random() < 0.2:
                    self.sending.add(fence)
                if node in self.up and fence in self.sending and not (self.faults and self.random.random() < 0.3):
                    # Told again at times: an attempt's session may be another.
                    self.send(ev.CommandEnded(node, fence))
                if self.random.random() < 0.3:
                    self.running[node].discard(fence)
                    self.unsettled[node].add(fence)
            if node not in self.up:
                continue
            for fence in sorted(self.unsettled[node]):
                code = "sandbox_failed" if self.faults and self.random.random() < 0.05 else "ok"
                self.send(ev.Done(node, fence, Outcome(code, b"" if code == "ok" else None, worker=node)))
            if not (self.faults and self.random.random() < 0.1):
                self.send(ev.Heartbeat(node, tuple(sorted(self.running[node])), self.now_s))
        self.events.append(ev.Tick(self.now_s))


def want(world: World, number: int) -> ev.Want:
    action = world.random.randrange(ACTIONS)
    wanted = Wanted(
        ActionKey("", Digest(f"{action:064x}", 1)),
        frozenset({("gpu", "yes")} if action % 5 == 0 else {("os", "linux")}),
        60.0,
        priority=world.random.randrange(3),
        do_not_cache=action % 11 == 0,
    )
    world.asked[f"o{number}"] = wanted
    return ev.Want(f"o{number}", wanted)


def run(world: World) -> None:
    """Until every operation has ended; faults cease after a while."""
    for node in sorted(world.running):
        world.join(node)
    asked, steps = 0, 0
    while len(world.told) < OPERATIONS:
        steps += 1
        assert steps < STEPS_MAX, f"{OPERATIONS - len(world.told)} operations never ended"
        world.faults = steps < 1500
        dice = world.random.random()
        if asked < OPERATIONS and dice < 0.2:
            world.events.append(want(world, asked))
            asked += 1
        elif world.faults and dice < 0.25:
            world.fault()
        elif world.events:
            world.step(world.events.pop(0))
        else:
            world.pass_time()
        if not world.faults:
            for node in sorted(set(world.running) - world.up):
                world.join(node)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_books_balance_and_nobody_is_left_waiting(seed: int) -> None:
    world = World(seed)
    run(world)
    assert set(world.told) == set(world.asked)
    assert set(world.told.values()) <= {"ok", "cancelled", "blobs_missing"}, seed
