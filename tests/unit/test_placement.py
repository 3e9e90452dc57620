"""Who is given which worker, one promise a test: amounts, shares, priorities, quotas, inputs, second attempts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.model.action import CONSTRAINT, ActionKey, Outcome, Wanted
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.model.node import SLOTS_MAX, WorkerOffer, attempts_max
from buildnet.scheduler import core
from buildnet.scheduler import events as ev
from buildnet.scheduler.limits import Quota, Quotas

OK = Outcome("ok", b"r")
TWO = Amounts(2000)


class Bench:
    """A core, what it asked for, and what runs."""

    def __init__(self, *offers: WorkerOffer, **limits: Any) -> None:
        self.core = core.SchedulerCore(core.Limits(**limits))
        self.effects: list[ev.Effect] = []
        self.running: dict[int, tuple[str, int]] = {}
        self.number = 0
        for offer in offers:
            self.do(ev.WorkerUp(offer))

    def do(self, event: ev.Event) -> list[ev.Effect]:
        fresh = self.core.step(event)
        self.effects += fresh
        for effect in fresh:
            if isinstance(effect, ev.Assign):
                lease = effect.lease
                self.running[lease.fence] = (lease.worker, int(lease.key.digest.hash, 16))
        return fresh

    def want(self, share: tuple[str, str, str] = ("", "", ""), asked: Amounts = NOTHING, **fields: Any) -> int:
        """Want another action, or the one of that number too; returns the number of the operation."""
        self.number += 1
        key = ActionKey("", Digest(f"{fields.pop('same_as', self.number):064x}", 1))
        requirements = fields.pop("requirements", frozenset())
        self.do(
            ev.Want(
                str(self.number),
                Wanted(key, requirements, 60.0, skip_cache_lookup=True, share=share, asked=asked, **fields),
            )
        )
        return self.number

    def end(self, fence: int, outcome: Outcome = OK) -> None:
        worker, _ = self.running.pop(fence)
        for effect in self.do(ev.Done(worker, fence, outcome)):
            if isinstance(effect, ev.Publish):
                self.do(ev.Published(effect.entry, outcome))

    def end_oldest(self) -> None:
        self.end(min(self.running))

    def order(self) -> list[int]:
        return [int(e.lease.key.digest.hash, 16) for e in self.effects if isinstance(e, ev.Assign)]

    def told(self, number: int) -> Outcome | None:
        outcomes = (e.outcome for e in self.effects if isinstance(e, ev.Tell) and e.operation == str(number))
        return next((outcome for outcome in outcomes if outcome is not None), None)


def offer(node: str, slots: int = 1, capacity: Amounts | None = None, **properties: str) -> WorkerOffer:
    return WorkerOffer(node, "boot", slots, frozenset(properties.items()), capacity=capacity)


def test_what_is_reserved_is_never_more_than_there_is_and_is_told_in_the_lease() -> None:
    bench = Bench(offer("v", 8, Amounts(4000, 8 << 30)))
    for _ in range(4):
        bench.want(asked=Amounts(1000, 3 << 30))
    assert bench.order() == [1, 2]
    assert [e.lease.reserved for e in bench.effects if isinstance(e, ev.Assign)] == [Amounts(1000, 3 << 30)] * 2
    assert bench.core.workers["v"].used == Amounts(2000, 6 << 30)
    bench.end_oldest()
    assert bench.order() == [1, 2, 3]


def command_ended(bench: Bench, fence: int) -> None:
    bench.do(ev.CommandEnded(bench.running[fence][0], fence))


def test_what_a_command_took_is_free_once_it_has_ended_but_for_the_disk_of_its_outputs() -> None:
    asked = Amounts(2000, 1 << 30, 10, 1)
    bench = Bench(offer("w", 1, Amounts(2000, 1 << 30, 25, 1)))
    for _ in range(3):
        bench.want(asked=asked)
    assert bench.order() == [1]
    command_ended(bench, 1)
    assert bench.order() == [1, 2]
    worker = bench.core.workers["w"]
    assert worker.used == Amounts(2000, 1 << 30, 20, 1)
    assert worker.fences == {1, 2}, "its lease lasts"
    # Where one sends already, as there are slots, the next keeps what it has until that has ended.
    command_ended(bench, 2)
    assert (bench.order(), worker.sending) == ([1, 2], 1)
    bench.end(1)
    assert (bench.order(), worker.sending, worker.used.disk_bytes) == ([1, 2, 3], 1, 20)
    bench.end(2)
    bench.end(3)
    assert (worker.used, worker.sending, worker.fences) == (NOTHING, 0, set())


def test_a_slot_is_free_once_the_command_has_ended_and_a_quota_too() -> None:
    bench = Bench(offer("w"), quotas=Quotas(users={"u": Quota(actions_max=1)}))
    for _ in range(2):
        bench.want(("", "u", "i"))
    command_ended(bench, 1)
    assert bench.order() == [1, 2]
    assert {share.running for share in bench.core.dispatch.shares.root.children.values()} == {1}
    bench.end(2)
    bench.end(1)
    assert not bench.core.entries


def test_the_end_of_a_command_counts_once_and_of_nobody_elses_lease() -> None:
    bench = Bench(offer("v"), offer("w"))
    for _ in range(4):
        bench.want()
    bench.do(ev.CommandEnded("v" if bench.running[1][0] == "w" else "w", 1))
    bench.do(ev.CommandEnded("w", 99))
    assert bench.order() == [1, 2]
    for _ in range(3):
        command_ended(bench, 1)
    assert bench.order() == [1, 2, 3]
    bench.end(1)
    bench.do(ev.CommandEnded("w", 1))
    assert bench.order() == [1, 2, 3], "what one that sends gives back at its end is its disk"


def test_what_sends_is_queued_again_with_what_runs_when_the_worker_is_lost() -> None:
    bench = Bench(offer("w"))
    for _ in range(2):
        bench.want()
    command_ended(bench, 1)
    bench.do(ev.WorkerLost("w"))
    assert bench.core.queue_length == 2
    # It comes back with both, and says again that one command has ended.
    bench.do(ev.WorkerUp(offer("w"), (1, 2)))
    command_ended(bench, 1)
    bench.want()
    assert bench.order() == [1, 2], "the other runs"
    bench.end(2)
    assert bench.order() == [1, 2, 3]


def test_one_that_sends_is_cancelled_and_no_straggler() -> None:
    bench = Bench(offer("v"), offer("w"), speculate=True, straggler_min_s=1.0)
    for _ in range(6):
        bench.want()
        bench.end_oldest()
    number = bench.want()
    (fence,) = bench.running
    command_ended(bench, fence)
    bench.do(ev.Tick(3.0))
    assert len(bench.running) == 1
    effects = bench.do(ev.Cancel(str(number)))
    assert [effect.fence for effect in effects if isinstance(effect, ev.Stop)] == [fence]
    assert not any(worker.sending or worker.fences for worker in bench.core.workers.values())


def test_who_leaves_what_sends_gives_back_nothing_twice() -> None:
    bench = Bench(offer("w"))
    first = bench.want(("", "u", "i"))
    bench.want(("", "v", "i"), same_as=first)
    command_ended(bench, 1)
    bench.do(ev.Cancel(str(first)))
    check(bench.core)
    bench.end(1)
    check(bench.core)


def test_a_small_one_goes_where_a_large_one_does_not_fit() -> None:
    bench = Bench(offer("v", 4, Amounts(3000)))
    for asked in (TWO, TWO, Amounts(1000)):
        bench.want(asked=asked)
    assert bench.order() == [1, 3]


def prefetched(bench: Bench, worker: str) -> list[int]:
    """What the worker is told with its next beat."""
    fences = tuple(fence for fence, (node, _) in bench.running.items() if node == worker)
    effects = bench.do(ev.Heartbeat(worker, fences, 0.0))
    return [int(effect.key.digest.hash, 16) for effect in effects if isinstance(effect, ev.Prefetch)]


def test_a_full_worker_fetches_ahead_what_comes_next_and_then_runs_it() -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.want(near=(1,))
    bench.want(near=(2,))
    for number in (3, 4, 5):
        bench.want(near=(number,))
    assert prefetched(bench, "w") == [3]
    assert prefetched(bench, "v") == [4]
    # One at a time, until that has begun.
    assert prefetched(bench, "w") == prefetched(bench, "v") == []
    bench.end(next(fence for fence, (node, _) in bench.running.items() if node == "v"))
    assert bench.order()[-1] == 4, "what its worker has goes before the head, which can wait"
    assert prefetched(bench, "v") == [5]


def test_nothing_is_fetched_ahead_where_a_slot_is_free_or_the_inputs_are_there() -> None:
    bench = Bench(offer("v", 2), offer("w"))
    for _ in range(3):
        bench.want(near=(1,))
    bench.want(near=(1,), requirements=frozenset({("x", "y")}))
    assert prefetched(bench, "v") == []
    bench.want(near=(1,))
    assert prefetched(bench, bench.running[max(bench.running)][0]) == [], "the inputs of the last that began are there"
    bench.want(near=(2,))
    bench.do(ev.Cordon("v", cordoned=True))
    assert prefetched(bench, "v") == [], "it is given no more work"


def test_what_was_fetched_ahead_runs_wherever_a_slot_is_free_first() -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.want(near=(1,))
    bench.want(near=(2,))
    bench.want(near=(3,))
    assert prefetched(bench, "w") == [3]
    bench.end(next(fence for fence, (node, _) in bench.running.items() if node == "v"))
    assert bench.running[max(bench.running)] == ("v", 3)
    bench.want(near=(4,))
    assert prefetched(bench, "w") == [4]


def test_what_asks_for_nothing_is_bounded_by_slots_and_takes_a_slots_worth() -> None:
    bench = Bench(offer("v", 8, Amounts(2000)))
    for _ in range(9):
        bench.want()
    assert len(bench.running) == 8
    assert bench.core.workers["v"].used == Amounts(2000)


def test_what_asks_for_cpus_is_bounded_by_them_and_the_rest_by_slots() -> None:
    bench = Bench(offer("v", 4, Amounts(4000)))
    small = [bench.want(asked=Amounts(100)) for _ in range(20)]
    assert bench.order() == small
    plain = [bench.want() for _ in range(3)]
    assert bench.order() == small + plain[:2], "a slot takes one of the 2000 that are left"
    bench = Bench(offer("v", 1, Amounts(4000)))
    plain = [bench.want() for _ in range(2)]
    asks = bench.want(asked=Amounts(1000))
    assert bench.order() == [plain[0], asks], "there is one slot"
    bench.end(1)
    assert bench.order() == [plain[0], asks, plain[1]]


def test_what_is_very_small_is_bounded_by_slots_after_all() -> None:
    bench = Bench(offer("v", 2, Amounts(64_000)), offer("w", 2))
    for _ in range(50):
        bench.want(asked=Amounts(1))
    assert Counter(node for node, _ in bench.running.values()) == {"v": 32, "w": 2}
    assert attempts_max(1024, Amounts(1)) == SLOTS_MAX


def test_what_waits_for_a_slot_is_fetched_ahead_where_processors_are_left() -> None:
    bench = Bench(offer("v", 1, Amounts(4000)), lease_s=1000.0)
    bench.want(near=(1,))
    bench.want(near=(2,))
    assert prefetched(bench, "v") == [2]


def test_what_can_fit_nowhere_is_refused_with_what_there_is() -> None:
    bench = Bench(offer("v", 4, Amounts(4000, 8 << 30)), offer("w", 4, Amounts(2000)))
    outcome = bench.told(bench.want(asked=Amounts(8000, 1 << 30, gpus=1)))
    assert outcome is not None
    assert outcome.code == "no_capable_worker"
    for words in (
        "8 cpus, 1 GiB of memory, 1 gpu",
        "v has 4 cpus, 8 GiB of memory",
        "w has 2 cpus",
        "workers without namespaces",
    ):
        assert words in outcome.message
    outcome = bench.told(bench.want(asked=Amounts(8000)))
    assert outcome is not None
    assert outcome.message.endswith("ask for less, or join a larger worker")


def test_nobody_gives_one_action_more_than_it_is_told_to() -> None:
    small = replace(offer("v", 4, Amounts(4000, 8 << 30, 8 << 30)), action_max=Amounts(0, 1 << 30, 2 << 30))
    bench = Bench(small, offer("w", 1, Amounts(4000, 4 << 30)))
    for asked in (Amounts(0, 2 << 30), Amounts(0, 0, 3 << 30)):
        bench.want(asked=asked)
        ((fence, (worker, _)),) = bench.running.items()
        assert worker == "w"
        bench.end(fence)
    bench = Bench(small)
    for asked in (Amounts(0, 1 << 30), Amounts(0, 0, 2 << 30), Amounts(4000)):
        assert bench.told(bench.want(asked=asked)) is None
    outcome = bench.told(bench.want(asked=Amounts(0, 2 << 30)))
    assert outcome is not None
    assert outcome.code == "no_capable_worker"
    for words in (
        "has 2 GiB of memory: v has 4 cpus, 8 GiB of memory, 8 GiB of disk and gives one action 1 GiB of memory, 2 GiB",
        "ask for less, or join a larger worker, or raise its --memory-max or --disk-max",
    ):
        assert words in outcome.message


def test_a_decision_matches_nobody_anew_for_what_failed_somewhere() -> None:
    class Counting:
        """Everybody meets everything; how often that was asked."""

        asked = 0

        def meets(self, node: str, constraints: tuple[str, ...]) -> bool:
            self.asked += 1
            return True

        def why_not(self, constraints: tuple[str, ...]) -> str:
            return ""

    resources = Counting()
    bench = Bench()
    bench.core = core.SchedulerCore(core.Limits(), resources=resources)
    for node in ("v", "w"):
        bench.do(ev.WorkerUp(offer(node)))
    for _ in range(9):
        bench.want(requirements=frozenset({(CONSTRAINT, "gcc")}))
    bench.end(1, Outcome("sandbox_failed", None))
    asked = resources.asked
    while bench.running:
        bench.end_oldest()
    assert len(bench.order()) == 10, "one was tried again, on the other worker"
    assert resources.asked == asked


def test_those_that_failed_are_asked_again_when_nobody_else_is_there() -> None:
    bench = Bench(offer("v"), offer("w"))
    first = bench.want()
    bench.want()
    bench.end(1, Outcome("sandbox_failed", None))
    assert bench.order() == [1, 2], "v is free, and failed at it: it waits for w"
    bench.do(ev.WorkerLost("w", may_return=False))
    assert bench.order()[2] == first
    assert bench.running[3] == ("v", first)


def test_equal_values_of_what_waits_are_held_once() -> None:
    bench = Bench(offer("v"))
    for _ in range(3):
        bench.want(("o" * 2, "u" * 2, "i" * 2), Amounts(1, 1 << 20), requirements=frozenset({("a", "b" * 2)}))
    waiting = [entry.wanted for entry in bench.core.entries.values()]
    for values in zip(*((w.requirements, w.asked, w.share) for w in waiting), strict=True):
        assert len({id(value) for value in values}) == 1


def test_gpus_are_left_to_those_that_ask_for_them() -> None:
    bench = Bench(offer("a", 2, Amounts(2000, gpus=1)), offer("b", 1, Amounts(1000)))
    for _ in range(2):
        bench.want()
    assert [worker for worker, _ in bench.running.values()] == ["b", "a"]


def test_a_large_one_is_not_passed_by_for_ever() -> None:
    bench = Bench(offer("v", 2, TWO), hold_after_s=10.0)
    bench.want()
    bench.want()
    large = bench.want(asked=TWO)
    for _ in range(5):
        bench.want()
    for second in range(8):
        bench.do(ev.Tick(float(second)))
        bench.end_oldest()
        bench.want()
        if large in bench.order():
            break
        bench.do(ev.Heartbeat("v", tuple(bench.running), float(second)))
    else:
        bench.do(ev.Heartbeat("v", tuple(bench.running), 10.0))
        bench.end_oldest()
        assert large not in bench.order(), "one slot is kept free, the other still runs"
        bench.end_oldest()
    assert bench.order()[-1] == large


def test_shares_are_of_what_runs_by_weight() -> None:
    quotas = Quotas(organisations={"a": Quota(weight=3)})
    bench = Bench(offer("v", 8), quotas=quotas)
    for name in ("a", "b"):
        for _ in range(40):
            bench.want((name, "", ""))
    for _ in range(50):
        bench.end_oldest()
        shares = bench.core.dispatch.shares.root.children
        if {"a", "b"} <= shares.keys() and shares["a"].queued and shares["b"].queued and len(bench.order()) > 24:
            assert (shares["a"].running, shares["b"].running) == (6, 2)


def test_one_slot_serves_all_in_turn() -> None:
    bench = Bench(offer("v"))
    for name in ("a", "b", "c"):
        for _ in range(3):
            bench.want(("", name, ""))
    for _ in range(8):
        bench.end_oldest()
    served = [(number - 1) // 3 for number in bench.order()]
    assert [Counter(served[i : i + 3]) for i in (0, 3, 6)] == [Counter({0: 1, 1: 1, 2: 1})] * 3


def test_who_comes_later_does_not_wait_for_all_that_came_before() -> None:
    bench = Bench(offer("v"))
    for _ in range(50):
        bench.want(("", "flood", ""))
    late = bench.want(("", "late", ""))
    bench.end_oldest()
    assert bench.order()[-1] == late


def test_a_priority_counts_among_a_users_own_and_is_worth_a_time() -> None:
    bench = Bench(offer("v"), age_s=10.0, lease_s=1000.0)
    bench.want()
    low = bench.want(priority=2)
    high = bench.want(priority=0)
    bench.do(ev.Tick(25.0))
    later = bench.want(priority=0)
    for _ in range(3):
        bench.do(ev.Heartbeat("v", tuple(bench.running), 25.0))
        bench.end_oldest()
    assert [n for n in bench.order() if n in (low, high, later)] == [high, low, later]


def test_a_follower_gives_its_priority_to_what_it_joins() -> None:
    bench = Bench(offer("v"))
    bench.want()
    bench.want(priority=0)
    slow = bench.want(priority=5)
    key = ActionKey("", Digest(f"{slow:064x}", 1))
    bench.do(ev.Want("follower", Wanted(key, frozenset(), 60.0, priority=-5, share=("", "another", ""))))
    bench.end_oldest()
    assert bench.order()[-1] == slow


def test_a_follower_gives_its_turn_to_what_it_joins() -> None:
    bench = Bench(offer("v"))
    for _ in range(50):
        last = bench.want(("", "flood", ""))
    bench.want(("", "late", ""), same_as=last)
    bench.end_oldest()
    assert bench.order()[-1] == last
    check(bench.core)


def quota_of_one(**others: Quota) -> Bench:
    """Two slots, of which `a` may use one, and does; another of `a` waits."""
    bench = Bench(offer("v", 2), quotas=Quotas(users={"a": Quota(actions_max=1), **others}), lease_s=1000.0)
    for _ in range(2):
        bench.want(("", "a", ""))
    assert bench.order() == [1]
    return bench


def running_of(bench: Bench) -> dict[str, int]:
    """How many run for each user."""
    check(bench.core)
    organisations = bench.core.dispatch.shares.root.children.values()
    return {user.name: user.running for one in organisations for user in one.children.values() if user.running}


def test_a_quota_keeps_nothing_that_another_wants_who_is_not_at_his() -> None:
    bench = quota_of_one()
    bench.want(("", "b", ""), same_as=2)
    assert bench.order() == [1, 2]
    assert running_of(bench) == {"a": 1, "b": 1}
    bench.end(2)
    assert running_of(bench) == {"a": 1}


def test_what_two_wait_for_begins_once_and_waits_for_nobody_then() -> None:
    bench = quota_of_one(b=Quota(actions_max=1))
    bench.want(("", "b", ""))
    bench.want(("", "b", ""), same_as=2)
    assert bench.order() == [1, 3], "both are at their quotas"
    bench.end(2)
    bench.end(1)
    assert (bench.order(), running_of(bench)) == ([1, 3, 2], {"b": 1})
    bench.end(3)
    assert not bench.core.entries
    assert not bench.core.dispatch.shares.root.children


def test_who_leaves_takes_his_turn_with_him() -> None:
    bench = quota_of_one(b=Quota(actions_max=1))
    bench.want(("", "b", ""))
    follower = bench.want(("", "b", ""), same_as=2)
    bench.do(ev.Cancel(str(follower)))
    bench.end(2)
    assert bench.order() == [1, 3], "nobody but a waits for it"
    bench.end(1)
    assert (bench.order(), running_of(bench)) == ([1, 3, 2], {"a": 1})


def test_when_the_first_leaves_it_waits_in_the_shares_of_the_others() -> None:
    bench = quota_of_one(b=Quota(actions_max=1))
    bench.want(("", "b", ""))
    bench.want(("", "b", ""), same_as=2)
    bench.do(ev.Cancel("2"))
    bench.end(1)
    assert bench.order() == [1, 3], "b is at his quota"
    bench.end(2)
    assert running_of(bench) == {"b": 1}
    bench.end(3, Outcome("sandbox_failed", None))
    assert (bench.order(), running_of(bench)) == ([1, 3, 2, 2], {"b": 1}), "it is tried again for b"


def test_what_runs_counts_for_those_who_want_it_still_if_their_quotas_let() -> None:
    bench = quota_of_one(c=Quota(actions_max=1))
    bench.want(("", "b", ""), same_as=1)
    bench.do(ev.Cancel("1"))
    assert bench.order() == [1, 2], "of a nothing runs, and so the next begins"
    assert running_of(bench) == {"a": 1, "b": 1}
    bench.want(("", "c", ""), same_as=2)
    bench.do(ev.WorkerUp(offer("w")))
    bench.want(("", "c", ""))
    bench.do(ev.Cancel("2"))
    assert running_of(bench) == {"a": 1, "b": 1, "c": 1}, "c is at his quota: it stays where it is"


def test_a_follower_whose_quota_can_never_hold_it_waits_with_the_first() -> None:
    bench = quota_of_one(b=Quota(actions_max=0))
    follower = bench.want(("", "b", ""), same_as=2)
    bench.do(ev.Cancel("2"))
    assert bench.order() == [1]
    bench.end(1)
    bench.end(2)
    assert bench.told(follower) == OK


def test_what_is_looked_up_waits_then_for_all_who_want_it() -> None:
    bench = quota_of_one()
    key = ActionKey("", Digest(f"{9:064x}", 1))
    for number, user in enumerate(("a", "b", "a")):
        bench.do(ev.Want(f"of {user} {number}", Wanted(key, frozenset(), 60.0, share=("", user, ""))))
        check(bench.core)
    looked_up = next(effect.entry for effect in bench.effects if isinstance(effect, ev.Lookup))
    bench.do(ev.Cancel("of a 0"))
    check(bench.core)
    bench.do(ev.Found(looked_up, None))
    assert (bench.order(), running_of(bench)) == ([1, 9], {"a": 1, "b": 1})


@pytest.mark.parametrize("quota", [Quota(actions_max=1), Quota(cpu_milli_max=1500)])
def test_a_quota_bounds_what_runs_and_lets_others_pass(quota: Quota) -> None:
    bench = Bench(offer("v", 4), quotas=Quotas(users={"a": quota}))
    for name in ("a", "a", "b", "b"):
        bench.want(("", name, ""))
    assert bench.order() == [1, 3, 4]
    bench.end(min(bench.running))
    assert bench.order() == [1, 3, 4, 2]


def test_quotas_refuse_at_once_what_is_over_them_with_the_remedy() -> None:
    quotas = Quotas(organisations={"o": Quota(queued_max=1)}, users={"*": Quota(cpu_milli_max=2000)})
    bench = Bench(quotas=quotas)
    bench.want(("o", "a", ""))
    full, large = bench.told(bench.want(("o", "b", ""))), bench.told(bench.want(("", "c", ""), Amounts(3000)))
    assert full is not None
    assert large is not None
    assert (full.code, large.code) == ("overloaded", "no_capable_worker")
    assert "queued_max" in full.message
    assert "the user 'c'" in large.message


def test_the_worker_that_has_the_inputs_is_preferred() -> None:
    bench = Bench(offer("v", 2), offer("w", 2))
    first = bench.want(near=(7,))
    bench.want(near=(8,))
    bench.end(next(fence for fence, (_, number) in bench.running.items() if number == first))
    bench.want(near=(7,))
    bench.want(near=(8,))
    assert [e.lease.worker for e in bench.effects if isinstance(e, ev.Assign)] == ["v", "w", "v", "w"]


def test_one_whose_inputs_are_there_may_pass_another_that_has_not_waited_long() -> None:
    for waited_s, passes in ((0.0, True), (5.0, False)):
        bench = Bench(offer("v"), near_wait_s=2.0, lease_s=60.0)
        bench.want(near=(1,))
        first, second = bench.want(near=(2,)), bench.want(near=(1,))
        bench.do(ev.Tick(waited_s))
        bench.end_oldest()
        assert bench.order()[-1] == (second if passes else first)


def test_a_failure_of_the_node_is_tried_elsewhere_even_if_that_takes_waiting() -> None:
    bench = Bench(offer("v"), offer("w"))
    bench.want()
    busy = bench.want()
    bench.end(min(bench.running), Outcome("sandbox_failed", None))
    assert busy in [number for _, number in bench.running.values()]
    assert len(bench.order()) == 2, "v is free, and failed at it; w is able, and busy"
    bench.end(min(bench.running))
    assert bench.running.popitem()[1] == ("w", 1)


def test_losses_and_faults_are_bounded_apart() -> None:
    for code, most in (("sandbox_failed", 3), ("node_down", 5)):
        bench = Bench(offer("v"), offer("w"))
        bench.want()
        while bench.running:
            bench.end(min(bench.running), Outcome(code, None))
        assert len(bench.order()) == most
        outcome = bench.told(1)
        assert outcome is not None
        assert outcome.code == code


def straggling(**limits: Any) -> Bench:
    bench = Bench(offer("v", 1), speculate=True, straggler_min_s=1.0, lease_s=1000.0, **limits)
    for second in range(6):
        bench.do(ev.Tick(float(second)))
        bench.want()
        bench.do(ev.Tick(second + 0.5))
        bench.end_oldest()
    bench.want()
    bench.do(ev.WorkerUp(offer("w")))
    return bench


@pytest.mark.parametrize("winner", ["v", "w"])
def test_a_straggler_is_tried_twice_and_the_loser_is_stopped(winner: str) -> None:
    bench = straggling()
    assert len(bench.running) == 1
    deadline_s = bench.core.next_deadline_s()
    assert deadline_s is not None
    bench.do(ev.Tick(deadline_s))
    (first, second) = sorted(bench.running)
    assert bench.running[second][0] == "w"
    won, lost = (first, second) if winner == "v" else (second, first)
    before = len(bench.effects)
    loser = bench.running[lost][0]
    bench.end(won)
    assert ev.Stop(loser, lost, "another attempt was first") in bench.effects[before:]
    bench.end(lost)
    assert sum(isinstance(e, ev.Publish) for e in bench.effects[before:]) == 1
    assert not any(worker.fences for worker in bench.core.workers.values())


def test_a_loser_that_is_not_stopped_would_run_for_nobody() -> None:
    bench = straggling()
    bench.core._on = core.Mechanisms(stop_loser=False)
    bench.do(ev.Tick(bench.core.next_deadline_s() or 0.0))
    before = len(bench.effects)
    bench.end(min(bench.running))
    assert len(bench.running) == 1
    assert not bench.core.entries
    assert not any(isinstance(effect, ev.Stop) for effect in bench.effects[before:])


def test_of_two_attempts_one_may_be_lost() -> None:
    bench = straggling()
    bench.do(ev.Tick(bench.core.next_deadline_s() or 0.0))
    bench.do(ev.WorkerLost("v"))
    assert [e.lease.worker for e in bench.effects if isinstance(e, ev.Assign)][-1] == "w"
    bench.end(max(bench.running))
    assert bench.told(7) == OK


def test_nothing_is_tried_twice_unless_it_is_asked_for() -> None:
    bench = straggling()
    quiet = Bench(offer("v"), lease_s=1000.0)
    for second in range(7):
        quiet.do(ev.Tick(float(second)))
        quiet.want()
        if second < 6:
            quiet.end_oldest()
    quiet.do(ev.WorkerUp(offer("w")))
    quiet.do(ev.Tick(900.0))
    assert (len(bench.order()), len(quiet.order())) == (7, 7)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_books_balance_whatever_happens(history: list[tuple[int, int, int]]) -> None:
    quotas = Quotas(users={"u1": Quota(actions_max=1), "u2": Quota(weight=4, cpu_milli_max=3000)})
    bench = Bench(quotas=quotas, speculate=True, straggler_min_s=0.5, hold_after_s=1.0, lease_s=3.0)
    now_s = 0.0
    for what, which, more in history:
        match what:
            case 0 | 1 | 2 | 3:
                asked = (NOTHING, Amounts(400, 1 << 30, 1), TWO, Amounts(2000, gpus=1))[more]
                bench.want((f"o{which % 2}", f"u{which}", "i"), asked, priority=which - 2, near=(more,))
            case 4:
                bench.do(ev.WorkerUp(offer(f"w{which}", 3, Amounts(3000, 4 << 30, gpus=which % 2))))
            case 5:
                bench.do(ev.WorkerLost(f"w{which}", may_return=more > 1))
            case 6:
                bench.do(ev.Cancel(str(1 + which * 4 + more)))
            case 7:
                now_s += 0.4 * (1 + more)
                bench.do(ev.Tick(now_s))
            case 8:
                bench.do(ev.Cordon(f"w{which}", more > 1))
            case 9 if bench.number:
                # Another, or the same user in another invocation, wants something again.
                number = 1 + (which * 4 + more) % bench.number
                bench.want((f"o{which % 2}", f"u{more}", f"i{which % 3}"), same_as=number, priority=which - 3)
            case 10 | 11 if bench.running:
                # Of some it is told again, or too late.
                command_ended(bench, sorted(bench.running)[(which + more) % len(bench.running)])
            case _ if bench.running:
                fence = sorted(bench.running)[which % len(bench.running)]
                bench.end(fence, OK if more else Outcome("sandbox_failed", None))
        check(bench.core)


def check(scheduler: core.SchedulerCore) -> None:
    attempts = [
        (entry, attempt)
        for entry in scheduler.entries.values()
        for attempt in (entry.attempt, entry.second)
        if attempt is not None
    ]
    for node, worker in scheduler.workers.items():
        here = [(entry, attempt) for entry, attempt in attempts if attempt.lease.worker == node]
        assert worker.fences == {attempt.lease.fence for _, attempt in here}
        runs = [(entry, attempt) for entry, attempt in here if not attempt.sending]
        assert worker.sending == len(here) - len(runs)
        assert worker.sending <= worker.offer.slots
        assert worker.sending == worker.offer.slots or not any(attempt.ended for _, attempt in runs)
        assert worker.cpu_milli == sum(attempt.lease.reserved.cpu_milli for _, attempt in runs)
        assert worker.disk_bytes == sum(attempt.lease.reserved.disk_bytes for _, attempt in here)
        capacity = worker.offer.capacity
        assert capacity is None or worker.used.within(capacity)
        assert worker.plain == sum(entry.wanted.asked.cpu_milli == 0 for entry, _ in runs)
        assert worker.plain <= worker.offer.slots
        assert len(runs) <= worker.offer.attempts_max
    root = scheduler.dispatch.shares.root
    todo = list(root.children.values())
    while todo:
        share = todo.pop()
        todo += share.children.values()
        mine = [a for entry, a in attempts if not a.sending and _is_below(entry.share, share)]
        assert share.running == len(mine)
        assert share.queued == sum(_is_below(at, share) for entry in scheduler.entries.values() for at in waits(entry))
        sends = any(_is_below(entry.share, share) for entry, _ in attempts)
        assert share.running or share.queued or share.children or sends, "nobody is remembered for nothing"
        if share.quota.actions_max is not None:
            assert share.running <= share.quota.actions_max
        if share.quota.cpu_milli_max is not None:
            assert share.cpu_milli <= share.quota.cpu_milli_max
    assert scheduler.queue_length == sum(e.state == "queued" for e in scheduler.entries.values())


def waits(entry: Any) -> list[Any]:
    """The shares in which it waits, each once."""
    if entry.branch is None:
        return [entry.share] if entry.state == "looking" else []
    assert entry.share is entry.branch.share
    return [entry.share, *(branch.share for branch in entry.also or ())]


def _is_below(share: Any, other: Any) -> bool:
    while share is not None and share is not other:
        share = share.parent
    return share is other
