"""Graphs of actions as a service: it feeds `graph.GraphCore`, binds what it asks for and submits it. One loop owns it.

It decides nothing: every decision is the core's. A graph is accepted whole or not at all, and each of its actions is an
operation from then on, which ends exactly once. Graphs are in memory: a controller that starts anew has none, and a
client that submits one again finds in the cache what was done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from buildnet.errors import BuildNetError, NotFound, Overloaded
from buildnet.model.action import Outcome
from buildnet.model.action_spec import ActionSpec
from buildnet.ports import Binder, Clock, Progress
from buildnet.scheduler import graph as core
from buildnet.scheduler.service import OPERATIONS_KEPT_S, Scheduler

log = logging.getLogger(__name__)

MEMBERS_MAX: Final = 200_000
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
    instance: str
    caller: str
    skip_cache_lookup: bool
    members: dict[str, _Member]
    core: core.GraphCore
    # Of actions that are done and whose outputs somebody still takes.
    results: dict[str, bytes] = field(default_factory=dict)
    asked: deque[str] = field(default_factory=deque)
    is_binding: bool = False
    ended_at_s: float | None = None


class Graphs:
    """Accepts graphs, and brings their actions to the scheduler as they become ready."""

    def __init__(self, scheduler: Scheduler, binder: Binder, clock: Clock, new_id: Callable[[], str]) -> None:
        self._scheduler = scheduler
        self._binder = binder
        self._clock = clock
        self._new_id = new_id
        self._graphs: dict[str, Graph] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Serve until cancelled: hold the tasks that bind."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def submit(
        self, specs: Mapping[str, ActionSpec], instance: str, caller: str, *, skip_cache_lookup: bool = False
    ) -> Graph:
        """Accept a graph, whole or not at all. Its first actions are bound at once.

        Raises:
            InvalidRequest: it is no graph (see `graph.check`).
            TooLarge: it has too many actions or references.
            Overloaded: as many actions of graphs are known as may.
        """
        graph_core = core.GraphCore({name: spec.references for name, spec in specs.items()})
        self._forget_old(len(specs))
        members = {name: _Member(self._new_id(), spec) for name, spec in specs.items()}
        graph = Graph(self._new_id(), instance, caller, skip_cache_lookup, members, graph_core)
        self._graphs[graph.id] = graph
        for name, member in members.items():
            self._names[member.id] = (graph.id, name)
            self._scheduler.announce(member.id, instance, caller, partial(self._withdraw, graph, name))
        self._apply(graph, graph_core.start())
        return graph

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

    def cancel(self, graph: Graph) -> int:
        """Stop all that has not ended, and return how many that were. Repeat: safe."""
        left = graph.core.left
        self._apply(graph, graph.core.cancel())
        return left

    def statistics(self) -> dict[str, int]:
        """Counts for a status page."""
        return {"graphs": len(self._graphs), "graph_actions": len(self._names)}

    def _withdraw(self, graph: Graph, name: str) -> None:
        """Somebody cancels one action that the scheduler does not have yet."""
        if graph.core.state(name) == "asked":
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
                    graph.results.pop(name, None)
        if graph.asked and not graph.is_binding:
            assert self._tasks is not None, "run() serves"
            graph.is_binding = True
            self._tasks.create_task(self._bind_all(graph))
        if not graph.core.left and graph.ended_at_s is None:
            graph.ended_at_s = self._clock.monotonic_s()

    def _conclude(self, member: _Member, outcome: Outcome) -> None:
        member.spec = None
        self._scheduler.conclude(member.id, outcome)

    async def _bind_all(self, graph: Graph) -> None:
        # One after the other: the store's part is short, and the first is with a worker while the second is bound.
        try:
            while graph.asked:
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
        try:
            results = {below: graph.results[below] for below in spec.references}
            wanted = await self._binder.bind(spec, graph.instance, graph.caller, results)
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
        member.spec = None
        self._apply(graph, graph.core.bound(name))
        wanted = replace(wanted, skip_cache_lookup=graph.skip_cache_lookup)
        try:
            self._scheduler.submit(wanted, partial(self._heard, graph, name), operation_id=member.id)
        except BuildNetError as error:
            self._conclude(member, Outcome(error.code, None, error.message))
            self._apply(graph, graph.core.ended(name, well=False))

    def _unasked(self, graph: Graph, name: str, outcome: Outcome) -> None:
        self._conclude(graph.members[name], outcome)
        self._apply(graph, [*graph.core.bound(name), *graph.core.ended(name, well=False)])

    def _heard(self, graph: Graph, name: str, progress: Progress) -> None:
        outcome = progress.outcome
        if progress.stage != "completed" or outcome is None:
            return
        # A command that failed leaves outputs that nobody should build on.
        well = outcome.code == "ok" and outcome.exit_code == 0 and outcome.result is not None
        if well and outcome.result is not None:
            graph.results[name] = outcome.result
        self._apply(graph, graph.core.ended(name, well=well))

    def _forget_old(self, more: int) -> None:
        horizon_s = self._clock.monotonic_s() - OPERATIONS_KEPT_S
        for graph in list(self._graphs.values()):
            if graph.ended_at_s is None:
                continue
            if graph.ended_at_s > horizon_s and len(self._names) + more <= MEMBERS_MAX:
                continue
            del self._graphs[graph.id]
            for member in graph.members.values():
                del self._names[member.id]
        if len(self._names) + more > MEMBERS_MAX:
            raise Overloaded(
                f"{len(self._names)} actions of graphs are known already; try again later", limit=MEMBERS_MAX
            )
