"""Graphs over a scheduler: bound when they can be, ended once, and cancelled at every point of the way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping

import pytest

from buildnet.errors import BlobsMissing, DependencyFailed, NotFound, Overloaded
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.action_spec import ActionSpec, OutputInput, spec_of
from buildnet.model.digest import UNKNOWN, Digest
from buildnet.model.node import WorkerOffer
from buildnet.model.operation import GraphTerms
from buildnet.scheduler import graphs as graphs_module
from buildnet.scheduler.graphs import Graph, Graphs
from buildnet.scheduler.service import OPERATIONS_KEPT_S, Operation, Scheduler
from buildnet.testing.scheduler_fakes import HeldPublisher, ManualClock, MemoryBlobs, MemoryCache, RecordingLink


class HeldBinder:
    """A Binder that answers when a test lets it; what it was given is written down."""

    def __init__(self) -> None:
        self.bound: list[tuple[str, dict[str, bytes]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: dict[str, Exception] = {}

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
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.binder = HeldBinder()
        self.publisher = HeldPublisher()
        ids = itertools.count()

        def new_id() -> str:
            return f"o{next(ids)}"

        self.scheduler = Scheduler(
            cache=MemoryCache(MemoryBlobs()),
            publisher=self.publisher,
            record=lambda entry: None,
            clock=self.clock,
            new_id=new_id,
        )
        self.graphs = Graphs(self.scheduler, self.binder, self.clock, new_id)
        self.link = RecordingLink()
        self.changed: list[str] = []
        self.scheduler.watch(self.changed.append)
        self.scheduler.worker_joined(WorkerOffer("v", "boot", 8, frozenset()), self.link, ())

    def submit(self, **needs: tuple[str, ...]) -> Graph:
        specs = {
            name: spec_of([name], inputs=[OutputInput(below, below, "o") for below in belows])
            for name, belows in needs.items()
        }
        return self.graphs.submit(specs, GraphTerms("main", "ann"))

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
    bench = Bench()
    async with asyncio.TaskGroup() as tasks:
        serving = [tasks.create_task(bench.scheduler.run()), tasks.create_task(bench.graphs.run())]
        await asyncio.sleep(0)  # both hold their task groups from their first turn on
        yield bench
        for task in serving:
            task.cancel()


async def test_what_is_taken_is_bound_when_it_is_there(bench: Bench) -> None:
    graph = bench.submit(a=(), b=("a",), c=("b",))
    assert bench.stages(graph) == {"a": "waiting", "b": "waiting", "c": "waiting"}
    assert bench.operation(graph, "b").wanted.key == ActionKey("main", UNKNOWN)
    for result in (b"1", b"2", b"3"):
        await bench.finish(Outcome("ok", result, worker="v"))
    assert (await bench.ended(graph, "c")).result == b"3"
    assert bench.binder.bound == [("a", {}), ("b", {"a": b"1"}), ("c", {"b": b"2"})]
    assert graph.results == {}, "nothing is kept for nobody"
    assert bench.operation(graph, "b").wanted.caller == "ann"
    assert set(bench.changed) == {member.id for member in graph.members.values()}


@pytest.mark.parametrize(
    "outcome", [Outcome("ok", b"r", exit_code=1), Outcome("deadline_passed", None)], ids=["exit code", "error"]
)
async def test_a_failure_goes_up_by_name(bench: Bench, outcome: Outcome) -> None:
    graph = bench.submit(a=(), b=("a",), c=("b",), d=())
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
    graph = bench.submit(a=(), b=("a",), c=())
    told = await bench.ended(graph, "a")
    assert told.code == code
    assert told.missing == (("x/1",) if code == "blobs_missing" else ())
    assert (await bench.ended(graph, "b")).code == "dependency_failed"
    await bench.finish()
    assert (await bench.ended(graph, "c")).code == "ok"


async def test_cancelled_at_every_point(bench: Bench) -> None:
    graph = bench.submit(done=(), runs=("done",), waits=("runs",), binds=("done",))
    await bench.finish()
    lease = await bench.link.assigned()
    bench.binder.gate.clear()
    other = bench.submit(binds=(), waits=("binds",))
    await asyncio.sleep(0)
    assert bench.graphs.cancel(other) == 2
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
    graph = bench.submit(a=(), b=("a",), c=("b",))
    bench.scheduler.cancel(graph.members["b"].id)
    assert bench.stages(graph) == {"a": "waiting", "b": "cancelled", "c": "dependency_failed"}
    bench.scheduler.cancel(graph.members["b"].id)
    await bench.finish()
    assert (await bench.ended(graph, "a")).code == "ok"


async def test_a_full_scheduler_ends_what_it_refuses(bench: Bench) -> None:
    bench.scheduler.worker_lost("v", may_return=False)
    bench.scheduler._core.limits = type(bench.scheduler._core.limits)(queue_length_max=1)
    graph = bench.submit(a=(), b=(), c=("b",))
    assert (await bench.ended(graph, "b")).code == "overloaded"
    assert (await bench.ended(graph, "c")).code == "dependency_failed"


async def test_old_graphs_are_forgotten_and_new_ones_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "MEMBERS_MAX", 3)
    live = bench.submit(a=(), b=())
    with pytest.raises(Overloaded):
        bench.submit(c=(), d=())
    assert bench.graphs.statistics() == {"graphs": 1, "graph_actions": 2}
    bench.graphs.cancel(live)
    for name in live.members:
        await bench.ended(live, name)
    ended = bench.submit(c=(), d=())
    with pytest.raises(NotFound):
        bench.graphs.find(live.id)
    assert bench.graphs.name_of(live.members["a"].id) == ("", "")
    bench.graphs.cancel(ended)
    for name in ended.members:
        await bench.ended(ended, name)
    bench.clock.now_s += OPERATIONS_KEPT_S + 1
    bench.submit(e=())
    assert not bench.graphs.knows(ended.id)
