"""A live action's inputs are held from its admission to the end of its last operation, and not a moment longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from buildnet.errors import NotFound
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.digest import Digest
from buildnet.model.node import WorkerOffer
from buildnet.scheduler.holds import LiveActions
from buildnet.scheduler.service import Scheduler
from buildnet.testing.scheduler_fakes import Heard, HeldPublisher, ManualClock, MemoryBlobs, MemoryCache, RecordingLink

KEY = ActionKey("", Digest("a" * 64, 1))
OK = Outcome("ok", b"r", worker="v")


class Bench:
    """A scheduler over blobs that tell what is held."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs()
        self.publisher = HeldPublisher()
        ids = iter(range(100))
        self.scheduler = Scheduler(
            cache=MemoryCache(self.blobs),
            publisher=self.publisher,
            record=lambda entry: None,
            clock=ManualClock(),
            new_id=lambda: f"o{next(ids)}",
            live=LiveActions(self.blobs),
        )

    async def want(self) -> tuple[str, Heard]:
        heard = Heard()
        operation = self.scheduler.submit(Wanted(KEY, frozenset(), 10.0), heard)
        for _ in range(5):
            await asyncio.sleep(0)
        return operation, heard


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(bench.scheduler.run())
        await asyncio.sleep(0)
        yield bench
        serving.cancel()


async def test_held_while_queued_and_until_the_result_is_told(bench: Bench) -> None:
    link = RecordingLink()
    bench.scheduler.worker_joined(WorkerOffer("v", "boot", 1, frozenset()), link, ())
    _, heard = await bench.want()
    assert bench.blobs.held == {KEY}
    lease = await link.assigned()
    bench.scheduler.done("v", lease.fence, OK)
    assert bench.blobs.held == {KEY}, "publication needs the blobs too"
    bench.publisher.answer(OK)
    while heard.stages[-1] != "completed":
        await asyncio.sleep(0)
    assert bench.blobs.held == set()


async def test_held_until_the_last_of_those_who_joined_has_gone(bench: Bench) -> None:
    bench.scheduler.worker_joined(WorkerOffer("v", "boot", 1, frozenset()), RecordingLink(), ())
    first, _ = await bench.want()
    second, _ = await bench.want()
    bench.scheduler.cancel(first)
    assert bench.blobs.held == {KEY}
    bench.scheduler.cancel(second)
    assert bench.blobs.held == set()


async def test_an_action_that_ends_before_it_is_held_leaves_no_hold(bench: Bench) -> None:
    bench.scheduler.worker_joined(WorkerOffer("v", "boot", 1, frozenset()), RecordingLink(), ())
    operation = bench.scheduler.submit(Wanted(KEY, frozenset(), 10.0), Heard())
    bench.scheduler.cancel(operation)
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.blobs.held == set()


async def test_a_hold_that_fails_stops_no_action(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.blobs.hold_fails = NotFound("gone", kind="blob", name="x")
    link = RecordingLink()
    bench.scheduler.worker_joined(WorkerOffer("v", "boot", 1, frozenset()), link, ())
    await bench.want()
    assert (await link.assigned()).key == KEY
    assert "not held" in caplog.text


async def test_of_a_restored_queue_only_what_still_lives_is_held() -> None:
    blobs = MemoryBlobs()
    live = LiveActions(blobs)
    other = ActionKey("", Digest("b" * 64, 1))
    for key in (KEY, other):
        assert live.began(key)
    live.ended(other)
    await live.hold_each([KEY, other])
    assert blobs.held == {KEY}
