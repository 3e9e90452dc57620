"""ActionService: what waits, runs and ran, by operation id, and how it ended. What it prints is in `action_logs`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from buildnet.edge import action_filter
from buildnet.edge.bridge import Call, Method
from buildnet.edge.execution import check_may_stop, outcome_status
from buildnet.edge.fleet_watch import Watchers
from buildnet.edge.paging import page_size_of
from buildnet.errors import BuildNetError, InvalidRequest, NotFound
from buildnet.model.caller import Caller, public_instance
from buildnet.model.digest import UNKNOWN, Digest
from buildnet.scheduler.graphs import Graphs
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.service import Scheduler
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import Described, described_of, digest_message
from buildnet.wire.operations import response_of

_ACTION = "/buildnet.v1.ActionService/"
_LIST_MAX = 1000
_ARGUMENTS_SHOWN = 8
_ARGUMENTS_CHARACTERS_SHOWN = 1024
_DESCRIBED_MAX = 50_000
_PREFIX_MIN = 4


class Descriptions:
    """What was asked for, by operation id; bounded, the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Described] = OrderedDict()

    def add(self, operation_id: str, described: Described) -> None:
        """Remember one."""
        # What is shown is kept: a command of a megabyte is not.
        arguments = described.arguments
        if len(arguments) > _ARGUMENTS_SHOWN or sum(map(len, arguments)) > _ARGUMENTS_CHARACTERS_SHOWN:
            described = replace(described, arguments=tuple(_shown(arguments)))
        self._known[operation_id] = described
        while len(self._known) > _DESCRIBED_MAX:
            self._known.popitem(last=False)

    def get(self, operation_id: str) -> Described | None:
        """What is remembered of it."""
        return self._known.get(operation_id)


def _shown(arguments: Iterable[str]) -> Iterator[str]:
    """The first arguments, as far as they are shown; what is cut ends in …."""
    left = _ARGUMENTS_CHARACTERS_SHOWN
    for argument in islice(arguments, _ARGUMENTS_SHOWN):
        yield argument if len(argument) <= left else argument[: left - 1] + "…"
        left -= len(argument)
        if left < 1:
            return


class ActionService:
    """What runs and what ran."""

    def __init__(
        self, scheduler: Scheduler, descriptions: Descriptions, graphs: Graphs, read: Callable[[str], bytes]
    ) -> None:
        self._read = read
        self._scheduler = scheduler
        self._graphs = graphs
        self._watchers = Watchers("actions")
        scheduler.watch(self._watchers.changed)
        self._descriptions = descriptions

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = action_pb2
        return {
            _ACTION + "ListActions": Method("unary", self.list_actions, pb.ListActionsRequest, pb.ListActionsResponse),
            _ACTION + "GetAction": Method("unary", self.get_action, pb.GetActionRequest, pb.ActionSummary),
            _ACTION + "GetResult": Method("unary", self.get_result, pb.GetResultRequest, re.ExecuteResponse),
            _ACTION + "WatchActions": Method(
                "server_stream", self.watch_actions, pb.WatchActionsRequest, pb.ActionEvent
            ),
            _ACTION + "CancelAction": Method(
                "unary", self.cancel_action, pb.CancelActionRequest, pb.CancelActionResponse
            ),
        }

    def list_actions(self, request: action_pb2.ListActionsRequest, call: Call) -> action_pb2.ListActionsResponse:
        """Operations, newest first."""
        limit = page_size_of(request.page_size, 100, _LIST_MAX)
        fits = self._fitting(request.filter, call.caller)
        after = action_filter.after_of(request.page_token)
        known = action_filter.later(self._scheduler.operations(), after)
        summaries, token = action_filter.page_of(filter(fits, known), limit, self._summary)
        return action_pb2.ListActionsResponse(actions=summaries, next_page_token=token)

    def _fitting(self, wanted: action_pb2.ActionFilter, caller: Caller) -> Callable[[Operation], bool]:
        return action_filter.fitting(wanted, caller, self._descriptions.get, lambda id_: self._graphs.name_of(id_)[0])

    async def watch_actions(
        self, request: action_pb2.WatchActionsRequest, call: Call
    ) -> AsyncIterator[action_pb2.ActionEvent]:
        """Operations that fit, oldest first, then those that change."""
        fits = self._fitting(request.filter, call.caller)
        known = [operation.id for operation in self._scheduler.operations() if fits(operation)]
        known.reverse()
        told = set[str]()
        async for operation_id in self._watchers.watch(known):
            if operation_id is None:
                yield action_pb2.ActionEvent(complete=True)
                continue
            operation = self._scheduler.find_operation(operation_id)
            if operation is None:
                told.discard(operation_id)
            elif fits(operation):
                told.add(operation_id)
                yield action_pb2.ActionEvent(action=self._summary(operation))
            elif operation_id in told:
                # The last word of one that was told: a watcher of what runs hears that it has ended.
                told.discard(operation_id)
                yield action_pb2.ActionEvent(action=self._summary(operation))

    async def get_result(self, request: action_pb2.GetResultRequest, call: Call) -> re.ExecuteResponse:
        """How an operation ended; it waits for the end."""
        operation = self.find(request.id, call.caller)
        while operation.progress.outcome is None:
            await operation.wait_changed()
        return response_of(operation.progress.outcome, outcome_status)

    def summary(self, operation_id: str) -> action_pb2.ActionSummary:
        """Where one operation stands; it is known."""
        operation = self._scheduler.find_operation(operation_id)
        assert operation is not None
        return self._summary(operation)

    def get_action(self, request: action_pb2.GetActionRequest, call: Call) -> action_pb2.ActionSummary:
        """One operation by its id or the beginning of it."""
        return self._summary(self.find(request.id, call.caller))

    async def cancel_action(
        self, request: action_pb2.CancelActionRequest, call: Call
    ) -> action_pb2.CancelActionResponse:
        """Stop one operation, what is left of a graph, or what an invocation asked for. Repeat: safe."""
        given = [request.id, request.graph_id, request.invocation_id]
        if sum(map(bool, given)) != 1:
            raise InvalidRequest("name an action, a graph or an invocation, and one of them", field="id")
        if request.id:
            operation = self.find(request.id, call.caller)
            check_may_stop(call.caller, operation.wanted.key.instance)
            count = int(operation.progress.outcome is None)
            self._scheduler.cancel(operation.id)
        elif request.graph_id:
            graph = self._graphs.find(request.graph_id)
            check_may_stop(call.caller, graph.terms.instance)
            count = self._graphs.cancel(graph)
        else:
            count = self._cancel_invocation(request.invocation_id, call.caller)
        # What is answered stays so, whatever becomes of this controller.
        await self._scheduler.told()
        return action_pb2.CancelActionResponse(cancelled_count=count)

    def _cancel_invocation(self, invocation_id: str, caller: Caller) -> int:
        wanted = action_pb2.ActionFilter(invocation_id=invocation_id)
        fitting = list(filter(self._fitting(wanted, caller), self._scheduler.operations()))
        if not fitting:
            raise NotFound(
                f"no operation of the invocation {invocation_id[:64]!r} is known", kind="invocation", name=invocation_id
            )
        going = [operation for operation in fitting if operation.progress.outcome is None]
        for operation in going:
            check_may_stop(caller, operation.wanted.key.instance)
        for operation in going:
            self._scheduler.cancel(operation.id)
        return len(going)

    def find(self, operation_id: str, caller: Caller) -> Operation:
        """An operation that the caller may see, by its id or an unambiguous beginning of it.

        Raises:
            NotFound: none, or several.
        """
        exact = self._scheduler.find_operation(operation_id)
        if exact is not None and caller.may_see(exact.wanted.key.instance):
            return exact
        if len(operation_id) >= _PREFIX_MIN:
            seen = (o for o in self._scheduler.operations() if caller.may_see(o.wanted.key.instance))
            found = [operation for operation in seen if operation.id.startswith(operation_id)]
            if len(found) == 1:
                return found[0]
            if found:
                raise NotFound(
                    f"{len(found)} operations begin with {operation_id!r}; write more of the id",
                    kind="operation",
                    name=operation_id,
                )
        raise NotFound(
            f"no operation is called {operation_id!r}; `buildnet actions ls` lists those that are known",
            kind="operation",
            name=operation_id,
        )

    def arguments(self, operation_id: str, action: str) -> tuple[str, ...]:
        """The first arguments of an action that the ledger names, as far as its blobs are here: `action` is its digest
        as text; `operation_id` asked for it, "" for nobody known.
        """
        described = self._descriptions.get(operation_id or action)
        if described is None:
            try:
                digest = Digest.parse(action)
            except InvalidRequest:
                return ()
            described = self._read_description(operation_id or action, digest)
        return described.arguments

    def _described(self, operation: Operation) -> Described | None:
        described = self._descriptions.get(operation.id)
        if described is None and operation.wanted.key.digest != UNKNOWN:
            described = self._read_description(operation.id, operation.wanted.key.digest)
        return described

    def _read_description(self, name: str, digest: Digest) -> Described:
        # It was asked for before this controller started. Without its blobs it is shown without its command, and they
        # are not looked for in each list again.
        described = Described((), self._graphs.requested_of(name))
        with suppress(BuildNetError):
            described = replace(described, arguments=described_of(digest, self._read).arguments)
        self._descriptions.add(name, described)
        return self._descriptions.get(name) or described

    def _summary(self, operation: Operation) -> action_pb2.ActionSummary:
        outcome = operation.progress.outcome
        described = self._described(operation)
        summary = action_pb2.ActionSummary(
            id=operation.id,
            action_digest=digest_message(operation.wanted.key.digest),
            instance_name=public_instance(operation.wanted.key.instance),
            state=action_filter.state_of(operation),
            worker=operation.progress.worker,
        )
        if described is not None:
            summary.command_arguments.extend(described.arguments)
            requested = described.requested
            summary.target_id, summary.mnemonic = requested.target, requested.mnemonic
            summary.invocation_id = requested.invocation
        summary.graph_id, summary.graph_name = self._graphs.name_of(operation.id)
        summary.submitted_at.FromMilliseconds(operation.submitted_at_unix_ms)
        if operation.completed_at_unix_ms is not None:
            summary.completed_at.FromMilliseconds(operation.completed_at_unix_ms)
        if outcome is not None:
            if outcome.code != "ok":
                summary.error_code = outcome.code
                summary.message = outcome.message
            summary.exit_code = outcome.exit_code
            summary.cached = outcome.cached
            if outcome.entry_index is not None:
                summary.entry_index = outcome.entry_index
                summary.has_entry = True
        return summary
