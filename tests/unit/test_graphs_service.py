"""Graphs over a scheduler: bound when they can be, ended once, and cancelled at every point of the way."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from buildnet.errors import BlobsMissing, BuildNetError, DependencyFailed, NodeDown, NotFound, Overloaded, StorageFull
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.action_spec import ActionSpec, OutputInput, spec_of
from buildnet.model.digest import UNKNOWN, Digest
from buildnet.model.history import Requested
from buildnet.model.node import WorkerOffer
from buildnet.model.operation import GraphTerms
from buildnet.scheduler import graphs as graphs_module
from buildnet.scheduler.graphs import Graph, Graphs
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.operations import OPERATIONS_KEPT_S
from buildnet.scheduler.recovery import recover
from buildnet.scheduler.service import Scheduler
from buildnet.testing.scheduler_fakes import (
    HeldPublisher,
    ManualClock,
    MemoryBlobs,
    MemoryCache,
    MemoryOperations,
    RecordingLink,
)

TERMS = GraphTerms("main", "lab/ann", requested=Requested(invocation="i1"))


def unpacked(actions: bytes) -> dict[str, ActionSpec]:
    """Specs of what a test packs: for each action those whose outputs it takes."""
    return {
        name: spec_of([name], outputs=["o"], inputs=[OutputInput(below, below, "o") for below in belows])
        for name, belows in json.loads(actions).items()
    }


async def nothing_published(start: int) -> dict[int, int]:
    """No publication was broken off."""
    return {}


class HeldBinder:
    """A Binder that answers when a test lets it; what it was given is written down."""

    def __init__(self) -> None:
        self.bound: list[tuple[str, dict[str, bytes]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: dict[str, Exception] = {}
        self.refuses: BuildNetError | None = None
        self.slow = asyncio.Event()
        self.slow.set()
        # What is held: the names of a graph's actions, or a result.
        self.held: dict[str, list[str] | bytes] = {}

    async def hold(self, name: str, specs: Collection[ActionSpec]) -> None:
        """See ports.Binder."""
        self.held[name] = [spec.arguments[0] for spec in specs]
        if self.refuses is not None:
            raise self.refuses
        await self.slow.wait()

    async def hold_outputs(self, name: str, result: bytes) -> None:
        """See ports.Binder."""
        await self.slow.wait()
        self.held[name] = result

    def release(self, name: str) -> None:
        """See ports.Binder."""
        self.held.pop(name, None)

    async def bind(self, spec: ActionSpec, instance: str, caller: str, results: Mapping[str, bytes]) -> Wanted:
        """See ports.Binder."""
        name = spec.arguments[0]
        self.bound.append((name, dict(results)))
        await self.gate.wait()
        if name in self.fails:
            raise self.fails[name]
        digest = Digest.of(repr((spec, sorted(results.items()))).encode())
        return Wanted(ActionKey(instance, digest), frozenset(), 10.0, caller=caller)


class Bench:
    """One controller's life; `before` was killed, and what its store had kept is what this one goes on from."""

    def __init__(self, before: Bench | None = None) -> None:
        self.clock: ManualClock = ManualClock() if before is None else before.clock
        self.store: MemoryOperations = MemoryOperations() if before is None else before.store.survivor()
        self.cache: MemoryCache = MemoryCache(MemoryBlobs()) if before is None else before.cache
        self.binder = HeldBinder()
        self.publisher = HeldPublisher()
        ids = itertools.count()
        life = "o" if before is None else "p"

        def new_id() -> str:
            return f"{life}{next(ids)}"

        self.scheduler = Scheduler(
            cache=self.cache,
            publisher=self.publisher,
            record=lambda entry: None,
            clock=self.clock,
            new_id=new_id,
            store=self.store,
        )
        self.graphs = Graphs(self.scheduler, self.binder, self.clock, new_id, self.store)
        self.link = RecordingLink()
        self.changed: list[str] = []
        self.scheduler.watch(self.changed.append)

    def join(self) -> None:
        self.scheduler.worker_joined(WorkerOffer("v", "boot", 8, frozenset()), self.link, ())

    @asynccontextmanager
    async def lived(self) -> AsyncIterator[Bench]:
        async with asyncio.TaskGroup() as tasks:
            serving = [tasks.create_task(self.scheduler.run()), tasks.create_task(self.graphs.run())]
            await self.scheduler.serving.wait()
            await self.graphs.serving.wait()
            recovered = await recover(self.store, self.cache, nothing_published, self.clock.now_unix_ms())
            self.scheduler.restore(recovered)
            self.graphs.restore(recovered.graphs, unpacked)
            yield self
            for task in serving:
                task.cancel()

    async def submit(self, **needs: tuple[str, ...]) -> Graph:
        packed = json.dumps(needs).encode()
        return await self.graphs.submit(unpacked(packed), TERMS, packed)

    def operation(self, graph: Graph, name: str) -> Operation:
        found = self.scheduler.find_operation(graph.members[name].id)
        assert found is not None
        return found

    def stages(self, graph: Graph) -> dict[str, str]:
        def stage(name: str) -> str:
            progress = self.operation(graph, name).progress
            return progress.outcome.code if progress.outcome is not None else progress.stage

        return {name: stage(name) for name in graph.members}

    async def finish(self, outcome: Outcome = Outcome("ok", b"r", worker="v")) -> None:  # noqa: B008 - frozen
        lease = await self.link.assigned()
        self.scheduler.accepted("v", lease.fence)
        if outcome.code == "ok":
            self.publisher.answer(outcome)
        self.scheduler.done("v", lease.fence, outcome)

    async def ended(self, graph: Graph, name: str) -> Outcome:
        operation = self.operation(graph, name)
        async with asyncio.timeout(5):
            while operation.progress.outcome is None:
                await operation.wait_changed()
        return operation.progress.outcome


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench().lived() as bench:
        bench.join()
        yield bench


async def test_what_is_taken_is_bound_when_it_is_there(bench: Bench) -> None:
    graph = await bench.submit(a=(), b=("a",), c=("b",))
    assert bench.stages(graph) == {"a": "waiting", "b": "waiting", "c": "waiting"}
    assert bench.operation(graph, "b").wanted.key == ActionKey("main", UNKNOWN)
    for result in (b"1", b"2", b"3"):
        await bench.finish(Outcome("ok", result, worker="v"))
    assert (await bench.ended(graph, "c")).result == b"3"
    assert bench.binder.bound == [("a", {}), ("b", {"a": b"1"}), ("c", {"b": b"2"})]
    assert graph.results == {}, "nothing is kept for nobody"
    assert bench.operation(graph, "b").wanted.caller == "lab/ann"
    assert bench.operation(graph, "b").wanted.share == ("lab", "ann", "i1")
    assert set(bench.changed) == {member.id for member in graph.members.values()}


@pytest.mark.parametrize(
    "outcome", [Outcome("ok", b"r", exit_code=1), Outcome("deadline_passed", None)], ids=["exit code", "error"]
)
async def test_a_failure_goes_up_by_name(bench: Bench, outcome: Outcome) -> None:
    graph = await bench.submit(a=(), b=("a",), c=("b",), d=())
    await bench.finish(outcome)
    told = await bench.ended(graph, "c")
    assert told.code == "dependency_failed"
    assert "'a'" in told.message
    await bench.finish()
    assert (await bench.ended(graph, "d")).code == "ok"
    assert graph.core.left == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BlobsMissing("gone", digests=["x/1"]), "blobs_missing"),
        (DependencyFailed("left no o"), "dependency_failed"),
        (RuntimeError("a bug"), "internal"),
    ],
)
async def test_what_cannot_be_bound_ends_and_harms_no_other(bench: Bench, error: Exception, code: str) -> None:
    bench.binder.fails["a"] = error
    graph = await bench.submit(a=(), b=("a",), c=())
    told = await bench.ended(graph, "a")
    assert told.code == code
    assert told.missing == (("x/1",) if code == "blobs_missing" else ())
    assert (await bench.ended(graph, "b")).code == "dependency_failed"
    await bench.finish()
    assert (await bench.ended(graph, "c")).code == "ok"


async def test_cancelled_at_every_point(bench: Bench) -> None:
    graph = await bench.submit(done=(), runs=("done",), waits=("runs",), binds=("done",))
    await bench.finish()
    lease = await bench.link.assigned()
    bench.binder.gate.clear()
    other = await bench.submit(binds=(), waits=("binds",))
    await asyncio.sleep(0)
    assert bench.graphs.cancel(other) == 2
    await bench.scheduler.told()
    assert bench.stages(other) == {"binds": "waiting", "waits": "cancelled"}, "what is being bound ends when it is"
    bench.binder.gate.set()
    assert (await bench.ended(other, "binds")).code == "cancelled"
    assert bench.graphs.cancel(graph) == 3
    assert next(fence for fence, _ in bench.link.stopped) == lease.fence
    assert {name: (await bench.ended(graph, name)).code for name in graph.members} == {
        "done": "ok",
        "runs": "cancelled",
        "waits": "cancelled",
        "binds": "cancelled",
    }
    assert bench.graphs.cancel(graph) == bench.graphs.cancel(other) == 0
    assert bench.scheduler.statistics()["entries"] == 0


async def test_one_that_waits_is_cancelled_by_its_id(bench: Bench) -> None:
    bench.binder.gate.clear()
    graph = await bench.submit(a=(), b=("a",), c=("b",))
    bench.scheduler.cancel(graph.members["b"].id)
    await bench.scheduler.told()
    assert bench.stages(graph) == {"a": "waiting", "b": "cancelled", "c": "dependency_failed"}
    bench.scheduler.cancel(graph.members["b"].id)
    bench.binder.gate.set()
    await bench.finish()
    assert (await bench.ended(graph, "a")).code == "ok"


async def test_a_full_scheduler_ends_what_it_refuses(bench: Bench) -> None:
    bench.scheduler.worker_lost("v", may_return=False)
    bench.scheduler._core.limits = type(bench.scheduler._core.limits)(queue_length_max=1)
    graph = await bench.submit(a=(), b=(), c=("b",))
    assert (await bench.ended(graph, "b")).code == "overloaded"
    assert (await bench.ended(graph, "c")).code == "dependency_failed"


async def test_old_graphs_are_forgotten_and_new_ones_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "MEMBERS_MAX", 3)
    live = await bench.submit(a=(), b=())
    with pytest.raises(Overloaded):
        await bench.submit(c=(), d=())
    assert bench.graphs.statistics() == {"graphs": 1, "graph_actions": 2}
    bench.graphs.cancel(live)
    for name in live.members:
        await bench.ended(live, name)
    ended = await bench.submit(c=(), d=())
    with pytest.raises(NotFound):
        bench.graphs.find(live.id)
    assert bench.graphs.name_of(live.members["a"].id) == ("", "")
    bench.graphs.cancel(ended)
    for name in ended.members:
        await bench.ended(ended, name)
    bench.clock.now_s += OPERATIONS_KEPT_S + 1
    await bench.submit(e=())
    assert not bench.graphs.knows(ended.id)


async def test_the_next_controller_goes_on_where_the_last_was_killed() -> None:
    async with Bench().lived() as first:
        first.join()
        graph = await first.submit(done=(), runs=("done",), waits=("runs", "done"), bad=(), doomed=("bad",))
        await first.graphs.kept(graph)
        for _ in ("done", "bad"):
            lease = await first.link.assigned()
            well = lease.key == first.operation(graph, "done").wanted.key
            first.publisher.answer(Outcome("ok", b"1", worker="v", exit_code=0 if well else 1))
            first.scheduler.done("v", lease.fence, Outcome("ok", b"1", worker="v"))
        running = await first.link.assigned()
        assert first.stages(graph)["doomed"] == "dependency_failed"
    async with Bench(first).lived() as second:
        again = second.graphs.find(graph.id)
        assert {name: member.id for name, member in again.members.items()} == {
            name: member.id for name, member in graph.members.items()
        }
        assert second.stages(again) == {
            "done": "ok", "runs": "queued", "waits": "waiting", "bad": "ok", "doomed": "dependency_failed",
        }  # fmt: skip
        assert second.operation(again, "waits").wanted.share == ("lab", "ann", "i1")
        assert (again.results, second.binder.bound) == ({"done": b"1"}, [])
        second.scheduler.worker_joined(WorkerOffer("v", "boot", 8, frozenset()), second.link, (running.fence,))
        second.publisher.answer(Outcome("ok", b"2", worker="v"))
        second.scheduler.done("v", running.fence, Outcome("ok", b"2", worker="v"))
        await second.finish(Outcome("ok", b"3", worker="v"))
        assert (await second.ended(again, "waits")).result == b"3"
        assert second.binder.bound == [("waits", {"done": b"1", "runs": b"2"})], "what was bound is not bound again"
        assert second.graphs.statistics() == {"graphs": 1, "graph_actions": 5}
    async with Bench(second).lived() as third:
        assert third.graphs.cancel(third.graphs.find(graph.id)) == 0
        assert third.operation(third.graphs.find(graph.id), "waits").progress.outcome.result == b"3"  # type: ignore[union-attr]
        third.clock.now_s += OPERATIONS_KEPT_S + 1
        await third.submit(e=())
        assert third.scheduler.find_operation(graph.members["done"].id) is None
        left = await third.store.load()
        assert [held.members[0][1] for held in left.graphs] == ["e"]


async def test_what_the_cache_lost_meanwhile_fails_what_takes_it() -> None:
    async with Bench().lived() as first:
        first.join()
        graph = await first.submit(a=(), b=("a",))
        first.binder.fails["b"] = NodeDown("held back")
        await first.finish()
        await first.ended(graph, "a")
        stored = await first.store.load()
        begun = stored.operations[0]
        assert begun.outcome is not None
        # A large result is kept by the cache alone; this one was evicted.
        bare = replace(begun, outcome=replace(begun.outcome, result=None))
    survivor = Bench()
    survivor.store = MemoryOperations(replace(stored, operations=[bare]))
    async with Bench(survivor).lived() as second:
        again = second.graphs.find(graph.id)
        told = await second.ended(again, "b")
        assert told.code == "dependency_failed"
        assert "evicted" in told.message
        assert second.stages(again) == {"a": "ok", "b": "dependency_failed"}


async def test_what_is_not_bound_when_the_controller_stops_is_left_to_the_next() -> None:
    async with Bench().lived() as first:
        first.binder.gate.clear()
        graph = await first.submit(a=(), b=("a",))
        await asyncio.sleep(0)
        first.scheduler.stop_accepting()
        first.binder.gate.set()
        with pytest.raises(NodeDown):
            await first.submit(c=())
        await first.graphs.kept(graph)
    async with Bench(first).lived() as second:
        again = second.graphs.find(graph.id)
        second.join()
        await second.finish()
        await second.finish()
        assert (await second.ended(again, "b")).code == "ok"


async def test_a_graph_that_cannot_be_kept_is_refused_and_stopped(bench: Bench) -> None:
    bench.store.broken = StorageFull("no room")
    graph = await bench.submit(a=(), b=("a",))
    with pytest.raises(StorageFull):
        await bench.graphs.kept(graph)
    assert (await bench.ended(graph, "b")).code == "cancelled"


async def settled() -> None:
    """Let what was spawned run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_inputs_are_held_until_the_graph_ends_and_outputs_until_their_last_taker_does(bench: Bench) -> None:
    graph = await bench.submit(a=(), b=("a",), c=("b", "a"), alone=())
    inputs = {f"graph {graph.id}": ["a", "b", "c", "alone"]}
    assert bench.binder.held == inputs
    for _ in ("a", "alone"):
        await bench.finish()
    await settled()
    assert bench.binder.held == inputs | {f"graph {graph.id} a": b"r"}, "nobody takes what the other left"
    await bench.finish()
    await bench.ended(graph, "b")
    await settled()
    assert bench.binder.held == inputs | {f"graph {graph.id} a": b"r", f"graph {graph.id} b": b"r"}
    await bench.finish()
    await bench.ended(graph, "c")
    await settled()
    assert bench.binder.held == {}


async def test_nothing_is_held_for_a_graph_that_was_cancelled_however_late_it_is_looked_up(bench: Bench) -> None:
    graph = await bench.submit(a=(), b=("a",), c=("b",))
    bench.binder.slow.clear()
    await bench.finish()
    await bench.ended(graph, "a")
    await settled()
    bench.graphs.cancel(graph)
    for name in graph.members:
        await bench.ended(graph, name)
    bench.binder.slow.set()
    await settled()
    assert bench.binder.held == {}


@pytest.mark.parametrize("full", [False, True])
async def test_nothing_is_held_for_a_graph_that_was_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    bench.binder.refuses = BlobsMissing("gone", digests=["x/1"])
    if full:
        bench.binder.refuses = None
        monkeypatch.setattr(graphs_module, "MEMBERS_MAX", 0)
    with pytest.raises(Overloaded if full else BlobsMissing):
        await bench.submit(a=())
    assert bench.binder.held == {}


@pytest.mark.parametrize("lost", [False, True])
async def test_the_next_controller_holds_what_still_waits(lost: bool) -> None:
    async with Bench().lived() as first:
        first.join()
        graph = await first.submit(done=(), runs=(), waits=("runs", "done"))
        await first.graphs.kept(graph)
        await first.finish()
        await first.ended(graph, "done")
        await first.link.assigned()
    second = Bench(first)
    if lost:
        second.binder.refuses = BlobsMissing("gone", digests=["x/1"])
    async with second.lived():
        await settled()
        # What is begun is held as every action in the scheduler is.
        assert second.binder.held == {f"graph {graph.id}": ["waits"], f"graph {graph.id} done": b"r"}
        second.graphs.cancel(second.graphs.find(graph.id))
        await second.ended(second.graphs.find(graph.id), "runs")
        assert second.binder.held == {}
