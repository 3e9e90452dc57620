"""Progress and outcomes of the model as REAPI operations."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from buildnet.errors import BuildNetError, InvariantBroken, NotFound
from buildnet.model.action import Outcome
from buildnet.model.digest import Digest
from buildnet.ports import Progress
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.protobuf import any_pb2
from buildnet.wire._gen.google.rpc import status_pb2
from buildnet.wire.actions import digest_message, digest_of

_STAGES = {
    # Of a graph, for others: to a client of REAPI it is in a queue.
    "waiting": re.ExecutionStage.QUEUED,
    "queued": re.ExecutionStage.QUEUED,
    "executing": re.ExecutionStage.EXECUTING,
    "completed": re.ExecutionStage.COMPLETED,
}
_METADATA = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata"
_RESPONSE = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse"
# A client's default message limit is 4 MiB; what is inlined must leave room for the rest of the result.
_INLINE_BYTES_MAX = 3 << 20

StatusOf = Callable[[Outcome], status_pb2.Status]
Read = Callable[[str], bytes]


def operation_of(
    name: str,
    action: Digest,
    progress: Progress,
    status_of: StatusOf,
    inline: re.ExecuteRequest | None = None,
    read: Read | None = None,
) -> operations_pb2.Operation:
    """One message of an Execute or WaitExecution stream.

    `done` is set if and only if the stage is COMPLETED; errors of the action are in ExecuteResponse.status and never
    in Operation.error (REAPI Execution.Execute).
    """
    metadata = re.ExecuteOperationMetadata(
        stage=_STAGES[progress.stage],
        action_digest=digest_message(action),
        digest_function=re.DigestFunction.SHA256,
        partial_execution_metadata=re.ExecutedActionMetadata(worker=progress.worker),
    )
    about = any_pb2.Any(type_url=_METADATA, value=metadata.SerializeToString())
    if progress.stage != "completed":
        return operations_pb2.Operation(name=name, metadata=about)
    if progress.outcome is None:
        raise InvariantBroken("a completed operation has an outcome")
    response = response_of(progress.outcome, status_of, name.rsplit("/", 1)[-1])
    if inline is not None and read is not None:
        _inline(response.result, inline, read)
    told = any_pb2.Any(type_url=_RESPONSE, value=response.SerializeToString())
    return operations_pb2.Operation(name=name, metadata=about, done=True, response=told)


def response_of(outcome: Outcome, status_of: StatusOf, operation: str = "") -> re.ExecuteResponse:
    """What Execute tells in the end. `message` is what build tools print beneath a command that failed (REAPI
    ExecuteResponse.message): there it says where that was and how to learn more.

    Raises:
        NotFound: it ended well, and its result was evicted since: the action cache alone had it.
    """
    if outcome.code == "ok" and outcome.result is None:
        raise NotFound("the operation's result was evicted from the cache; submit it again", kind="result", name="")
    response = re.ExecuteResponse(cached_result=outcome.cached, status=status_of(outcome))
    if outcome.result is not None:
        try:
            response.result.ParseFromString(outcome.result)
        except DecodeError as error:
            raise InvariantBroken("a stored result cannot be decoded") from error
    if outcome.code != "ok":
        response.message = outcome.message
    elif outcome.entry_index is not None:
        response.message = f"ledger entry {outcome.entry_index}"
        if outcome.exit_code:
            more = f"; more: buildnet actions show {operation[:12]}" if operation else ""
            response.message = f"it failed on the worker {outcome.worker[:12]} ({response.message}){more}"
    return response


def stamped(result: bytes, queued_at_unix_ms: int) -> bytes:
    """A result with the time at which it was asked for (REAPI ExecutedActionMetadata.queued_timestamp)."""
    try:
        message = re.ActionResult.FromString(result)
    except DecodeError as error:
        raise InvariantBroken("a worker's result cannot be decoded") from error
    message.execution_metadata.queued_timestamp.FromMilliseconds(queued_at_unix_ms)
    return message.SerializeToString(deterministic=True)


def _inline(result: re.ActionResult, request: re.ExecuteRequest, read: Read) -> None:
    """Put stdout, stderr and named outputs into the result as asked, as long as they fit (REAPI: MUST omit else)."""
    room = _INLINE_BYTES_MAX

    def take(message: re.Digest) -> bytes | None:
        nonlocal room
        if not 0 < message.size_bytes <= room:
            return None
        try:
            data = read(digest_of(message).text)
        except BuildNetError:
            # Inlining is a courtesy; the digest stays and the client will be told when it asks for the blob.
            return None
        room -= len(data)
        return data

    if request.inline_stdout and (data := take(result.stdout_digest)) is not None:
        result.stdout_raw = data
    if request.inline_stderr and (data := take(result.stderr_digest)) is not None:
        result.stderr_raw = data
    wanted = set(request.inline_output_files)
    for file in result.output_files:
        if file.path in wanted and (data := take(file.digest)) is not None:
            file.contents = data
