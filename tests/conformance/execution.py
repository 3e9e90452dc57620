"""Actions for a server to run, and what it says of them. It judges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2 as op
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2
from tests.conformance.server import RE, Code, Server, fresh

EXECUTION = RE + "Execution/"
OPERATIONS = "/google.longrunning.Operations/"
PATH = "/usr/local/bin:/usr/bin:/bin"
EXECUTE_TIMEOUT_S = 60.0
MISSING = "MISSING"
Stage = re.ExecutionStage


class Executor:
    """One server's Execution and Operations; `platform` is what its workers want to be asked for."""

    def __init__(self, server: Server, platform: Sequence[tuple[str, str]] = ()) -> None:
        if not server.capabilities.execution_capabilities.exec_enabled:
            pytest.skip("execution is not advertised")
        self.server = server
        self.platform = platform

    # What is to be run.

    def folder(self, files: Mapping[str, bytes | re.FileNode] | None = None, **nodes: Any) -> re.Digest:
        """Store a directory of files; `nodes` are further fields of its message."""
        message = re.Directory(**nodes)
        for name, data in sorted((files or {}).items()):
            node = data if isinstance(data, re.FileNode) else re.FileNode(digest=self.server.put(data))
            node.name = name
            message.files.append(node)
        return self.server.put_message(message)

    def action(
        self,
        *arguments: str,
        root: re.Digest | None = None,
        env: Mapping[str, str] | None = None,
        platform: Iterable[tuple[str, str]] = (),
        command: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> re.Digest:
        """Store an action that no server has seen; a single argument is a script for the shell."""
        words = ["/bin/sh", "-c", arguments[0]] if len(arguments) == 1 else list(arguments)
        message = re.Command(arguments=words, **(command or {}))
        for name, value in sorted(({"PATH": PATH} if env is None else env).items()):
            message.environment_variables.add(name=name, value=value)
        fields.setdefault("salt", fresh(16))
        action = re.Action(
            command_digest=self.server.put_message(message), input_root_digest=root or self.folder(), **fields
        )
        for name, value in sorted({*self.platform, *platform}):
            action.platform.properties.add(name=name, value=value)
        return self.server.put_message(action)

    # Running it.

    def execute(
        self, action: re.Digest, *, timeout_s: float = EXECUTE_TIMEOUT_S, **fields: Any
    ) -> Iterator[op.Operation]:
        """Execute: its messages, as they come; leaving it cancels the call, not the operation."""
        request = re.ExecuteRequest(action_digest=action, **{"instance_name": self.server.instance, **fields})
        yield from self._stream("Execute", request, timeout_s)

    def wait(self, name: str, *, timeout_s: float = EXECUTE_TIMEOUT_S) -> Iterator[op.Operation]:
        """WaitExecution: its messages."""
        yield from self._stream("WaitExecution", re.WaitExecutionRequest(name=name), timeout_s)

    def _stream(self, call: str, request: Any, timeout_s: float) -> Iterator[op.Operation]:
        path = EXECUTION + call
        stream = self.server.channel.unary_stream(path, type(request).SerializeToString, op.Operation.FromString)
        messages = stream(request, metadata=self.server.metadata, timeout=timeout_s)
        try:
            yield from messages
        finally:
            messages.cancel()

    def response(self, action: re.Digest, **fields: Any) -> re.ExecuteResponse:
        """What Execute ends with."""
        return response_of(list(self.execute(action, **fields))[-1])

    def result(self, action: re.Digest, **fields: Any) -> re.ActionResult:
        """The result of an action that is to have one."""
        response = self.response(action, **fields)
        assert response.status.code == 0, response.status.message
        return response.result

    def run(self, *arguments: str, **how: Any) -> re.ActionResult:
        """Store and execute an action."""
        return self.result(self.action(*arguments, **how))

    def failure(self, action: re.Digest, **fields: Any) -> status_pb2.Status:
        """How an action fails that is to have no result: the status of the call, or that of its response."""
        try:
            return self.response(action, **fields).status
        except grpc.RpcError as error:
            return status_of(error)

    def started(self, action: re.Digest, stage: int, **fields: Any) -> tuple[Iterator[op.Operation], op.Operation]:
        """The stream, and its first message at this stage or a later one."""
        stream = self.execute(action, **fields)
        for operation in stream:
            if metadata_of(operation).stage >= stage:
                return stream, operation
        raise AssertionError(f"the stream ended before stage {Stage.Value.Name(stage)}")  # type: ignore[arg-type]

    def operation(self, call: str, request: Any, response: type[Any]) -> Any:
        """A call of Operations."""
        return self.server.unary(OPERATIONS + call, request, response)

    def cancel(self, name: str) -> None:
        """CancelOperation, where it is served."""
        from buildnet.wire._gen.google.protobuf import empty_pb2

        try:
            self.operation("CancelOperation", op.CancelOperationRequest(name=name), empty_pb2.Empty)
        except grpc.RpcError as error:
            if error.code() == Code.UNIMPLEMENTED:
                pytest.skip("CancelOperation is not served")
            raise

    def bytes_of(self, digest: re.Digest, raw: bytes = b"") -> bytes:
        """What a digest and the field for its bytes stand for."""
        if raw or not digest.size_bytes:
            return raw
        return self.server.read(self.server.name(digest))

    def stdout(self, result: re.ActionResult) -> bytes:
        """What the command printed."""
        return self.bytes_of(result.stdout_digest, result.stdout_raw)

    def files(self, result: re.ActionResult) -> dict[str, bytes]:
        """Output files by path."""
        return {file.path: self.bytes_of(file.digest, file.contents) for file in result.output_files}


def response_of(operation: op.Operation) -> re.ExecuteResponse:
    """The response in a finished operation."""
    assert operation.done
    response = re.ExecuteResponse()
    assert operation.response.Unpack(response), operation
    return response


def metadata_of(operation: op.Operation) -> re.ExecuteOperationMetadata:
    """The metadata of an operation."""
    metadata = re.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata), "an operation without metadata"
    return metadata


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def missing_of(status: status_pb2.Status) -> set[str]:
    """Subjects of the violations of type MISSING."""
    failure = error_details_pb2.PreconditionFailure()
    found = set()
    for detail in status.details:
        if detail.Unpack(failure):
            found |= {violation.subject for violation in failure.violations if violation.type == MISSING}
    return found
