"""Graphs of actions as a service: it feeds `graph.GraphCore`, binds what it asks for and submits it. One loop owns it.

It decides nothing: every decision is the core's. A graph is accepted whole or not at all, and each of its actions is an
operation from then on, which ends exactly once, under this controller or a later one: a graph is kept before its
client is told of it, and its operations for as long as it is known (docs/design/restart.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from buildnet.errors import BuildNetError, DependencyFailed, NotFound, Overloaded
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.action_spec import ActionSpec
from buildnet.model.caller import share_of
from buildnet.model.digest import UNKNOWN
from buildnet.model.history import Requested
from buildnet.model.operation import GraphTerms, StoredGraph
from buildnet.ports import Binder, Clock, OperationStore, Progress
from buildnet.scheduler import graph as core
from buildnet.scheduler.operations import OPERATIONS_KEPT_S
from buildnet.scheduler.recovery import RecoveredGraph
from buildnet.scheduler.service import Scheduler

log = logging.getLogger(__name__)

MEMBERS_MAX: Final = 200_000
BYTES_MAX: Final = 512 << 20
SLICE: Final = 250
"""So many actions of a graph are dealt with at a time, while nothing else is: some milliseconds."""
_CANCELLED: Final = Outcome("cancelled", None, "the operation was cancelled")


@dataclass(slots=True)
class _Member:
    """One action of a graph. `spec` is forgotten once it is bound; `stopping` when it was cancelled while it was."""

    id: str
    spec: ActionSpec | None
    stopping: bool = False


@dataclass(slots=True)
class Graph:
    """A graph that was accepted, from then until ten minutes after its last action ended."""

    id: str
    terms: GraphTerms
    submitted_at_unix_ms: int
    numbers: range
    members: dict[str, _Member]
    core: core.GraphCore
    size_bytes: int
    # Of actions that are done, while somebody who takes their outputs has not ended.
    results: dict[str, bytes] = field(default_factory=dict)
    asked: deque[str] = field(default_factory=deque)
    is_binding: bool = False
    is_announced: bool = False
    ended_at_s: float | None = None


class Graphs:
    """Accepts graphs, and brings their actions to the scheduler as they become ready."""

    def __init__(
        self,
        scheduler: Scheduler,
        binder: Binder,
        clock: Clock,
        new_id: Callable[[], str],
        store: OperationStore | None = None,
    ) -> None:
        """`store`: what outlives this process, the scheduler's; without one no graph does."""
        self._scheduler = scheduler
        self._binder = binder
        self._clock = clock
        self._new_id = new_id
        self._store = store
        self._graphs: dict[str, Graph] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._count = 0
        self._size_bytes = 0
        self._tasks: asyncio.TaskGroup | None = None
        self.serving = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled: hold the tasks that bind."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self.serving.set()
            await asyncio.Event().wait()

    async def submit(self, specs: Mapping[str, ActionSpec], terms: GraphTerms, actions: bytes = b"") -> Graph:
        """Accept a graph, whole or not at all. Its first actions are bound at once; `kept` comes before it is told.

        Not to be cancelled.

        Args:
            specs: its actions by name.
            terms: what holds for all of them.
            actions: what `restore` is to make the specs of.

        Raises:
            InvalidRequest: it is no graph (see `graph.check`, `graph.check_taken`), or what `Binder.hold` refuses.
            BlobsMissing: inputs are absent; every one is named.
            TooLarge: it has too many actions or references.
            Overloaded: as many actions of graphs are known as may, or as many bytes, or the store cannot keep up.
            NodeDown: this controller is stopping.
        """
        graph_id = self._new_id()
        try:
            await self._binder.hold(_held_name(graph_id), specs.values())
            # The loop goes on meanwhile: it touches nothing that anybody else has.
            graph_core, members = await asyncio.to_thread(self._made, specs)
            self._scheduler.check_accepting()
            self._forget_old(len(specs), len(actions))
        except BuildNetError:
            self._binder.release(_held_name(graph_id))
            raise
        numbers = self._scheduler.known.numbered(len(members))
        now_unix_ms = self._clock.now_unix_ms()
        graph = Graph(graph_id, terms, now_unix_ms, numbers, members, graph_core, len(actions))
        if self._store is not None:
            called = tuple((member.id, name) for name, member in members.items())
            self._store.begin_graph(StoredGraph(graph.id, numbers[0], terms, now_unix_ms, called, actions))
        for _ in self._announced(graph, ()):
            await asyncio.sleep(0)
        self._apply(graph, graph_core.start())
        for name, member in graph.members.items():
            # Somebody found it in a list meanwhile.
            if member.stopping:
                self._withdraw(graph, name)
        return graph

    def _made(self, specs: Mapping[str, ActionSpec]) -> tuple[core.GraphCore, dict[str, _Member]]:
        graph_core = core.GraphCore({name: spec.references for name, spec in specs.items()})
        core.check_taken(specs)
        return graph_core, {name: _Member(self._new_id(), spec) for name, spec in specs.items()}

    async def kept(self, graph: Graph) -> None:
        """Return once a graph outlives this process. Else it is cancelled.

        Raises:
            StorageFull, StateCorrupt: it cannot be kept.
        """
        if self._store is None:
            return
        try:
            await self._store.kept()
        except BuildNetError:
            self.cancel(graph)
            raise

    def restore(
        self, recovered: Sequence[RecoveredGraph], unpacked: Callable[[bytes], Mapping[str, ActionSpec]]
    ) -> None:
        """Go on with graphs that an earlier controller left. `run` serves, and the scheduler has its operations again.

        Args:
            recovered: what was kept of each.
            unpacked: makes specs of `actions`.

        Raises:
            StateCorrupt: there is one that cannot be read.
        """
        for held in recovered:
            self._restore(held, unpacked)

    def graphs(self) -> Iterable[Graph]:
        """Those that are known."""
        return self._graphs.values()

    def find(self, graph_id: str) -> Graph:
        """A graph by its id.

        Raises:
            NotFound: it is not known, or was forgotten.
        """
        if (graph := self._graphs.get(graph_id)) is None:
            raise NotFound(
                f"no graph is called {graph_id[:64]!r}; it may have ended long ago", kind="graph", name=graph_id
            )
        return graph

    def knows(self, graph_id: str) -> bool:
        """Whether a graph is known."""
        return graph_id in self._graphs

    def name_of(self, operation_id: str) -> tuple[str, str]:
        """The graph of an operation and what it is called there; empty for one of no graph."""
        return self._names.get(operation_id, ("", ""))

    def requested_of(self, operation_id: str) -> Requested:
        """For whom an operation of a graph was asked for; nobody for one of no graph."""
        graph = self._graphs.get(self.name_of(operation_id)[0])
        return Requested() if graph is None else graph.terms.requested

    def cancel(self, graph: Graph) -> int:
        """Stop all that has not ended, and return how many that were. Repeat: safe."""
        left = graph.core.left
        self._apply(graph, graph.core.cancel())
        return left

    def statistics(self) -> dict[str, int]:
        """Counts for a status page."""
        return {"graphs": len(self._graphs), "graph_actions": len(self._names)}

    def _restore(self, held: RecoveredGraph, unpacked: Callable[[bytes], Mapping[str, ActionSpec]]) -> None:
        stored, operations = held.graph, held.operations
        outcomes = {
            name: operations[number].outcome
            for number, (_, name) in zip(stored.numbers, stored.members, strict=True)
            if number in operations
        }
        ended = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
        is_live = len(ended) < len(stored.members)
        # Of one whose actions have all ended, only what they were called is of use.
        specs = unpacked(stored.actions) if is_live else {}
        needs = {name: specs[name].references if is_live else () for _, name in stored.members}
        graph_core = core.GraphCore(needs)
        effects = graph_core.restore(outcomes.keys() - ended.keys(), {name: _well(o) for name, o in ended.items()})
        members = {name: _Member(id_, None if name in outcomes else specs[name]) for id_, name in stored.members}
        graph = Graph(
            stored.id, stored.terms, stored.submitted_at_unix_ms, stored.numbers, members, graph_core,
            len(stored.actions),
        )  # fmt: skip
        graph.results = {
            name: outcome.result
            for name, outcome in ended.items()
            if outcome.result is not None and graph_core.is_taken(name)
        }
        for _ in self._announced(graph, outcomes):
            pass
        if not is_live:
            known = (self._scheduler.find_operation(member.id) for member in members.values())
            graph.ended_at_s = max(operation.completed_at_s for operation in known if operation is not None)
        for name in outcomes.keys() - ended.keys():
            self._scheduler.follow(members[name].id, partial(self._heard, graph, name))
        if is_live:
            waiting = [spec for name, spec in specs.items() if name not in outcomes]
            self._spawn(self._hold_again(graph, waiting, dict(graph.results)))
        self._apply(graph, [*effects, *graph_core.start()])

    async def _hold_again(self, graph: Graph, waiting: Sequence[ActionSpec], results: Mapping[str, bytes]) -> None:
        try:
            await self._binder.hold(_held_name(graph.id), waiting)
        except BuildNetError as error:
            # Each is asked for all the same, and says what it lacks.
            log.warning("what waits in the graph %s is not held: %s", graph.id, error)
        if graph.ended_at_s is not None:
            self._binder.release(_held_name(graph.id))
        for name, result in results.items():
            await self._hold_outputs(graph, name, result)

    async def _hold_outputs(self, graph: Graph, name: str, result: bytes) -> None:
        if name in graph.results:
            await self._binder.hold_outputs(_held_name(graph.id, name), result)
            if name not in graph.results:
                # The last who took them ended while they were looked up.
                self._binder.release(_held_name(graph.id, name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None, "run() serves"
        self._tasks.create_task(work)

    def _announced(self, graph: Graph, begun: Container[str]) -> Iterator[None]:
        """Make its operations known, those that were begun apart, some at a time."""
        terms = graph.terms
        placeholder = Wanted(
            ActionKey(terms.instance, UNKNOWN), frozenset(), 0.0, caller=terms.caller, share=_share_of(terms)
        )
        self._count += len(graph.members)
        self._size_bytes += graph.size_bytes
        for number, (name, member) in zip(graph.numbers, graph.members.items(), strict=True):
            self._names[member.id] = (graph.id, name)
            if name not in begun:
                withdraw = partial(self._withdraw, graph, name)
                self._scheduler.known.announce(member.id, number, placeholder, graph.submitted_at_unix_ms, withdraw)
            if not number % SLICE:
                yield
        self._graphs[graph.id] = graph
        graph.is_announced = True

    def _withdraw(self, graph: Graph, name: str) -> None:
        """Somebody cancels one action that the scheduler does not have yet."""
        if graph.core.state(name) == "asked" or not graph.is_announced:
            graph.members[name].stopping = True
            return
        self._apply(graph, graph.core.withdraw(name))

    # Effects.

    def _apply(self, graph: Graph, effects: list[core.Effect]) -> None:
        for effect in effects:
            member = graph.members[effect.name]
            match effect:
                case core.Ask(name=name):
                    graph.asked.append(name)
                case core.Fail(because=because):
                    message = f"it takes outputs of {because!r}, which has failed or was not run; `actions ls` says why"
                    self._conclude(member, Outcome("dependency_failed", None, message))
                case core.Withdraw():
                    self._conclude(member, _CANCELLED)
                case core.Stop():
                    # One that is being bound stops when it is; the others are the scheduler's.
                    member.stopping = True
                    self._scheduler.cancel(member.id)
                case core.Release(name=name):
                    if graph.results.pop(name, None) is not None:
                        self._binder.release(_held_name(graph.id, name))
        if graph.asked and not graph.is_binding:
            graph.is_binding = True
            self._spawn(self._bind_all(graph))
        if not graph.core.left and graph.ended_at_s is None:
            graph.ended_at_s = self._clock.monotonic_s()
            self._binder.release(_held_name(graph.id))

    def _conclude(self, member: _Member, outcome: Outcome) -> None:
        member.spec = None
        self._scheduler.known.conclude(member.id, outcome)

    async def _bind_all(self, graph: Graph) -> None:
        # One after the other: the store's part is short, and the first is with a worker while the second is bound.
        try:
            # What is not bound when this controller stops is bound by the next one.
            while graph.asked and self._scheduler.accepting:
                await self._bind(graph, graph.asked.popleft())
        finally:
            graph.is_binding = False

    async def _bind(self, graph: Graph, name: str) -> None:
        member = graph.members[name]
        spec = member.spec
        assert spec is not None, "it is bound once"
        if member.stopping:
            self._unasked(graph, name, _CANCELLED)
            return
        terms = graph.terms
        try:
            results = {below: _result_of(graph, below) for below in spec.references}
            wanted = await self._binder.bind(spec, terms.instance, terms.caller, results)
        except BuildNetError as error:
            digests = tuple(error.fields.get("digests", ())) if error.code == "blobs_missing" else ()
            self._unasked(graph, name, Outcome(error.code, None, error.message, missing=digests))
            return
        except Exception:
            # A task that raises would end every other graph's.
            log.exception("an action of a graph could not be bound")
            self._unasked(graph, name, Outcome("internal", None, "binding failed; the server's log has the details"))
            return
        if member.stopping:
            self._unasked(graph, name, _CANCELLED)
            return
        if not self._scheduler.accepting:
            return
        member.spec = None
        wanted = replace(wanted, skip_cache_lookup=terms.skip_cache_lookup, share=_share_of(terms))
        try:
            self._scheduler.submit(wanted, partial(self._heard, graph, name), operation_id=member.id)
        except BuildNetError as error:
            self._conclude(member, Outcome(error.code, None, error.message))
            self._apply(graph, graph.core.ended(name, well=False))

    def _unasked(self, graph: Graph, name: str, outcome: Outcome) -> None:
        self._conclude(graph.members[name], outcome)
        self._apply(graph, graph.core.ended(name, well=False))

    def _heard(self, graph: Graph, name: str, progress: Progress) -> None:
        outcome = progress.outcome
        if progress.stage != "completed" or outcome is None:
            return
        well = _well(outcome)
        if well and outcome.result is not None and graph.core.is_taken(name):
            graph.results[name] = outcome.result
            self._spawn(self._hold_outputs(graph, name, outcome.result))
        self._apply(graph, graph.core.ended(name, well=well))

    def _forget_old(self, more: int, more_bytes: int) -> None:
        horizon_s = self._clock.monotonic_s() - OPERATIONS_KEPT_S

        def is_full() -> bool:
            return self._count + more > MEMBERS_MAX or self._size_bytes + more_bytes > BYTES_MAX

        for graph in list(self._graphs.values()):
            if graph.ended_at_s is not None and (graph.ended_at_s <= horizon_s or is_full()):
                self._forget(graph)
        if is_full():
            raise Overloaded(
                f"{self._count} actions of graphs are known already, of {self._size_bytes} bytes; try again later",
                limit=MEMBERS_MAX,
            )

    def _forget(self, graph: Graph) -> None:
        del self._graphs[graph.id]
        self._count -= len(graph.members)
        self._size_bytes -= graph.size_bytes
        ids = [member.id for member in graph.members.values()]
        for operation_id in ids:
            del self._names[operation_id]
        self._scheduler.known.forget_members(ids)
        if self._store is not None:
            self._store.forget_graph(graph.numbers)


def _well(outcome: Outcome) -> bool:
    """Whether others may take its outputs: a command that failed leaves some that nobody should build on."""
    return outcome.code == "ok" and outcome.exit_code == 0


def _result_of(graph: Graph, name: str) -> bytes:
    """The result of one that is done.

    Raises:
        DependencyFailed: the cache alone had it, and lost it before this controller started.
    """
    if (result := graph.results.get(name)) is None:
        raise DependencyFailed(
            f"the result of {name!r} was evicted from the cache while the controller was away; submit the graph again",
            action=name,
        )
    return result


def _held_name(graph_id: str, action: str | None = None) -> str:
    """What the inputs of a graph are held under, or the outputs of an action of it."""
    return f"graph {graph_id}" if action is None else f"graph {graph_id} {action}"


def _share_of(terms: GraphTerms) -> tuple[str, str, str]:
    """Who its actions are counted for."""
    return share_of(terms.caller, terms.requested.invocation)
