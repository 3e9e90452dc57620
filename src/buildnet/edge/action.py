"""ActionService: what runs and what ran, by operation id, and what it prints while it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import islice

from buildnet.edge.bridge import Call, Method
from buildnet.edge.execution import check_may_stop
from buildnet.edge.logs import LogBook
from buildnet.errors import BuildNetError, NotFound
from buildnet.model.caller import Caller, public_instance
from buildnet.scheduler.service import Operation, Scheduler
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2
from buildnet.wire.actions import Described, described_of, digest_message, digest_of

_ACTION = "/buildnet.v1.ActionService/"
_LIST_MAX = 1000
_ARGUMENTS_SHOWN = 8
_DESCRIBED_MAX = 20_000
_STORED_CHUNK_BYTES = 256 << 10
# Larger logs are read as blobs, in pieces: `buildnet cas get`.
_STORED_BYTES_MAX = 64 << 20
_PREFIX_MIN = 4

_STATES = {
    "queued": action_pb2.ACTION_STATE_QUEUED,
    "executing": action_pb2.ACTION_STATE_EXECUTING,
    "completed": action_pb2.ACTION_STATE_COMPLETED,
}


class Descriptions:
    """What was asked for, by operation id; bounded, the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Described] = OrderedDict()

    def add(self, operation_id: str, described: Described) -> None:
        """Remember one."""
        self._known[operation_id] = described
        while len(self._known) > _DESCRIBED_MAX:
            self._known.popitem(last=False)

    def get(self, operation_id: str) -> Described | None:
        """What is remembered of it."""
        return self._known.get(operation_id)


class ActionService:
    """What runs and what ran."""

    def __init__(
        self, scheduler: Scheduler, logs: LogBook, descriptions: Descriptions, read: Callable[[str], bytes]
    ) -> None:
        self._scheduler = scheduler
        self._logs = logs
        self._descriptions = descriptions
        self._read = read

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = action_pb2
        return {
            _ACTION + "ListActions": Method("unary", self.list_actions, pb.ListActionsRequest, pb.ListActionsResponse),
            _ACTION + "GetAction": Method("unary", self.get_action, pb.GetActionRequest, pb.ActionSummary),
            _ACTION + "StreamLogs": Method("server_stream", self.stream_logs, pb.StreamLogsRequest, pb.LogRecord),
            _ACTION + "CancelAction": Method(
                "unary", self.cancel_action, pb.CancelActionRequest, pb.CancelActionResponse
            ),
        }

    def list_actions(self, request: action_pb2.ListActionsRequest, call: Call) -> action_pb2.ListActionsResponse:
        """Operations, newest first."""
        limit = min(request.page_size or 100, _LIST_MAX)
        start = int(request.page_token) if request.page_token.isdigit() else 0
        # No more summaries are made than are wanted, and one to know whether there are more: many operations are known.
        chosen = [self._summary(o) for o in islice(self._chosen(request, call.caller), start, start + limit + 1)]
        answer = action_pb2.ListActionsResponse(actions=chosen[:limit])
        if len(chosen) > limit:
            answer.next_page_token = str(start + limit)
        return answer

    def _chosen(self, request: action_pb2.ListActionsRequest, caller: Caller) -> Iterator[Operation]:
        wanted = set(request.states)
        for operation in self._scheduler.operations():
            key = operation.wanted.key
            if (
                (not wanted or _state_of(operation) in wanted)
                and caller.may_see(key.instance)
                and (not request.filter_instance_name or public_instance(key.instance) == request.instance_name)
            ):
                yield operation

    def get_action(self, request: action_pb2.GetActionRequest, call: Call) -> action_pb2.ActionSummary:
        """One operation by its id or the beginning of it."""
        return self._summary(self._find(request.id, call.caller))

    def cancel_action(self, request: action_pb2.CancelActionRequest, call: Call) -> action_pb2.CancelActionResponse:
        """Stop one operation."""
        operation = self._find(request.id, call.caller)
        check_may_stop(call.caller, operation)
        self._scheduler.cancel(operation.id)
        return action_pb2.CancelActionResponse()

    async def stream_logs(
        self, request: action_pb2.StreamLogsRequest, call: Call
    ) -> AsyncIterator[action_pb2.LogRecord]:
        """Live output while the action runs; the stored output once it has ended."""
        operation = self._of_logs(request, call.caller)
        sent = {1: 0, 2: 0}
        while operation.progress.stage != "completed":
            fence = operation.fence
            if fence is None:
                if not request.follow:
                    return
                await operation.wait_changed()
                continue
            reader = self._logs.reader(fence)
            sent = {1: 0, 2: 0}
            while not reader.ended:
                for chunk in reader.read_nowait():
                    sent[chunk.stream] = chunk.offset + len(chunk.data)
                    yield _record(chunk.stream, chunk.offset, chunk.data, gap=chunk.gap)
                if not request.follow:
                    return
                await reader.wait_news()
            if operation.fence == fence and operation.progress.stage != "completed":
                await operation.wait_changed()
        for record in self._stored(operation, sent):
            yield record

    def _of_logs(self, request: action_pb2.StreamLogsRequest, caller: Caller) -> Operation:
        if request.id:
            return self._find(request.id, caller)
        digest = digest_of(request.action_digest)
        for operation in self._scheduler.operations():
            if operation.wanted.key.digest == digest and caller.may_see(operation.wanted.key.instance):
                return operation
        raise NotFound(f"no operation for the action {digest} is known", kind="operation", name=digest.text)

    def _stored(self, operation: Operation, sent: dict[int, int]) -> list[action_pb2.LogRecord]:
        """What the result's own logs hold beyond what was sent live."""
        outcome = operation.progress.outcome
        if outcome is None or outcome.result is None:
            return []
        result = re.ActionResult.FromString(outcome.result)
        records = []
        for stream, digest in ((1, result.stdout_digest), (2, result.stderr_digest)):
            if digest.size_bytes <= sent[stream] or digest.size_bytes > _STORED_BYTES_MAX:
                continue
            data = self._read(digest_of(digest).text)
            for offset in range(sent[stream], len(data), _STORED_CHUNK_BYTES):
                piece = data[offset : offset + _STORED_CHUNK_BYTES]
                records.append(_record(stream, offset, piece))
        return records

    def _find(self, operation_id: str, caller: Caller) -> Operation:
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

    def _described(self, operation: Operation) -> Described | None:
        described = self._descriptions.get(operation.id)
        if described is None:
            # It was asked for before this controller started. Without its blobs, it is shown without its command.
            with suppress(BuildNetError):
                described = described_of(operation.wanted.key.digest, self._read)
                self._descriptions.add(operation.id, described)
        return described

    def _summary(self, operation: Operation) -> action_pb2.ActionSummary:
        outcome = operation.progress.outcome
        described = self._described(operation)
        summary = action_pb2.ActionSummary(
            id=operation.id,
            action_digest=digest_message(operation.wanted.key.digest),
            instance_name=public_instance(operation.wanted.key.instance),
            state=_state_of(operation),
            worker=operation.progress.worker,
            command_arguments=described.arguments[:_ARGUMENTS_SHOWN] if described else (),
        )
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


def _state_of(operation: Operation) -> action_pb2.ActionState:
    outcome = operation.progress.outcome
    if outcome is None or outcome.code == "ok":
        return _STATES[operation.progress.stage]
    return action_pb2.ACTION_STATE_CANCELLED if outcome.code == "cancelled" else action_pb2.ACTION_STATE_FAILED


def _record(stream: int, offset: int, data: bytes, *, gap: bool = False) -> action_pb2.LogRecord:
    return action_pb2.LogRecord(stream=fleet_pb2.LogStream.Name(stream), offset=offset, data=data, gap=gap)
