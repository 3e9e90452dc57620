"""What the service adds to the core: memory of operations, time, and failures of its neighbours that strand nobody."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from buildnet.errors import BlobsMissing, StorageFull
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.entry import Entry
from buildnet.model.node import WorkerOffer
from buildnet.scheduler import operations
from buildnet.scheduler.core import Limits
from buildnet.scheduler.operations import OPERATIONS_KEPT_S
from buildnet.scheduler.service import Scheduler
from buildnet.testing.scheduler_fakes import Heard, HeldPublisher, ManualClock, MemoryBlobs, MemoryCache, RecordingLink

OK = Outcome("ok", b"r", worker="v")


def wanted(number: int = 0) -> Wanted:
    return Wanted(ActionKey("", Digest(f"{number:064x}", 1)), frozenset(), 10.0)


class Bench:
    """A scheduler that serves, among fakes."""

    def __init__(self, limits: Limits) -> None:
        self.clock = ManualClock()
        self.blobs = MemoryBlobs()
        self.cache = MemoryCache(self.blobs)
        self.publisher = HeldPublisher()
        self.entries: list[Entry] = []
        self.ended: list[int] = []
        self.ended_operations: list[str] = []
        ids = itertools.count()
        self.scheduler = Scheduler(
            cache=self.cache,
            publisher=self.publisher,
            record=self.entries.append,
            clock=self.clock,
            new_id=lambda: f"o{next(ids)}",
            attempt_ended=self.ended.append,
            operation_ended=lambda operation: self.ended_operations.append(operation.id),
            limits=limits,
        )

    def join(self, node: str = "v", slots: int = 1) -> RecordingLink:
        link = RecordingLink()
        self.scheduler.worker_joined(WorkerOffer(node, "boot", slots, frozenset()), link, ())
        return link

    def want(self, number: int = 0) -> tuple[str, Heard]:
        heard = Heard()
        return self.scheduler.submit(wanted(number), heard), heard

    async def lease(self, link: RecordingLink, number: int = 0) -> tuple[str, Heard, Lease]:
        operation, heard = self.want(number)
        return operation, heard, await link.assigned()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(Limits(attempts_max=3))
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(bench.scheduler.run())
        await asyncio.sleep(0)  # run() holds its task group from its first turn on
        yield bench
        serving.cancel()


async def test_an_action_is_told_at_every_stage(bench: Bench) -> None:
    link = bench.join()
    operation, heard, lease = await bench.lease(link)
    bench.scheduler.accepted("v", lease.fence)
    bench.scheduler.done("v", lease.fence, OK)
    assert link.settled == [lease.fence]
    assert heard.stages == ["queued", "executing"], "not before it is published"
    bench.publisher.answer(OK)
    assert await heard.outcome() == OK
    found = bench.scheduler.find_operation(operation)
    assert found is not None
    assert found.completed_at_unix_ms == bench.clock.now_unix_ms()
    assert [entry.kind for entry in bench.entries] == ["action.submitted", "action.assigned"]
    assert bench.ended_operations == [operation]


async def test_a_cached_result_needs_no_worker(bench: Bench) -> None:
    bench.cache.results[wanted().key] = (b"r", 3)
    outcome = await bench.want()[1].outcome()
    assert (outcome.code, outcome.result, outcome.cached) == ("ok", b"r", True)


@pytest.mark.parametrize("error", [StorageFull("no room"), RuntimeError("a bug")], ids=["expected", "a bug"])
async def test_a_cache_that_cannot_be_read_is_a_miss_and_the_service_lives(bench: Bench, error: Exception) -> None:
    bench.cache.broken = error
    link = bench.join(slots=2)
    await bench.lease(link, 0)
    await bench.lease(link, 1)


@pytest.mark.parametrize(
    ("error", "code"), [(StorageFull("no room"), "storage_full"), (RuntimeError("a bug"), "internal")]
)
async def test_a_publication_that_fails_is_told(bench: Bench, error: Exception, code: str) -> None:
    link = bench.join()
    _, heard, lease = await bench.lease(link)
    bench.publisher.answer(error)
    bench.scheduler.done("v", lease.fence, OK)
    outcome = await heard.outcome()
    assert (outcome.code, outcome.result) == (code, None)


async def test_blobs_that_go_twice_are_named(bench: Bench) -> None:
    link = bench.join()
    _, heard, lease = await bench.lease(link)
    for fence in (lease.fence, lease.fence + 1):
        bench.scheduler.accepted("v", fence)
        bench.publisher.answer(BlobsMissing("gone", digests=["x/1"]))
        bench.scheduler.done("v", fence, OK)
        if fence == lease.fence:
            assert (await link.assigned()).fence == fence + 1
    assert (await heard.outcome()).missing == ("x/1",)
    assert heard.stages == ["queued", "executing", "queued", "executing", "completed"]


async def test_who_follows_hears_the_present_and_who_left_hears_no_more(bench: Bench) -> None:
    operation, first = bench.want()
    second = Heard()
    bench.scheduler.follow(operation, second)
    assert second.stages == ["queued"]
    bench.scheduler.unfollow(operation, first)
    bench.scheduler.cancel(operation)
    assert (first.stages, second.stages) == (["queued"], ["queued", "completed"])


async def test_what_has_ended_stays_as_it_ended(bench: Bench) -> None:
    operation, heard = bench.want()
    for _ in range(2):
        bench.scheduler.cancel(operation)
    assert heard.stages == ["queued", "completed"]
    assert bench.ended_operations == [operation], "it ends once"


async def test_cancelling_stops_the_worker_and_ends_the_log(bench: Bench) -> None:
    link = bench.join()
    operation, heard, lease = await bench.lease(link)
    bench.scheduler.cancel(operation)
    assert link.stopped == [(lease.fence, "cancelled")]
    assert bench.ended == [lease.fence]
    assert (await heard.outcome()).code == "cancelled"


@pytest.mark.parametrize("again", [False, True], ids=["its session ended", "it came back before that was seen"])
async def test_a_lost_workers_logs_end(bench: Bench, again: bool) -> None:
    _, _, lease = await bench.lease(bench.join())
    if again:
        bench.join()
    else:
        bench.scheduler.worker_lost("v")
    assert bench.ended == [lease.fence]


async def test_a_lease_that_nobody_renews_runs_out(bench: Bench) -> None:
    silent = bench.join("v")
    _, _, lease = await bench.lease(silent)
    other = bench.join("w")
    bench.clock.now_s += 5.0
    bench.scheduler.heartbeat("w", ())
    assert (await other.assigned()).fence > lease.fence
    assert (silent.stopped, bench.ended) == ([], [lease.fence])
    bench.scheduler.heartbeat("v", (lease.fence,))
    assert silent.stopped == [(lease.fence, "the lease was lost")]


async def test_an_absent_worker_is_given_up_when_its_deadline_comes(bench: Bench) -> None:
    gone = WorkerOffer("g", "boot", 1, frozenset({("gpu", "yes")}))
    bench.clock.now_s = 0.1  # 0.1 + 60 - 0.1 is less than 60 in floating point
    bench.scheduler.worker_joined(gone, RecordingLink(), ())
    bench.scheduler.worker_lost("g")
    heard = Heard()
    bench.join()
    bench.scheduler.submit(Wanted(wanted().key, gone.properties, 10.0), heard)
    bench.clock.now_s += 60.0
    bench.scheduler.heartbeat("v", ())
    assert (await heard.outcome()).code == "no_capable_worker"


async def test_one_that_runs_for_hours_keeps_no_other(bench: Bench) -> None:
    running, _ = bench.want(0)
    ended, _ = bench.want(1)
    bench.scheduler.cancel(ended)
    bench.clock.now_s += OPERATIONS_KEPT_S + 1
    newest, _ = bench.want(2)
    assert [operation.id for operation in bench.scheduler.operations()] == [newest, running]


async def test_of_those_that_ended_only_so_many_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "OPERATIONS_KEPT_MAX", 2)
    for number in range(4):
        bench.scheduler.cancel(bench.want(number)[0])
    newest, _ = bench.want(9)
    assert [operation.id for operation in bench.scheduler.operations()] == [newest, "o3", "o2"]


async def test_statistics_count(bench: Bench) -> None:
    await bench.lease(bench.join())
    assert bench.scheduler.statistics() == {"queued": 0, "entries": 1, "workers": 1, "operations": 1}
