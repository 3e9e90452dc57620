"""What the core promises, one promise a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import core
from buildnet.scheduler import events as ev

LINUX = frozenset({("os", "linux")})
OK = Outcome("ok", b"r")


def key(number: int = 0) -> ActionKey:
    return ActionKey("", Digest(f"{number:064x}", 1))


def wanted(number: int = 0, **fields: Any) -> Wanted:
    return Wanted(key(number), fields.pop("requirements", LINUX), 10.0, **fields)


def offer(node: str, slots: int = 1, properties: frozenset[tuple[str, str]] = LINUX) -> WorkerOffer:
    return WorkerOffer(node, "boot", slots, properties)


class Bench:
    """A core, and what it asked for."""

    def __init__(self, *workers: WorkerOffer, **limits: Any) -> None:
        self.core = core.SchedulerCore(core.Limits(**limits), fence_first=100)
        self.effects: list[ev.Effect] = []
        for worker in workers:
            self.do(ev.WorkerUp(worker))

    def do(self, event: ev.Event) -> list[ev.Effect]:
        fresh = self.core.step(event)
        self.effects += fresh
        return fresh

    def queue(self, operation: str, number: int = 0, **fields: Any) -> None:
        """Want something that is not cached."""
        for effect in self.do(ev.Want(operation, wanted(number, **fields))):
            if isinstance(effect, ev.Lookup):
                self.do(ev.Found(effect.entry, None))

    def leases(self) -> list[tuple[int, str]]:
        return [(e.lease.fence, e.lease.worker) for e in self.effects if isinstance(e, ev.Assign)]

    def told(self, operation: str) -> list[str]:
        return [
            e.outcome.code if e.outcome else e.stage
            for e in self.effects
            if isinstance(e, ev.Tell) and e.operation == operation
        ]

    def recorded(self) -> list[tuple[str, int | None, str]]:
        """Kind, attempt and error of each entry."""
        return [
            (e.kind.removeprefix("action."), e.lease.attempt if e.lease else None, e.outcome.code if e.outcome else "")
            for e in self.effects
            if isinstance(e, ev.Record)
        ]

    def publish(self) -> None:
        """Publish whatever waits for it."""
        for effect in [e for e in self.effects if isinstance(e, ev.Publish)]:
            self.do(ev.Published(effect.entry, effect.outcome))


def test_a_cached_result_is_told_without_a_worker() -> None:
    bench = Bench(offer("v"))
    (lookup,) = (e for e in bench.do(ev.Want("a", wanted())) if isinstance(e, ev.Lookup))
    bench.do(ev.Found(lookup.entry, OK))
    assert bench.told("a") == ["queued", "ok"]
    assert bench.leases() == []


def test_what_is_pinned_runs_on_that_worker_and_waits_for_it() -> None:
    bench = Bench(offer("u"), offer("v"), offer("w"))
    bench.queue("a", pinned="v", do_not_cache=True)
    bench.queue("b", pinned="v", do_not_cache=True)
    assert [worker for _, worker in bench.leases()] == ["v"], "others are free, and none of them will do"
    bench.do(ev.Done("v", 100, OK))
    assert [worker for _, worker in bench.leases()] == ["v", "v"]


@pytest.mark.parametrize(
    ("pinned", "requirements", "why"),
    [
        ("x", LINUX, "x, on which the action is to run, has not joined"),
        ("v", frozenset({("os", "z")}), "does not offer"),
    ],
)
def test_what_is_pinned_to_a_worker_that_cannot_is_refused(
    pinned: str, requirements: frozenset[tuple[str, str]], why: str
) -> None:
    bench = Bench(offer("v"), offer("w", properties=frozenset({("os", "z")})))
    bench.queue("a", pinned=pinned, requirements=requirements)
    assert bench.told("a")[-1] == "no_capable_worker"
    [outcome] = [e.outcome for e in bench.effects if isinstance(e, ev.Tell) and e.outcome is not None]
    assert why in outcome.message


def test_equal_actions_join_and_run_once() -> None:
    bench = Bench(offer("v", slots=2))
    bench.queue("a")
    bench.queue("b")
    assert bench.leases() == [(100, "v")]
    bench.do(ev.Done("v", 100, OK))
    bench.queue("c")
    bench.publish()
    for operation in "abc":
        assert bench.told(operation)[-1] == "ok"


def test_who_demands_execution_gets_it_and_others_share_it() -> None:
    bench = Bench(offer("v"))
    (lookup,) = (e for e in bench.do(ev.Want("plain", wanted())) if isinstance(e, ev.Lookup))
    bench.do(ev.Want("demanding", wanted(skip_cache_lookup=True)))
    bench.do(ev.Found(lookup.entry, OK))
    assert bench.leases() == [(100, "v")]


def test_what_must_not_be_cached_is_neither_merged_nor_looked_up() -> None:
    bench = Bench(offer("v", slots=2))
    bench.queue("a", do_not_cache=True)
    bench.queue("b", do_not_cache=True)
    assert [fence for fence, _ in bench.leases()] == [100, 101]
    bench.do(ev.Done("v", 100, OK))
    assert [e.cacheable for e in bench.effects if isinstance(e, ev.Publish)] == [False]


def test_nobody_is_told_before_publication() -> None:
    bench = Bench(offer("v"))
    bench.queue("a")
    bench.do(ev.Done("v", 100, OK))
    assert "ok" not in bench.told("a")
    bench.publish()
    assert bench.told("a")[-1] == "ok"


@pytest.mark.parametrize(
    ("worker", "fence"), [("v", 99), ("v", 101), ("w", 100)], ids=["older", "unknown", "somebody else's"]
)
def test_a_done_that_is_not_the_leases_is_dropped_and_settled(worker: str, fence: int) -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.queue("a")
    assert bench.do(ev.Done(worker, fence, OK)) == [ev.Settle(worker, fence)]


def test_a_lost_workers_action_goes_to_another_under_a_newer_fence() -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.queue("a")
    bench.do(ev.WorkerLost("v"))
    assert bench.leases() == [(100, "v"), (101, "w")]
    bench.do(ev.Done("v", 100, OK))
    assert not any(isinstance(e, ev.Publish) for e in bench.effects)


def test_a_lease_lasts_as_long_as_it_is_renewed() -> None:
    bench = Bench(offer("v"), lease_s=4.0)
    bench.queue("a")
    bench.do(ev.Heartbeat("v", (100,), 3.0))
    assert bench.do(ev.Tick(6.9)) == []
    assert ev.Unheard(100) in bench.do(ev.Tick(7.0))


def test_a_silent_worker_is_given_nothing_and_goes_on_with_what_it_runs_once_it_is_heard() -> None:
    bench = Bench(offer("v"), lease_s=4.0)
    bench.queue("a")
    bench.do(ev.Tick(4.0))
    bench.do(ev.Tick(9.0))
    assert bench.leases() == [(100, "v")]
    # In the same session, or in its next.
    assert any(
        isinstance(e, ev.Record) and e.kind == "action.adopted" for e in bench.do(ev.Heartbeat("v", (100,), 9.5))
    )
    bench.do(ev.Tick(14.0))
    bench.do(ev.WorkerLost("v"))
    bench.do(ev.WorkerUp(offer("v"), (100,)))
    assert not any(isinstance(e, ev.Publish) for e in bench.effects)
    bench.do(ev.Done("v", 100, OK))
    assert any(isinstance(e, ev.Publish) for e in bench.effects)
    assert bench.leases() == [(100, "v")]


def test_a_silent_workers_action_is_run_elsewhere_and_stopped_there_once_it_is_heard() -> None:
    bench = Bench(offer("v"), lease_s=4.0)
    bench.queue("a")
    bench.do(ev.Tick(4.0))
    bench.do(ev.WorkerUp(offer("w"), ()))
    assert bench.leases() == [(100, "v"), (101, "w")]
    assert bench.do(ev.Heartbeat("v", (100,), 5.0)) == [ev.Stop("v", 100, "the lease was lost")]
    # It is given work again.
    bench.queue("b", 1)
    assert bench.leases()[-1] == (102, "v")


def test_a_heartbeat_for_a_lost_lease_is_answered_with_stop() -> None:
    bench = Bench(offer("v"))
    assert bench.do(ev.Heartbeat("v", (7,), 1.0)) == [ev.Stop("v", 7, "the lease was lost")]


def test_an_action_that_kills_its_workers_is_given_up() -> None:
    bench = Bench(offer("v"), attempts_max=2)
    bench.queue("a")
    for _ in range(2):
        bench.do(ev.WorkerLost("v"))
        bench.do(ev.WorkerUp(offer("v")))
    assert bench.told("a")[-1] == "node_down"


@pytest.mark.parametrize(
    ("code", "again"),
    [("sandbox_failed", True), ("storage_full", True), ("invalid_request", False), ("deadline_passed", False)],
)
def test_only_the_nodes_own_failures_are_tried_elsewhere(code: str, again: bool) -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.queue("a")
    bench.do(ev.Done("v", 100, Outcome(code, None)))
    assert (bench.leases()[-1] == (101, "w")) is again
    assert (bench.told("a")[-1] == code) is not again


def test_every_attempt_and_every_end_without_a_result_is_in_the_ledger() -> None:
    bench = Bench(offer("v"), offer("w"), attempts_max=3)
    bench.queue("a")
    bench.do(ev.Done("v", 100, Outcome("sandbox_failed", None)))
    bench.do(ev.WorkerLost("w"))
    bench.do(ev.Done("v", 102, OK))
    (publish,) = (e for e in bench.effects if isinstance(e, ev.Publish))
    bench.do(ev.Published(publish.entry, Outcome("storage_full", None)))
    assert bench.told("a")[-1] == "storage_full"
    assert bench.recorded() == [
        ("submitted", None, ""),
        ("assigned", 1, ""),
        ("attempted", 1, "sandbox_failed"),
        ("assigned", 2, ""),
        ("attempted", 2, "node_down"),
        ("assigned", 3, ""),
        ("failed", 3, "storage_full"),
    ]


def test_who_asked_first_and_that_nobody_ran_it_are_in_the_ledger() -> None:
    bench = Bench(offer("v"))
    bench.do(ev.Want("a", wanted()))
    bench.do(ev.Want("b", wanted()))
    (lookup,) = (e for e in bench.effects if isinstance(e, ev.Lookup))
    bench.do(ev.Found(lookup.entry, OK))
    assert bench.recorded() == [("submitted", None, ""), ("cached", None, "")]
    assert [e.operation for e in bench.effects if isinstance(e, ev.Record)] == ["a", ""]


def test_what_no_worker_offers_is_refused_by_name() -> None:
    bench = Bench(offer("v"))
    bench.queue("a", requirements=LINUX | {("gpu", "yes")})
    (tell,) = (e for e in bench.effects if isinstance(e, ev.Tell) and e.outcome)
    assert tell.outcome is not None
    assert tell.outcome.code == "no_capable_worker"
    assert "gpu=yes" in tell.outcome.message


def test_trust_is_the_controllers_word_not_the_workers() -> None:
    boasting = replace(offer("v", properties=LINUX | {("tier", "local")}), tier="untrusted")
    bench = Bench(boasting)
    bench.queue("a", requirements=LINUX | {("tier", "local")})
    assert bench.told("a")[-1] == "no_capable_worker"
    (tell,) = (e for e in bench.effects if isinstance(e, ev.Tell) and e.outcome)
    assert tell.outcome is not None
    assert "is of the tier local or above (untrusted)" in tell.outcome.message
    bench.queue("b", 1, requirements=LINUX)
    assert bench.told("b")[-1] == "no_capable_worker"
    bench.queue("c", 2, requirements=LINUX | {("tier", "untrusted")})
    assert bench.leases() == [(100, "v")]


def test_what_a_lost_worker_offered_is_waited_for() -> None:
    bench = Bench(offer("v"), offer("g", properties=LINUX | {("gpu", "yes")}), absent_worker_s=60.0)
    bench.do(ev.WorkerLost("g"))
    bench.queue("a", requirements=frozenset({("gpu", "yes")}))
    assert bench.told("a") == ["queued"]
    bench.do(ev.Tick(60.0))
    assert bench.told("a")[-1] == "no_capable_worker"


def test_without_any_worker_an_action_waits() -> None:
    bench = Bench()
    bench.queue("a")
    bench.do(ev.Tick(1e6))
    assert bench.told("a") == ["queued"]
    bench.do(ev.WorkerUp(offer("v")))
    assert bench.leases() == [(100, "v")]


def test_lower_priority_numbers_first_then_first_come() -> None:
    bench = Bench()
    for number, priority in enumerate([5, 0, 5, -1]):
        bench.queue(f"o{number}", number, priority=priority)
    bench.do(ev.WorkerUp(offer("v", slots=4)))
    order = [e.lease.key.digest.hash[-1] for e in bench.effects if isinstance(e, ev.Assign)]
    assert order == ["3", "1", "0", "2"]


def test_a_full_queue_refuses_at_once() -> None:
    bench = Bench(queue_length_max=1)
    bench.queue("a", 1)
    bench.queue("b", 2)
    assert (bench.told("a"), bench.told("b")) == (["queued"], ["overloaded"])


def test_a_cancelled_follower_leaves_the_others_their_action() -> None:
    bench = Bench(offer("v"))
    bench.queue("a")
    bench.queue("b")
    bench.do(ev.Cancel("a"))
    assert bench.told("a")[-1] == "cancelled"
    assert not any(isinstance(e, ev.Stop) for e in bench.effects)
    bench.do(ev.Cancel("b"))
    assert ev.Stop("v", 100, "cancelled") in bench.effects
    assert [e.lease.fence for e in bench.effects if isinstance(e, ev.Record) and e.kind == "action.cancelled"] == [100]
    assert bench.core.entries == {}


def test_blobs_that_were_lost_are_made_once_more() -> None:
    bench = Bench(offer("v"))
    bench.queue("a")
    lost = Outcome("blobs_missing", None)
    for fence in (100, 101):
        effects = bench.do(ev.Done("v", fence, OK))
        (publish,) = (e for e in effects if isinstance(e, ev.Publish))
        bench.do(ev.Published(publish.entry, lost))
    assert bench.told("a")[-1] == "blobs_missing"


def test_a_draining_worker_is_given_nothing() -> None:
    bench = Bench(offer("v"))
    bench.do(ev.Drain("v"))
    bench.queue("a")
    assert bench.leases() == []


@pytest.mark.parametrize(
    "event",
    [
        ev.Found(9, OK),
        ev.WorkerLost("x"),
        ev.Drain("x"),
        ev.Accepted("x", 9),
        ev.Published(9, OK),
        ev.Cancel("x"),
        ev.Tick(1.0),
    ],
)
def test_what_is_not_known_changes_nothing(event: ev.Event) -> None:
    assert Bench(offer("v")).do(event) == []


class Offered:
    """A ResourceMatcher whose answers a test sets by node; what it does not set nobody can tell."""

    def __init__(self) -> None:
        self.answers: dict[str, bool | None] = {}
        self.asked: set[tuple[str, ...]] = set()

    def meets(self, node: str, constraints: tuple[str, ...]) -> bool | None:
        self.asked.add(constraints)
        return self.answers.get(node)

    def why_not(self, constraints: tuple[str, ...]) -> str:
        return "because"


def test_a_constraint_is_waited_for_while_nobody_can_tell_and_refused_when_all_can() -> None:
    offered = Offered()
    scheduler = core.SchedulerCore(core.Limits(), resources=offered)
    scheduler.step(ev.WorkerUp(offer("a")))
    needs = LINUX | {("require", "gcc>=12"), ("require", "arch=x86_64")}
    scheduler.step(ev.Want("1", wanted(1, requirements=needs, do_not_cache=True)))
    assert offered.asked == {("arch=x86_64", "gcc>=12")}
    assert scheduler.queue_length == 1
    offered.answers["a"] = True
    assigned = [e for e in scheduler.step(ev.ResourcesChanged()) if isinstance(e, ev.Assign)]
    assert [effect.lease.worker for effect in assigned] == ["a"]
    offered.answers = {"a": False, "b": False}
    scheduler.step(ev.WorkerUp(offer("b")))
    told = scheduler.step(ev.Want("2", wanted(2, requirements=needs, do_not_cache=True)))
    outcome = next(effect.outcome for effect in told if isinstance(effect, ev.Tell) and effect.outcome)
    assert outcome.code == "no_capable_worker"
    assert "none of the 2 workers that joined meets arch=x86_64, gcc>=12 (because)" in outcome.message


def test_without_a_catalog_no_constraint_is_met() -> None:
    assert core.matches(wanted(requirements=LINUX | {("require", "gcc")}), offer("a")) is False
    assert core.matches(wanted(), offer("a")) is True
