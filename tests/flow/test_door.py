"""The byte services over a real socket with a stock gRPC client: what REAPI asks, and what bad input gets."""

from __future__ import annotations

import hashlib
import http.client
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from buildnet.model.digest import EMPTY, Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2
from buildnet.wire._gen.grpc.health.v1 import health_pb2
from buildnet.wire.actions import digest_message
from tests.conftest import Role

RE = "/build.bazel.remote.execution.v2."
CAS = RE + "ContentAddressableStorage/"
Code = grpc.StatusCode


class Server:
    """Raw calls to one server."""

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.channel = grpc.insecure_channel(listen, options=[("grpc.max_receive_message_length", 64 << 20)])

    def unary(self, path: str, request: Any, response: type[Any]) -> Any:
        call = self.channel.unary_unary(path, lambda m: m.SerializeToString(), response.FromString)
        return call(request, timeout=20)

    def raw(self, path: str, request: bytes) -> bytes:
        return self.channel.unary_unary(path, None, None)(request, timeout=20)  # type: ignore[no-any-return]

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        request = re.BatchUpdateBlobsRequest()
        request.requests.add(digest=digest_message(digest), data=data)
        answer = self.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
        assert answer.responses[0].status.code == 0, answer
        return digest

    def write(self, messages: list[bs.WriteRequest]) -> bs.WriteResponse:
        call = self.channel.stream_unary(
            "/google.bytestream.ByteStream/Write", bs.WriteRequest.SerializeToString, bs.WriteResponse.FromString
        )
        return call(iter(messages), timeout=20)  # type: ignore[no-any-return]

    def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        call = self.channel.unary_stream(
            "/google.bytestream.ByteStream/Read", bs.ReadRequest.SerializeToString, bs.ReadResponse.FromString
        )
        request = bs.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return b"".join(message.data for message in call(request, timeout=20))

    def execute(self, action: Digest, **fields: Any) -> re.ExecuteResponse:
        call = self.channel.unary_stream(
            RE + "Execution/Execute", re.ExecuteRequest.SerializeToString, operations_pb2.Operation.FromString
        )
        request = re.ExecuteRequest(action_digest=digest_message(action), **fields)
        *_, last = call(request, timeout=60)
        assert last.done
        assert not last.HasField("error")
        response = re.ExecuteResponse()
        assert last.response.Unpack(response)
        return response

    def missing(self, *digests: Digest) -> list[str]:
        request = re.FindMissingBlobsRequest(blob_digests=[digest_message(d) for d in digests])
        answer = self.unary(CAS + "FindMissingBlobs", request, re.FindMissingBlobsResponse)
        return [f"{d.hash}/{d.size_bytes}" for d in answer.missing_blob_digests]

    def action(self, command: re.Command, root: re.Directory | Digest = EMPTY, **fields: Any) -> Digest:
        root_digest = root if isinstance(root, Digest) else self.put(root.SerializeToString())
        action = re.Action(
            command_digest=digest_message(self.put(command.SerializeToString())),
            input_root_digest=digest_message(root_digest),
            **fields,
        )
        return self.put(action.SerializeToString())


@pytest.fixture(scope="module")
def server(running: Role) -> Iterator[Server]:
    server = Server(running.ready["listen"])
    yield server
    server.channel.close()


def refused(call: Callable[[], object], code: grpc.StatusCode) -> status_pb2.Status:
    """The details of a call that must fail with `code`."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value
    for key, value in caught.value.trailing_metadata():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def fresh(size: int = 32) -> bytes:
    return os.urandom(size)


def name_of(digest: Digest, instance: str = "") -> str:
    return f"{instance}/blobs/{digest}" if instance else f"blobs/{digest}"


def upload_of(digest: Digest) -> str:
    return f"uploads/{uuid.uuid4()}/blobs/{digest}"


# Capabilities and health.


def test_capabilities_suit_old_and_new_clients(server: Server) -> None:
    answer = server.unary(
        RE + "Capabilities/GetCapabilities", re.GetCapabilitiesRequest(instance_name="a/b"), re.ServerCapabilities
    )
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert (answer.high_api_version.major, answer.high_api_version.minor) == (2, 12)
    assert answer.execution_capabilities.digest_function in answer.execution_capabilities.digest_functions
    assert answer.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert 0 < answer.cache_capabilities.max_batch_total_size_bytes < 4 << 20


def test_health(server: Server) -> None:
    path = "/grpc.health.v1.Health/Check"
    answer = server.unary(path, health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    refused(lambda: server.unary(path, health_pb2.HealthCheckRequest(service="x"), re.Digest), Code.NOT_FOUND)


def test_reflection_names_every_service(server: Server) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    database = ProtoReflectionDescriptorDatabase(server.channel)
    services = set(database.get_services())
    assert {"build.bazel.remote.execution.v2.Execution", "buildnet.v1.FleetService"} <= services
    file = database.FindFileContainingSymbol("build.bazel.remote.execution.v2.Execution")
    assert file.name.endswith("remote_execution.proto")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/buildnet.v1.JobService/SubmitJob", "JobService.SubmitJob"),
        ("/no.such.Service/Call", "no.such.Service"),
    ],
)
def test_what_is_not_built_says_so_by_name(server: Server, path: str, word: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.raw(path, b"")
    assert caught.value.code() is Code.UNIMPLEMENTED
    assert word in caught.value.details()


# Blobs.


def test_the_empty_blob_always_exists(server: Server) -> None:
    assert server.missing(EMPTY) == []
    assert server.read(name_of(EMPTY)) == b""


def test_size_is_part_of_a_digest(server: Server) -> None:
    data = fresh()
    digest = server.put(data)
    wrong = Digest(digest.hash, digest.size_bytes + 1)
    assert server.missing(digest, wrong) == [wrong.text]
    refused(lambda: server.read(name_of(wrong)), Code.NOT_FOUND)
    request = re.BatchUpdateBlobsRequest()
    request.requests.add(digest=digest_message(wrong), data=data)
    answer = server.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
    assert answer.responses[0].status.code == Code.INVALID_ARGUMENT.value[0]


def test_a_batch_answers_for_each_blob(server: Server) -> None:
    good, bad = fresh(), fresh()
    request = re.BatchUpdateBlobsRequest()
    request.requests.add(digest=digest_message(Digest.of(good)), data=good)
    request.requests.add(digest=digest_message(Digest.of(bad)), data=bad + b"x")
    request.requests.add(digest=digest_message(Digest.of(bad)), data=bad, compressor=re.Compressor.ZSTD)
    answer = server.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse)
    assert [r.status.code for r in answer.responses] == [0, 3, 3]
    assert server.missing(Digest.of(good), Digest.of(bad)) == [Digest.of(bad).text]
    read = re.BatchReadBlobsRequest(digests=[digest_message(Digest.of(d)) for d in (good, bad)])
    answer = server.unary(CAS + "BatchReadBlobs", read, re.BatchReadBlobsResponse)
    assert [(r.status.code, r.data) for r in answer.responses] == [(0, good), (5, b"")]


def test_a_batch_over_the_limit_is_refused(server: Server) -> None:
    request = re.BatchUpdateBlobsRequest()
    for _ in range(4):
        data = fresh(1 << 20)
        request.requests.add(digest=digest_message(Digest.of(data)), data=data)
    refused(lambda: server.unary(CAS + "BatchUpdateBlobs", request, re.BatchUpdateBlobsResponse), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize(("function", "count"), [("sha256", 8000), ("sha512", 6000)])
def test_a_reply_about_thousands_of_absent_blobs_is_what_clients_take(
    server: Server, function: str, count: int
) -> None:
    def digest_of(data: bytes, size_bytes: int) -> re.Digest:
        return re.Digest(hash=hashlib.new(function, data).hexdigest(), size_bytes=size_bytes)

    data = fresh((3 << 20) - count)
    update = re.BatchUpdateBlobsRequest()
    update.requests.add(digest=digest_of(data, len(data)), data=data)
    assert server.unary(CAS + "BatchUpdateBlobs", update, re.BatchUpdateBlobsResponse).responses[0].status.code == 0
    absent = [digest_of(number.to_bytes(8), 1) for number in range(count)]
    request = re.BatchReadBlobsRequest(digests=[*absent, digest_of(data, len(data))])
    reply = server.raw(CAS + "BatchReadBlobs", request.SerializeToString())
    assert len(reply) <= 4 << 20
    *others, last = re.BatchReadBlobsResponse.FromString(reply).responses
    assert [(r.digest, r.status.code) for r in others] == [(digest, Code.NOT_FOUND.value[0]) for digest in absent]
    # The first are told in words, and those for which there is no room by their code.
    assert others[0].status.message
    assert not others[-1].status.message
    assert (last.status.code, last.data) == (0, data)
    more = re.BatchReadBlobsRequest(digests=absent * 8)
    refused(lambda: server.raw(CAS + "BatchReadBlobs", more.SerializeToString()), Code.INVALID_ARGUMENT)


def test_a_message_over_the_limit_is_resource_exhausted(server: Server) -> None:
    refused(lambda: server.raw(CAS + "FindMissingBlobs", bytes(17 << 20)), Code.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("function", [4, 7, 77])
def test_digest_functions_that_are_not_offered_are_refused(server: Server, function: int) -> None:
    request = re.FindMissingBlobsRequest()
    # An open enum: unknown numbers travel too.
    body = request.SerializeToString() + b"\x18" + bytes([function])
    with pytest.raises(grpc.RpcError) as caught:
        server.raw(CAS + "FindMissingBlobs", body)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_a_large_blob_streams_up_and_down(server: Server) -> None:
    data = fresh(3 << 20)
    digest = Digest.of(data)
    chunks = [data[i : i + (1 << 20)] for i in range(0, len(data), 1 << 20)]
    messages = [
        bs.WriteRequest(
            resource_name=upload_of(digest) if i == 0 else "",
            write_offset=i << 20,
            data=chunk,
            finish_write=i == len(chunks) - 1,
        )
        for i, chunk in enumerate(chunks)
    ]
    assert server.write(messages).committed_size == len(data)
    assert server.read(name_of(digest, "some/instance")) == data
    assert server.read(name_of(digest), offset=5) == data[5:]
    assert server.read(name_of(digest), offset=7, limit=9) == data[7:16]
    assert server.read(name_of(digest), offset=len(data)) == b""
    # What is here already ends an upload at once.
    assert server.write(messages[:1]).committed_size == len(data)


@pytest.mark.parametrize(
    ("offset", "limit", "code"),
    [(33, 0, Code.OUT_OF_RANGE), (-1, 0, Code.OUT_OF_RANGE), (0, -1, Code.INVALID_ARGUMENT)],
)
def test_reading_outside_a_blob(server: Server, offset: int, limit: int, code: grpc.StatusCode) -> None:
    digest = server.put(fresh())
    refused(lambda: server.read(name_of(digest), offset, limit), code)


def _uploads() -> dict[str, Callable[[bytes, Digest], list[bs.WriteRequest]]]:
    def one(data: bytes, digest: Digest, **fields: Any) -> list[bs.WriteRequest]:
        return [bs.WriteRequest(resource_name=upload_of(digest), data=data, **fields)]

    return {
        "wrong bytes": lambda data, digest: one(data[::-1], digest, finish_write=True),
        "truncated": lambda data, digest: one(data[:-1], digest, finish_write=True),
        "over-long": lambda data, digest: one(data + b"x", digest, finish_write=True),
        "never finished": lambda data, digest: one(data, digest),
        "wrong offset": lambda data, digest: one(data, digest, write_offset=5, finish_write=True),
        "no message": lambda data, digest: [],
        "compressed": lambda data, digest: [
            bs.WriteRequest(resource_name=f"uploads/u/compressed-blobs/zstd/{digest}", data=data, finish_write=True)
        ],
        "no name": lambda data, digest: [bs.WriteRequest(data=data, finish_write=True)],
    }


@pytest.mark.parametrize("kind", _uploads())
def test_a_bad_upload_leaves_nothing(server: Server, kind: str) -> None:
    data = fresh(1000)
    digest = Digest.of(data)
    refused(lambda: server.write(_uploads()[kind](data, digest)), Code.INVALID_ARGUMENT)
    assert server.missing(digest) == [digest.text]
    query = bs.QueryWriteStatusRequest(resource_name=upload_of(digest))
    answer = server.unary("/google.bytestream.ByteStream/QueryWriteStatus", query, bs.QueryWriteStatusResponse)
    assert (answer.committed_size, answer.complete) == (0, False)


def test_a_tree_is_read_in_pages_without_what_is_absent(server: Server) -> None:
    leaf = re.Directory()
    leaf.files.add(name="f", digest=digest_message(server.put(fresh())))
    root = re.Directory()
    root.directories.add(name="absent", digest=digest_message(Digest.of(fresh())))
    root.directories.add(name="leaf", digest=digest_message(server.put(leaf.SerializeToString())))
    call = server.channel.unary_stream(
        CAS + "GetTree", re.GetTreeRequest.SerializeToString, re.GetTreeResponse.FromString
    )
    request = re.GetTreeRequest(root_digest=digest_message(server.put(root.SerializeToString())), page_size=1)
    pages = list(call(request))
    assert [directory for page in pages for directory in page.directories] == [root, leaf]
    assert pages[-1].next_page_token == ""
    absent = re.GetTreeRequest(root_digest=digest_message(Digest.of(fresh())))
    refused(lambda: list(call(absent)), Code.NOT_FOUND)


# The action cache.


def test_a_result_is_a_hit_only_when_it_is_complete(server: Server) -> None:
    action, data, log = Digest.of(fresh()), fresh(), fresh()
    result = re.ActionResult(exit_code=3, stdout_digest=digest_message(Digest.of(log)))
    result.output_files.add(path="o", digest=digest_message(Digest.of(data)))
    update = re.UpdateActionResultRequest(action_digest=digest_message(action), action_result=result)
    path = RE + "ActionCache/"
    assert server.unary(path + "UpdateActionResult", update, re.ActionResult) == result
    get = re.GetActionResultRequest(action_digest=digest_message(action), inline_stdout=True)
    for blob in (data, log):
        refused(lambda: server.unary(path + "GetActionResult", get, re.ActionResult), Code.NOT_FOUND)
        server.put(blob)
    answer = server.unary(path + "GetActionResult", get, re.ActionResult)
    assert answer.stdout_raw == log
    assert answer.output_files == result.output_files
    other = re.GetActionResultRequest(instance_name="other", action_digest=digest_message(action))
    refused(lambda: server.unary(path + "GetActionResult", other, re.ActionResult), Code.NOT_FOUND)


# HTTP.


def http_call(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.listen, timeout=20)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_http_cache_keeps_what_bazel_puts(server: Server) -> None:
    data = fresh(100_000)
    name = hashlib.sha256(data).hexdigest()
    assert http_call(server, "GET", f"/cas/{name}")[0] == 404
    assert http_call(server, "PUT", f"/cas/{name}", data)[0] == 200
    assert http_call(server, "GET", f"/x/y/cas/{name}") == (200, data)
    assert http_call(server, "HEAD", f"/cas/{name}") == (200, b"")
    assert http_call(server, "PUT", f"/cas/{name[::-1]}", data)[0] == 400
    # ccache and others keep values of their own under /ac: they come back untouched.
    assert http_call(server, "PUT", f"/ac/{name}", b"not a result")[0] == 200
    assert http_call(server, "GET", f"/ac/{name}") == (200, b"not a result")
    assert http_call(server, "GET", f"/other/ac/{name}")[0] == 404
    assert http_call(server, "DELETE", f"/ac/{name}")[0] == 204
    assert http_call(server, "GET", "/nothing")[0] == 404
    assert http_call(server, "GET", "/status")[0] == 200


# Execution.

ECHO = re.Command(arguments=["/bin/sh", "-c", "echo out; echo err >&2; echo file > o"], output_paths=["o"])


def test_an_action_runs_once_and_is_then_cached(server: Server) -> None:
    command = re.Command(arguments=["/bin/sh", "-c", "cat r"])
    root = re.Directory()
    root.files.add(name="r", digest=digest_message(server.put(fresh())))
    action = server.action(command, root)
    first = server.execute(action, inline_stdout=True)
    again = server.execute(action, inline_stdout=True)
    assert (first.cached_result, again.cached_result) == (False, True)
    assert first.result.stdout_raw == again.result.stdout_raw
    forced = server.execute(action, skip_cache_lookup=True)
    assert not forced.cached_result
    assert first.result.execution_metadata.worker


def test_outputs_logs_and_exit_codes_are_results(server: Server) -> None:
    action = server.action(ECHO, salt=fresh())
    response = server.execute(action, inline_stdout=True, inline_stderr=True, inline_output_files=["o"])
    assert (response.result.stdout_raw, response.result.stderr_raw) == (b"out\n", b"err\n")
    assert [(f.path, f.contents) for f in response.result.output_files] == [("o", b"file\n")]
    failing = server.action(re.Command(arguments=["/bin/sh", "-c", "exit 7"]), salt=fresh())
    response = server.execute(failing)
    assert (response.status.code, response.result.exit_code) == (0, 7)
    # A failure is not kept.
    assert not server.execute(failing).cached_result


def test_every_missing_input_is_named(server: Server) -> None:
    absent = [Digest.of(fresh()) for _ in range(3)]
    root = re.Directory()
    for i, digest in enumerate(absent):
        root.files.add(name=f"f{i}", digest=digest_message(digest))
    action = server.action(ECHO, root)
    status = refused(lambda: server.execute(action), Code.FAILED_PRECONDITION)
    failure = error_details_pb2.PreconditionFailure()
    assert any(detail.Unpack(failure) for detail in status.details)
    assert {(v.type, v.subject) for v in failure.violations} == {("MISSING", f"blobs/{d}") for d in absent}
    lonely = Digest.of(fresh())
    status = refused(lambda: server.execute(lonely), Code.FAILED_PRECONDITION)
    assert str(lonely) in str(status)


def _bad_actions(server: Server) -> dict[str, Digest]:
    def named(name: str) -> re.Directory:
        directory = re.Directory()
        directory.files.add(name=name, digest=digest_message(EMPTY))
        return directory

    def linked(target: str) -> re.Directory:
        directory = re.Directory()
        directory.symlinks.add(name="link", target=target)
        return directory

    good = re.Action.FromString(
        re.Action(
            command_digest=digest_message(server.put(ECHO.SerializeToString())),
            input_root_digest=digest_message(EMPTY),
        ).SerializeToString()
    ).SerializeToString()
    unsorted = re.Directory()
    for name in ("b", "a"):
        unsorted.files.add(name=name, digest=digest_message(EMPTY))
    return {
        "not an Action": server.put(b"\xff\xff\xff"),
        "unknown field": server.put(good + b"\xf8\x07\x01"),
        "parent": server.action(ECHO, named("..")),
        "slash": server.action(ECHO, named("a/b")),
        "absolute": server.action(ECHO, named("/tmp/x")),
        "unsorted": server.action(ECHO, unsorted),
        "absolute symlink": server.action(ECHO, linked("/etc/passwd")),
        "climbing symlink": server.action(ECHO, linked("../x")),
        "no arguments": server.action(re.Command()),
        "output above": server.action(re.Command(arguments=["x"], output_paths=["../x"])),
        "absolute output": server.action(re.Command(arguments=["x"], output_paths=["/x"])),
        "root is no Directory": server.action(ECHO, server.put(b"\xff\xff\xff")),
    }


def test_bad_actions_are_refused_before_anything_runs(server: Server) -> None:
    for kind, action in _bad_actions(server).items():
        with pytest.raises(grpc.RpcError) as caught:
            server.execute(action)
        assert caught.value.code() is Code.INVALID_ARGUMENT, kind


def test_a_tree_of_ten_thousand_levels_is_refused(server: Server) -> None:
    digest = EMPTY
    batch = re.BatchUpdateBlobsRequest()
    for _ in range(10_000):
        directory = re.Directory()
        directory.directories.add(name="d", digest=digest_message(digest))
        data = directory.SerializeToString()
        digest = Digest.of(data)
        batch.requests.add(digest=digest_message(digest), data=data)
    server.unary(CAS + "BatchUpdateBlobs", batch, re.BatchUpdateBlobsResponse)
    action = server.action(ECHO, digest)
    refused(lambda: server.execute(action), Code.INVALID_ARGUMENT)


def test_a_small_tree_that_unfolds_without_end_is_refused(server: Server) -> None:
    digest = EMPTY
    for _ in range(40):
        directory = re.Directory()
        for name in ("a", "b"):
            directory.directories.add(name=name, digest=digest_message(digest))
        digest = server.put(directory.SerializeToString())
    action = server.action(ECHO, digest)
    refused(lambda: server.execute(action), Code.INVALID_ARGUMENT)


def test_a_timeout_is_enforced_and_bounded(server: Server) -> None:
    sleeping = re.Command(arguments=["/bin/sh", "-c", "echo begun; sleep 60"])
    action = re.Action(
        command_digest=digest_message(server.put(sleeping.SerializeToString())), input_root_digest=digest_message(EMPTY)
    )
    action.timeout.FromMilliseconds(300)
    response = server.execute(server.put(action.SerializeToString()), inline_stdout=True)
    assert response.status.code == Code.DEADLINE_EXCEEDED.value[0]
    assert response.result.stdout_raw == b"begun\n"
    action.timeout.FromSeconds(100_000)
    refused(lambda: server.execute(server.put(action.SerializeToString())), Code.INVALID_ARGUMENT)


def test_outputs_that_are_not_there_are_left_out(server: Server) -> None:
    command = re.Command(arguments=["/bin/true"], output_paths=["never"])
    response = server.execute(server.action(command, salt=fresh()))
    assert (response.status.code, len(response.result.output_files)) == (0, 0)


def test_a_command_that_is_not_there_is_named(server: Server) -> None:
    response = server.execute(server.action(re.Command(arguments=["/no/such/program"]), salt=fresh()))
    assert response.status.code == Code.INVALID_ARGUMENT.value[0]
    assert "/no/such/program" in response.status.message


def test_what_no_worker_offers_is_named(server: Server) -> None:
    action = re.Action(
        command_digest=digest_message(server.put(ECHO.SerializeToString())), input_root_digest=digest_message(EMPTY)
    )
    action.platform.properties.add(name="OSFamily", value="plan9")
    response = server.execute(server.put(action.SerializeToString()))
    assert response.status.code == Code.FAILED_PRECONDITION.value[0]
    assert "OSFamily=plan9" in response.status.message


def test_an_unknown_operation_must_be_executed_anew(server: Server) -> None:
    call = server.channel.unary_stream(
        RE + "Execution/WaitExecution", re.WaitExecutionRequest.SerializeToString, operations_pb2.Operation.FromString
    )
    refused(lambda: list(call(re.WaitExecutionRequest(name="operations/none"))), Code.NOT_FOUND)
