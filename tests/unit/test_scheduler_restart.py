"""What the service keeps before it tells, and what a start makes of it. A kill leaves the store's survivor."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from buildnet.errors import BlobsMissing, NodeDown, StorageFull
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.entry import Entry
from buildnet.model.node import WorkerOffer
from buildnet.model.operation import Intended
from buildnet.scheduler import service
from buildnet.scheduler.core import Limits
from buildnet.scheduler.recovery import recover
from buildnet.scheduler.service import Scheduler
from buildnet.testing.scheduler_fakes import (
    Heard,
    HeldPublisher,
    ManualClock,
    MemoryBlobs,
    MemoryCache,
    MemoryOperations,
    RecordingLink,
)

OK = Outcome("ok", b"r", worker="v")


def wanted(number: int = 0, *, do_not_cache: bool = False) -> Wanted:
    return Wanted(ActionKey("", Digest(f"{number:064x}", 1)), frozenset(), 10.0, do_not_cache=do_not_cache)


class Life:
    """One controller's life among fakes. What outlives it is handed on to the next."""

    def __init__(self, before: Life | None = None) -> None:
        self.clock = ManualClock() if before is None else before.clock
        self.blobs = MemoryBlobs() if before is None else before.blobs
        self.cache = MemoryCache(self.blobs) if before is None else before.cache
        self.ledger: dict[int, int] = {} if before is None else before.ledger
        self.store = MemoryOperations() if before is None else before.store.survivor()
        self.term = 1 if before is None else before.term + 1
        self.publisher = HeldPublisher()
        self.entries: list[Entry] = []
        ids = itertools.count()
        self.scheduler = Scheduler(
            cache=self.cache,
            publisher=self.publisher,
            record=self.entries.append,
            clock=self.clock,
            new_id=lambda: f"o{self.term}.{next(ids)}",
            limits=Limits(attempts_max=3),
            fence_first=(self.term << 32) + 1,
            store=self.store,
        )

    async def _published_since(self, start: int) -> dict[int, int]:
        return {fence: index for fence, index in self.ledger.items() if index >= start}

    @asynccontextmanager
    async def lived(self) -> AsyncIterator[Life]:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self.scheduler.run())
            await self.scheduler.serving.wait()
            now = self.clock.now_unix_ms()
            self.scheduler.restore(await recover(self.store, self.cache, self._published_since, now))
            yield self
            serving.cancel()

    def join(self, node: str = "v", running: tuple[int, ...] = ()) -> RecordingLink:
        link = RecordingLink()
        self.scheduler.worker_joined(WorkerOffer(node, "boot", 1, frozenset()), link, running)
        return link

    async def want(self, number: int = 0, *, do_not_cache: bool = False) -> tuple[str, Heard]:
        heard = Heard()
        operation = self.scheduler.submit(wanted(number, do_not_cache=do_not_cache), heard)
        await self.scheduler.kept(operation)
        return operation, heard

    def follow(self, operation: str) -> Heard:
        heard = Heard()
        self.scheduler.follow(operation, heard)
        return heard

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries]


async def leased(life: Life, node: str = "v", *, do_not_cache: bool = False) -> tuple[str, Lease]:
    link = life.join(node)
    operation, _ = await life.want(do_not_cache=do_not_cache)
    return operation, await link.assigned()


async def test_nobody_is_told_what_is_not_kept() -> None:
    async with Life().lived() as life:
        life.store.hold()
        link = life.join()
        telling = asyncio.ensure_future(life.want())
        with pytest.raises(TimeoutError):
            await link.assigned(0.01)
        assert not telling.done()
        life.store.let_go()
        await telling
        await link.assigned()


async def test_an_operation_that_cannot_be_kept_is_refused_and_stopped() -> None:
    async with Life().lived() as life:
        life.store.broken = StorageFull("no room")
        operation = life.scheduler.submit(wanted(), heard := Heard())
        with pytest.raises(StorageFull):
            await life.scheduler.kept(operation)
        assert (await heard.outcome()).code == "cancelled"
        assert life.scheduler.statistics()["entries"] == 0


async def test_a_lease_that_cannot_be_kept_is_given_to_nobody() -> None:
    async with Life().lived() as life:
        _, heard = await life.want()
        life.store.broken = StorageFull("no room")
        link = life.join()
        outcome = await heard.outcome()
        assert (outcome.code, "could not be kept" in outcome.message) == ("storage_full", True)
        assert link.leases.empty()


async def test_a_lease_that_was_cancelled_before_it_was_kept_is_not_given() -> None:
    async with Life().lived() as life:
        operation, heard = await life.want()
        life.store.hold()
        link = life.join()
        life.scheduler.cancel(operation)
        assert heard.stages[-1] == "queued", "its end is not kept either"
        life.store.let_go()
        assert (await heard.outcome()).code == "cancelled"
        assert link.leases.empty()


async def test_what_was_queued_is_queued_again_in_its_order() -> None:
    async with Life().lived() as first:
        operations = [(await first.want(number))[0] for number in range(3)]
    async with Life(first).lived() as second:
        heard = [second.follow(operation) for operation in operations]
        assert second.kinds() == [], "it was submitted once"
        link = second.join()
        for number in range(3):
            lease = await link.assigned()
            assert lease.key == wanted(number).key
            second.publisher.answer(OK)
            second.scheduler.done("v", lease.fence, OK)
            assert (await heard[number].outcome()) == OK
        fresh, _ = await second.want(9)
        assert [one.id for one in second.scheduler.operations()] == [fresh, *reversed(operations)]


async def test_what_a_worker_still_runs_is_adopted_and_published_once() -> None:
    async with Life().lived() as first:
        operation, lease = await leased(first)
    async with Life(first).lived() as second:
        second.join("w")
        link = second.join("v", (lease.fence,))
        heard = second.follow(operation)
        assert heard.stages == ["executing"]
        assert (link.stopped, second.kinds()) == ([], ["action.adopted"]), "nothing was assigned"
        second.scheduler.done("v", lease.fence, OK)
        assert link.settled == [], "its worker keeps the result until it is published"
        second.publisher.answer(OK)
        assert await heard.outcome() == OK
        assert link.settled == [lease.fence]
        assert [asked[0].fence for asked in second.publisher.asked] == [lease.fence]


async def test_a_worker_that_lost_its_attempt_is_not_waited_for() -> None:
    async with Life().lived() as first:
        _, lease = await leased(first)
    async with Life(first).lived() as second:
        assert (await second.join("v").assigned()).fence > lease.fence


@pytest.mark.parametrize("returns", [True, False], ids=["in time", "never"])
async def test_the_first_worker_back_decides_for_no_other(returns: bool) -> None:
    needs = frozenset({("gpu", "yes")})
    asked = Wanted(ActionKey("", Digest("5" * 64, 1)), needs, 10.0)
    async with Life().lived() as first:
        await first.scheduler.kept(operation := first.scheduler.submit(asked, Heard()))
    async with Life(first).lived() as second:
        heard = second.follow(operation)
        second.join("v")
        link = RecordingLink()
        second.clock.now_s += Limits().absent_worker_s - (1.0 if returns else 0.0)
        if returns:
            second.scheduler.worker_joined(WorkerOffer("g", "boot", 1, needs), link, ())
            assert (await link.assigned()).key == asked.key
        else:
            second.scheduler.heartbeat("v", ())
            assert (await heard.outcome()).code == "no_capable_worker"


async def test_a_worker_that_does_not_come_back_is_waited_for_until_a_time() -> None:
    async with Life().lived() as first:
        _, lease = await leased(first)
    async with Life(first).lived() as second:
        other = second.join("w")
        assert "action.assigned" not in second.kinds()
        second.clock.now_s += Limits().return_s
        second.scheduler.resources_changed()
        again = await other.assigned()
        assert (again.fence > lease.fence, again.attempt) == (True, 2)
        late = second.join("v", (lease.fence,))
        assert [fence for fence, _ in late.stopped] == [lease.fence]


@pytest.mark.parametrize("older", [False, True], ids=["unknown", "older"])
async def test_only_the_newest_fence_of_an_action_is_adopted(older: bool) -> None:
    async with Life().lived() as first:
        _, lease = await leased(first)
        stale = lease.fence + 7
        if older:
            other = first.join("w")
            first.scheduler.worker_lost("v")
            await other.assigned()
            stale = lease.fence
    async with Life(first).lived() as second:
        link = second.join("v", (stale,))
        assert [fence for fence, _ in link.stopped] == [stale]


async def test_a_result_that_was_published_ends_its_operations_without_a_second_publication() -> None:
    async with Life().lived() as first:
        operation, lease = await leased(first)
        first.store.intend(lease.fence, Intended(OK, cacheable=True, ledger_size=3))
        first.ledger[lease.fence] = 4
    async with Life(first).lived() as second:
        assert await second.follow(operation).outcome() == replace(OK, entry_index=4)
        assert second.cache.results[wanted().key] == (b"r", 4)
        assert second.publisher.asked == []
        assert second.scheduler.statistics()["entries"] == 0
    async with Life(second).lived() as third:
        assert await third.follow(operation).outcome() == replace(OK, entry_index=4)


async def test_a_result_that_was_about_to_be_published_is_published() -> None:
    async with Life().lived() as first:
        operation, lease = await leased(first)
        first.store.intend(lease.fence, Intended(OK, cacheable=True, ledger_size=3))
    async with Life(first).lived() as second:
        heard = second.follow(operation)
        second.publisher.answer(replace(OK, entry_index=3))
        assert (await heard.outcome()).entry_index == 3
        assert [(asked[0].fence, asked[2]) for asked in second.publisher.asked] == [(lease.fence, True)]


async def test_a_published_result_whose_blobs_are_gone_is_made_again() -> None:
    async with Life().lived() as first:
        _, lease = await leased(first)
        first.store.intend(lease.fence, Intended(OK, cacheable=True, ledger_size=3))
        first.ledger[lease.fence] = 4
        first.blobs.absent.add("x/1")
    async with Life(first).lived() as second:
        link = second.join("w")
        assert (await link.assigned()).fence > lease.fence
        with pytest.raises(BlobsMissing):
            await second.cache.put(wanted().key, b"r", 4)


async def test_what_is_not_merged_is_restored_each_with_its_own_lease() -> None:
    async with Life().lived() as first:
        one, lease = await leased(first, do_not_cache=True)
        two, _ = await first.want(do_not_cache=True)
    async with Life(first).lived() as second:
        second.join("v", (lease.fence,))
        assert [second.follow(one).stages, second.follow(two).stages] == [["executing"], ["queued"]]


async def test_joined_operations_are_restored_with_one_lease() -> None:
    async with Life().lived() as first:
        one, lease = await leased(first)
        two, _ = await first.want()
        first.scheduler.cancel(one)
        await first.scheduler.kept()
    async with Life(first).lived() as second:
        second.join("v", (lease.fence,))
        heard = second.follow(two)
        assert heard.stages == ["executing"]
        assert (await second.follow(one).outcome()).code == "cancelled"
        second.publisher.answer(OK)
        second.scheduler.done("v", lease.fence, OK)
        assert await heard.outcome() == OK


async def test_what_ended_answers_after_a_restart_until_it_is_forgotten() -> None:
    async with Life().lived() as first:
        operation, lease = await leased(first)
        first.publisher.answer(OK)
        first.scheduler.done("v", lease.fence, OK)
        await first.scheduler.find_operation(operation).wait_changed()  # type: ignore[union-attr]
    async with Life(first).lived() as second:
        assert await second.follow(operation).outcome() == OK
        second.clock.now_s += 601
        await second.want(5)
        assert second.scheduler.find_operation(operation) is None
    assert [one.id for one in (await second.store.load()).operations] != [operation]


async def test_a_session_that_breaks_and_returns_keeps_what_nobody_else_began() -> None:
    async with Life().lived() as life:
        operation, lease = await leased(life)
        life.scheduler.worker_lost("v")
        link = life.join("v", (lease.fence,))
        assert link.stopped == []
        assert life.follow(operation).stages == ["executing"]
        life.publisher.answer(OK)
        life.scheduler.done("v", lease.fence, OK)
        assert await life.follow(operation).outcome() == OK


async def test_who_stops_accepts_nothing_gives_nothing_and_is_quiet_when_nothing_runs() -> None:
    async with Life().lived() as life:
        _, lease = await leased(life)
        waiting, _ = await life.want(1)
        life.scheduler.stop_accepting()
        with pytest.raises(NodeDown) as refused:
            life.scheduler.submit(wanted(2), Heard())
        assert refused.value.fields["retry_after_s"] > 0
        quiet = asyncio.ensure_future(life.scheduler.quiet())
        life.publisher.answer(OK)
        life.scheduler.done("v", lease.fence, OK)
        await quiet
        life.join("w")
        assert life.kinds().count("action.assigned") == 1
        assert life.follow(waiting).stages == ["queued"]


async def test_a_long_queue_is_entered_while_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_ENTERED_AT_ONCE", 1)
    async with Life().lived() as first:
        operations = [(await first.want(number))[0] for number in range(4)]
    second = Life(first)
    async with second.lived():
        assert second.scheduler.statistics()["queued"] + second.scheduler.statistics()["entries"] >= 4
        # Nothing has run since: all but the first are still to be given to the core.
        second.scheduler.cancel(operations[2])
        second.clock.now_s += 1
        second.scheduler.submit(wanted(9), Heard())
        heard = [second.follow(operation) for operation in operations]
        assert (await heard[2].outcome()).code == "cancelled"
        async with asyncio.timeout(5):
            while second.scheduler._backlog or second.scheduler.statistics()["queued"] < 4:
                await asyncio.sleep(0)
        link = second.join()
        ran = []
        for _ in range(4):
            lease = await link.assigned()
            ran.append(lease.key.digest.hash)
            second.publisher.answer(OK)
            second.scheduler.done("v", lease.fence, OK)
        assert ran == [wanted(number).key.digest.hash for number in (0, 1, 3, 9)], "in order, and none came between"
        assert [(await heard[number].outcome()).code for number in (0, 1, 3)] == ["ok"] * 3
        assert second.scheduler.statistics()["queued"] == 0
