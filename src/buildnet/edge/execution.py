"""Execution and Operations of REAPI over the scheduler. The door has admitted every request that comes here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace

from buildnet.catalog.constraint import parse
from buildnet.edge import action_filter
from buildnet.edge.absence import Absence
from buildnet.edge.bridge import Call, Method
from buildnet.edge.paging import page_size_of
from buildnet.edge.status import ended_status
from buildnet.errors import Forbidden, NotFound, Unimplemented
from buildnet.model.action import Outcome, Wanted
from buildnet.model.caller import Caller, public_instance, share_of
from buildnet.model.timeout import TIMEOUT_MAX_S
from buildnet.ports import Clock, Progress
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.service import Scheduler
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.protobuf import empty_pb2
from buildnet.wire._gen.google.rpc import status_pb2
from buildnet.wire.actions import Asker, Described, near_target, wanted_of
from buildnet.wire.operations import operation_of
from buildnet.wire.request_metadata import manner_of, requested_of

_EXECUTION = "/build.bazel.remote.execution.v2.Execution/"
_OPERATIONS = "/google.longrunning.Operations/"
_LIST_MAX = 1000

log = logging.getLogger(__name__)

Read = Callable[[str], bytes]


class ExecutionService:
    """Execute, WaitExecution and the Operations that go with them.

    An operation's name is its id under `operations/`, below the instance name when there is one.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        read: Read,
        describe: Callable[[str, Described], None],
        clock: Clock,
        ignored: Collection[str] = (),
        *,
        absent_after_s: float,
        timeout_max_s: float = TIMEOUT_MAX_S,
    ) -> None:
        """What Execute began is stopped when nobody has waited for it for `absent_after_s` seconds. An action may ask
        to run for `timeout_max_s`.
        """
        self._scheduler = scheduler
        self._absence = Absence(clock, absent_after_s, self._stop_unwatched)
        self._read = read
        self._describe = describe
        self._ignored = frozenset(ignored)
        self._timeout_max_s = timeout_max_s

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        op = operations_pb2
        return {
            _EXECUTION + "Execute": Method("server_stream", self.execute, re.ExecuteRequest, op.Operation),
            _EXECUTION + "WaitExecution": Method("server_stream", self.wait, re.WaitExecutionRequest, op.Operation),
            _OPERATIONS + "GetOperation": Method("unary", self.get, op.GetOperationRequest, op.Operation),
            _OPERATIONS + "ListOperations": Method(
                "unary", self.list, op.ListOperationsRequest, op.ListOperationsResponse
            ),
            _OPERATIONS + "CancelOperation": Method("unary", self.cancel, op.CancelOperationRequest, empty_pb2.Empty),
        }

    async def execute(self, request: re.ExecuteRequest, call: Call) -> AsyncIterator[operations_pb2.Operation]:
        """Queue or join the action and follow it until it is completed."""
        instance = call.caller.written(request.instance_name)
        asker = Asker(call.caller, requested_of(call.metadata), manner_of(call.metadata))
        wanted, described = wanted_of(instance, request, asker, self._read, self._ignored, self._timeout_max_s)
        if constraints := wanted.constraints:
            # Refused here: the scheduler asks for nothing but what can be understood.
            parse(constraints)
        progress: asyncio.Queue[Progress] = asyncio.Queue()
        operation_id = self._scheduler.submit(wanted, progress.put_nowait)
        self._scheduler.known[operation_id].is_awaited = True
        self._describe(operation_id, described)
        async for message in self._follow(operation_id, wanted, progress, request):
            yield message

    async def wait(self, request: re.WaitExecutionRequest, call: Call) -> AsyncIterator[operations_pb2.Operation]:
        """Follow an operation that an earlier Execute began; its present state comes at once."""
        operation = self._find(request.name, call.caller)
        progress: asyncio.Queue[Progress] = asyncio.Queue()
        self._scheduler.follow(operation.id, progress.put_nowait)
        async for message in self._follow(operation.id, operation.wanted, progress, None):
            yield message

    async def _follow(
        self,
        operation_id: str,
        wanted: Wanted,
        progress: asyncio.Queue[Progress],
        inline: re.ExecuteRequest | None,
    ) -> AsyncIterator[operations_pb2.Operation]:
        name = _name(wanted.key.instance, operation_id)
        try:
            if inline is not None:
                # Whoever knows its name may come back with it, to this controller or to the next.
                await self._scheduler.kept(operation_id)
            while True:
                news = await progress.get()
                while news.stage != "completed" and not progress.empty():
                    # Where it stands now is enough.
                    news = progress.get_nowait()
                if (operation := self._scheduler.find_operation(operation_id)) is not None:
                    # One of a graph has its digest only once it is bound.
                    wanted = operation.wanted
                yield operation_of(name, wanted.key.digest, news, outcome_status, inline, self._read)
                if news.stage == "completed":
                    return
        finally:
            self._scheduler.unfollow(operation_id, progress.put_nowait)
            operation = self._scheduler.find_operation(operation_id)
            if operation is not None and operation.is_awaited and operation.completed_at_unix_ms is None:
                self._absence.begins(operation_id)

    def _stop_unwatched(self, operation_id: str) -> bool:
        """Stop what nobody waits for, and whose log nobody follows. False: somebody does."""
        operation = self._scheduler.find_operation(operation_id)
        if operation is None or operation.completed_at_unix_ms is not None:
            return True
        if operation.followers or operation.changed is not None:
            return False
        log.info("operation %s is cancelled: its client went away and did not come back", operation_id)
        self._scheduler.cancel(operation_id)
        return True

    def get(self, request: operations_pb2.GetOperationRequest, call: Call) -> operations_pb2.Operation:
        """The present state of one operation."""
        operation = self._find(request.name, call.caller)
        self._absence.asked_after(operation.id)
        return self._message(operation)

    def list(self, request: operations_pb2.ListOperationsRequest, call: Call) -> operations_pb2.ListOperationsResponse:
        """The newest operations, below an instance name or all that the caller may see; no filter is known."""
        if request.filter:
            raise Unimplemented("ListOperations knows no filter yet; leave it empty", missing="filter")
        limit = page_size_of(request.page_size, _LIST_MAX, _LIST_MAX)
        after = action_filter.after_of(request.page_token)
        parent = request.name.removesuffix("operations").rstrip("/")

        def fits(operation: Operation) -> bool:
            instance = operation.wanted.key.instance
            return call.caller.may_see(instance) and (not parent or public_instance(instance) == parent)

        known = action_filter.later(self._scheduler.operations(), after)
        messages, token = action_filter.page_of(filter(fits, known), limit, self._message)
        return operations_pb2.ListOperationsResponse(operations=messages, next_page_token=token)

    def cancel(self, request: operations_pb2.CancelOperationRequest, call: Call) -> empty_pb2.Empty:
        """Ask an operation to stop; its followers are told CANCELLED."""
        operation = self._find(request.name, call.caller)
        check_may_stop(call.caller, operation.wanted.key.instance)
        self._scheduler.cancel(operation.id)
        return empty_pb2.Empty()

    def _find(self, name: str, caller: Caller) -> Operation:
        operation = self._scheduler.find_operation(name.rsplit("operations/", 1)[-1])
        if (
            operation is None
            or _name(operation.wanted.key.instance, operation.id) != name
            or not caller.may_see(operation.wanted.key.instance)
        ):
            raise NotFound(
                f"no operation is called {name!r}; it may have ended long ago: execute again",
                kind="operation",
                name=name,
            )
        return operation

    def _message(self, operation: Operation) -> operations_pb2.Operation:
        name = _name(operation.wanted.key.instance, operation.id)
        return operation_of(name, operation.wanted.key.digest, operation.progress, outcome_status)


def for_caller(wanted: Wanted, call: Call) -> Wanted:
    """With what the call says: whom it is counted for, and what it has in common with others."""
    requested = requested_of(call.metadata)
    share = share_of(call.caller.subject, requested.invocation)
    return replace(wanted, caller=call.caller.subject, share=share, near=wanted.near + near_target(requested.target))


def check_may_stop(caller: Caller, instance: str) -> None:
    """Refuse to end what others wait for.

    Raises:
        Forbidden: it is not the caller's to see, or the caller is in a namespace and it is not of it.
    """
    if not caller.may_stop(instance):
        raise Forbidden(
            f"{caller.subject!r} is in the namespace {caller.namespace!r} and may stop only what was begun there"
        )


def _name(instance: str, operation_id: str) -> str:
    instance = public_instance(instance)
    return f"{instance}/operations/{operation_id}" if instance else f"operations/{operation_id}"


def outcome_status(outcome: Outcome) -> status_pb2.Status:
    """The status of an outcome, for ExecuteResponse."""
    if outcome.code == "ok":
        return status_pb2.Status()
    return ended_status(outcome.code, outcome.message, outcome.missing)
