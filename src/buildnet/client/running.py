"""Run one action and hear how it goes, over connections that break and servers that are started anew."""

from __future__ import annotations

import asyncio
import re as regular
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from buildnet._native import Body, InputTree
from buildnet.client import logs
from buildnet.client.actions import info_of
from buildnet.client.blobs import BlobCalls, Inputs, entries_of
from buildnet.client.patience import OnBreak
from buildnet.client.replies import replies
from buildnet.client.results import ActionInfo, LogPiece, RunResult, result_of
from buildnet.client.status import error_of_status
from buildnet.dial import call_of
from buildnet.errors import BuildNetError, NodeDown, NotFound
from buildnet.model.action_spec import ActionSpec, spec_of
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.protobuf import empty_pb2
from buildnet.wire.action_spec import lower
from buildnet.wire.actions import digest_message
from buildnet.wire.native import translated
from buildnet.wire.request_metadata import Manner, manner_metadata

OnLog = Callable[[LogPiece], None]
OnStage = Callable[[str], None]

DEFAULT_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin"}

_EXECUTION: Final = "/build.bazel.remote.execution.v2.Execution/"
_ACTION: Final = "/buildnet.v1.ActionService/"
# How long the end of a stream that has told its last may take.
_END_TIMEOUT_S: Final = 1.0
# How long one who gives up waits to hear what it has asked for.
_NAMED_TIMEOUT_S: Final = 20.0
_STAGES: Final = {2: "queued", 3: "executing", 4: "completed"}
_ENTRY: Final = regular.compile(r"\bledger entry ([0-9]+)\b")


class RunCalls(BlobCalls):
    """Actions that a client runs, and one operation at a time."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        inputs: Inputs = (),
        outputs: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        platform: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        require: Sequence[str] = (),
        pins: Mapping[str, str] | None = None,
        effects: Mapping[str, str] | None = None,
        resources: Amounts = NOTHING,
        secrets: Mapping[str, str] | None = None,
        tier: str = "",
        working_directory: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
        do_not_cache: bool = False,
        skip_cache: bool = False,
        on_log: OnLog | None = None,
        on_stage: OnStage | None = None,
    ) -> RunResult:
        """Run a command somewhere, or have its result from the cache.

        Args:
            argv: the program and its arguments; a bare name is looked up along PATH.
            inputs: what the command may read: a mapping of path in its directory to local path or bytes, or local
                relative paths that keep their names. Directories bring everything below them.
            outputs: paths of files or directories that it may leave.
            env: its whole environment; unless given, a PATH of the usual directories and nothing else.
            platform: what the worker must offer; as pairs where a name has several values.
            require: constraints on the worker's resources, such as `gcc>=12`; all must be met.
            pins: versions of tools, such as gcc: 12.2.
            effects: level by effect, such as network: ambient; what is not named is the worker's least.
            resources: what it may use.
            secrets: variables by references to secrets that the worker knows.
            tier: the least trust in the node that runs it: untrusted, trusted or local; "" for trusted, or untrusted
                where the caller is in a namespace.
            working_directory: below the inputs' root, where it runs.
            timeout_s: limit of the execution itself.
            priority: lower runs sooner.
            do_not_cache: neither take part in nor fill the cache.
            skip_cache: run even if there is a result, and replace it.
            on_log: called with what the command prints while it runs.
            on_stage: called with queued, executing, completed.

        Raises:
            BuildNetError: there is no result. A command that exits with another code than zero is a result.

        Cancels:
            the operation is cancelled at the server.
        """
        spec = spec_of(
            argv,
            variables=DEFAULT_ENVIRONMENT if env is None else env,
            pins=pins,
            working_directory=working_directory,
            outputs=outputs,
            effects=effects,
            resources=resources,
            constraints=require,
            platform=platform.items() if isinstance(platform, Mapping) else platform or (),
            secrets=secrets,
            tier=tier,
            timeout_s=timeout_s,
            do_not_cache=do_not_cache,
        )
        action = await self._patience.tried(lambda: self.prepare(spec, inputs))
        result = await self._run(action, Manner(), on_log, on_stage, skip_cache=skip_cache, priority=priority)
        result.check_outputs(spec.outputs)
        return result

    async def rerun(
        self,
        action: Digest,
        *,
        worker: str = "",
        on_log: OnLog | None = None,
        on_stage: OnStage | None = None,
    ) -> RunResult:
        """Run an action that the server has once more and apart: whatever the cache holds, and leaving nothing in it.

        Args:
            action: its digest.
            worker: the id of the node that is to run it, "" for any.
            on_log: as `run` has it.
            on_stage: as `run` has it.

        Raises:
            BlobsMissing: the Action, its Command or an input is no longer in the cache.
            NoCapableWorker: that node has not joined, or does not offer what the action requires.
        """
        return await self._run(action, Manner(worker, apart=True), on_log, on_stage, skip_cache=True)

    async def _run(
        self,
        action: Digest,
        manner: Manner,
        on_log: OnLog | None,
        on_stage: OnStage | None,
        *,
        skip_cache: bool,
        priority: int = 0,
    ) -> RunResult:
        request = re.ExecuteRequest(
            instance_name=self.instance, action_digest=digest_message(action), skip_cache_lookup=skip_cache
        )
        request.execution_policy.priority = priority
        operation, response = await self._execute(request, on_log, on_stage, manner)
        if response.status.code:
            raise error_of_status(response.status)
        entry = None
        if not response.cached_result:
            entry = await self._entry_of(response, _id_of(operation))
        return result_of(response, action, operation, entry, self._link)

    async def prepare(self, spec: ActionSpec, inputs: Inputs = ()) -> Digest:
        """Store an action with its command and inputs, and run nothing; `rerun` does."""
        entries = entries_of(inputs)

        def push() -> Digest:
            tree = InputTree(entries)
            lowered = lower(spec, Digest.parse(tree.root))
            self._link.push_tree(tree)
            # Both at once: they are a batch of two.
            small = InputTree([("action", lowered.action), ("command", lowered.command)])
            self._link.push_tree(small)
            return lowered.digest

        with translated():
            return await asyncio.to_thread(push)

    async def _execute(
        self, request: re.ExecuteRequest, on_log: OnLog | None, on_stage: OnStage | None, manner: Manner
    ) -> tuple[str, re.ExecuteResponse]:
        name = ""
        printing: asyncio.Task[None] | None = None
        absence = self._patience.absence()
        try:
            while True:
                try:
                    operations = self._operations(request, name, manner)
                    operations = operations if name else self._heard(operations)
                    async for operation in operations:
                        absence.over()
                        name = operation.name
                        if operation.done:
                            response = re.ExecuteResponse()
                            operation.response.Unpack(response)
                            if printing is not None:
                                # What was printed last may still be on its way.
                                await printing
                            if on_stage is not None:
                                on_stage("completed")
                            # A call whose end is not awaited is one more that was cancelled to the server.
                            with suppress(TimeoutError, BuildNetError):
                                await asyncio.wait_for(anext(operations, None), _END_TIMEOUT_S)
                            return name, response
                        if on_log is not None and printing is None:
                            printing = asyncio.ensure_future(self._forward(_id_of(name), on_log))
                            printing.add_done_callback(partial(_stop_unheard, asyncio.current_task()))
                        if on_stage is not None:
                            on_stage(_stage_of(operation))
                    failure = NodeDown(f"{self.url} ended the stream before the action was done", url=self.url)
                except NotFound as error:
                    if not name:
                        raise
                    # The server forgot the operation: ask again.
                    name, failure = "", NodeDown(error.message, url=self.url)
                except NodeDown as error:
                    failure = error
                await absence.wait(failure)
        except asyncio.CancelledError:
            if name:
                await self._give_up(name)
            _tell_unheard(printing)
            raise
        finally:
            if printing is not None:
                printing.cancel()

    async def _heard(
        self, operations: AsyncIterator[operations_pb2.Operation]
    ) -> AsyncIterator[operations_pb2.Operation]:
        """The same. Whoever is cancelled before the server has named the operation hears the name first, and cancels
        it: nobody else could.
        """
        first = asyncio.ensure_future(anext(operations, None))
        try:
            operation = await asyncio.shield(first)
        except asyncio.CancelledError:
            heard, _ = await asyncio.wait({first}, timeout=_NAMED_TIMEOUT_S)
            first.cancel()
            if heard and first.exception() is None and (named := first.result()) is not None:
                await self._give_up(named.name)
            raise
        if operation is not None:
            yield operation
            async for operation in operations:
                yield operation

    async def _entry_of(self, response: re.ExecuteResponse, operation_id: str) -> int | None:
        # The answer says so itself; a server that does not is asked.
        told = _ENTRY.search(response.message)
        if told is not None:
            return int(told[1])
        return (await self._patience.tried(lambda: self.action(operation_id))).entry_index

    def _operations(
        self, request: re.ExecuteRequest, name: str, manner: Manner
    ) -> AsyncIterator[operations_pb2.Operation]:
        if name:
            wait = re.WaitExecutionRequest(name=name)
            return self._stream(_EXECUTION + "WaitExecution", wait, operations_pb2.Operation)
        path = _EXECUTION + "Execute"
        return self._stream(path, request, operations_pb2.Operation, manner_metadata(manner))

    async def _forward(self, operation_id: str, on_log: OnLog) -> None:
        # The log is a courtesy: when it breaks, the result still comes, with all that was printed.
        with suppress(BuildNetError):
            async for piece in self.logs(operation_id, follow=True):
                on_log(piece)

    async def _give_up(self, name: str) -> None:
        request = operations_pb2.CancelOperationRequest(name=name)
        with suppress(BuildNetError):
            await self._unary("/google.longrunning.Operations/CancelOperation", request, empty_pb2.Empty)

    async def action(self, operation_id: str) -> ActionInfo:
        """One operation, by its id or an unambiguous beginning of it."""
        request = action_pb2.GetActionRequest(id=operation_id)
        return info_of(await self._unary(_ACTION + "GetAction", request, action_pb2.ActionSummary))

    async def cancel(self, operation_id: str) -> None:
        """Stop one operation."""
        request = action_pb2.CancelActionRequest(id=operation_id)
        await self._unary(_ACTION + "CancelAction", request, action_pb2.CancelActionResponse)

    async def logs(
        self,
        operation_id: str,
        *,
        follow: bool = False,
        streams: Collection[int] = (),
        offsets: tuple[int, int] = (0, 0),
        fence: int = 0,
        on_break: OnBreak | None = None,
    ) -> AsyncIterator[LogPiece]:
        """What an action prints or printed, both streams as they came. A connection that breaks is made again, for as
        long as a server that is started anew may take.

        Args:
            operation_id: which operation.
            follow: stay until it ends.
            streams: 1 for stdout, 2 for stderr; none for both.
            offsets: where to begin in stdout and stderr, in bytes.
            fence: the attempt that the offsets are of; another one is read from its beginning. 0: whichever it is.
            on_break: called with why, when it broke and is made again.

        Raises:
            NodeDown: the server stayed away.
        """
        request = logs.logs_request(operation_id, follow, streams, offsets, fence)
        async for piece in logs.resumed(self._log_records, request, self._patience.absence(), on_break):
            yield piece

    def _log_records(self, request: bytes) -> AsyncGenerator[bytes | Body, None]:
        return replies(call_of(self._address, self._credentials, logs.PATH), request, self.url)


def _id_of(name: str) -> str:
    return name.rsplit("operations/", 1)[-1]


def _stage_of(operation: operations_pb2.Operation) -> str:
    metadata = re.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return _STAGES.get(metadata.stage, "queued")


def _stop_unheard(running: asyncio.Task[Any] | None, printing: asyncio.Task[None]) -> None:
    """Whoever was to hear what a command prints has gone, as the reader of a pipe does: it need not go on for him."""
    if running is not None and not printing.cancelled() and printing.exception() is not None:
        running.cancel()


def _tell_unheard(printing: asyncio.Task[None] | None) -> None:
    """Raise what ended the printing, if it failed."""
    if printing is not None and printing.done() and not printing.cancelled():
        printing.result()
