"""A state directory that is full, damaged or in use: refused with the reason, while what is there is served."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from tests.conformance.server import ABSENT, Server, fresh, pieces, refused
from tests.faults.process import PLAIN, Process, small_store

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
LARGE_BYTES = 1 << 20


def status_of(process: Process) -> dict[str, int]:
    """What /status says of the store."""
    connection = http.client.HTTPConnection(process.url.removeprefix("grpc://"), timeout=10)
    try:
        connection.request("GET", "/status")
        store: dict[str, int] = json.loads(connection.getresponse().read())["store"]
        return store
    finally:
        connection.close()


def put_over_http(process: Process, digest: re.Digest, data: bytes) -> int:
    """The status of a PUT."""
    connection = http.client.HTTPConnection(process.url.removeprefix("grpc://"), timeout=10)
    try:
        connection.request("PUT", f"/cas/{digest.hash}", body=data)
        return connection.getresponse().status
    finally:
        connection.close()


def fill(path: Path) -> None:
    """Write to a file until the disk takes no more."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 << 10))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 160 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"SKIPPED LOUDLY: no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.timeout(120)
def test_a_full_disk_refuses_writes_serves_reads_and_recovers(small_disk: Path) -> None:
    with Process(small_disk / "state") as process, Server(process.url) as server:
        kept = []
        refusal = None
        while refusal is None:
            data = fresh(LARGE_BYTES)
            digest = server.digest(data)
            try:
                server.write(pieces(server.upload_name(digest), data))
                kept.append((digest, data))
            except grpc.RpcError as error:
                refusal = error
            assert len(kept) < 200
        assert refusal.code() is FULL
        assert "full" in (refusal.details() or "")
        # What is left may still hold smaller ones.
        codes = {0}
        for _ in range(200):
            small = fresh(100_000)
            codes = set(server.update((server.digest(small), small)).values())
            if codes != {0}:
                break
        assert codes == {FULL.value[0]}
        assert put_over_http(process, server.digest(small), small) == 507
        result = re.ActionResult(stdout_raw=fresh(100_000))
        assert refused(lambda: server.store_result(server.digest(b"action"), result), FULL) is FULL
        assert server.missing(server.digest(small)) == [f"{server.digest(small).hash}/100000"]
        assert refused(lambda: server.result(server.digest(b"action")), grpc.StatusCode.NOT_FOUND)
        assert server.missing(*(digest for digest, _ in kept)) == []
        assert server.read(server.name(kept[0][0])) == kept[0][1]
        # Another user of the disk fills what the store leaves free: it neither lies nor ends.
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            fill(ballast)
        assert refused(lambda: server.write(pieces(server.upload_name(digest), data)), FULL) is FULL
        assert server.read(server.name(kept[-1][0])) == kept[-1][1]
        ballast.unlink()
        cas = small_disk / "state" / "cas"
        assert not list((cas / "tmp").iterdir()), "half-written files stay behind"
        # Room is made by whoever looks after the disk.
        subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
        assert server.put(small) == server.digest(small)
        assert server.write(pieces(server.upload_name(digest), data)) == LARGE_BYTES
        server.store_result(server.digest(b"action"), result)
    with Process(small_disk / "state") as process, Server(process.url) as server:
        assert server.missing(*(digest for digest, _ in kept), digest, server.digest(small)) == []
        assert server.result(server.digest(b"action")).stdout_raw == result.stdout_raw


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with Process(tmp_path / "state") as process:
        second = subprocess.run(
            [*PLAIN, "up", "--no-worker", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode != 0
        assert str(process.process.pid) in second.stderr
        with Server(process.url) as server:
            data = fresh()
            assert server.read(server.name(server.put(data))) == data


@pytest.mark.parametrize("size", [3_000, 500_000])
def test_bytes_that_rot_while_it_runs_are_absent_counted_and_stored_anew(tmp_path: Path, size: int) -> None:
    with Process(tmp_path / "state") as process, Server(process.url) as server:
        data = b"\x55" * size
        digest = server.put(data)
        result = re.ActionResult(stdout_digest=digest)
        server.store_result(server.digest(b"action"), result)
        assert server.result(server.digest(b"action")) == result
        assert status_of(process)["damaged"] == 0
        cas = tmp_path / "state" / "cas"
        [path] = [p for p in [*cas.glob("segments/*.seg"), *cas.glob("large/*/*")] if b"\x55" * size in p.read_bytes()]
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(path.read_bytes().index(b"\x55" * size) + size // 2)
            file.write(b"\x54")
        refused(lambda: server.read(server.name(digest)), grpc.StatusCode.NOT_FOUND)
        assert [answer.status.code for answer in server.read_batch(digest)] == [ABSENT]
        assert server.missing(digest) == [f"{digest.hash}/{digest.size_bytes}"]
        refused(lambda: server.result(server.digest(b"action")), grpc.StatusCode.NOT_FOUND)
        assert status_of(process)["damaged"] == 1
        assert server.put(data) == digest
        assert server.read(server.name(digest)) == data
        assert server.result(server.digest(b"action")) == result


def test_a_damaged_format_file_keeps_it_shut_and_says_what_to_do(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Process(state):
        pass
    path = state / "cas" / "FORMAT"
    whole = path.read_bytes()
    path.write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
    refused_ = subprocess.run(
        [*PLAIN, "up", "--no-worker", "--state", str(state), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert refused_.returncode != 0
    assert "remove" in refused_.stderr
    path.write_bytes(whole)
    with Process(state):
        pass


@pytest.mark.timeout(120)
def test_a_queued_action_keeps_its_inputs_whatever_is_evicted(tmp_path: Path) -> None:
    command = small_store(256 << 10, 8 << 20, 0)
    with Process(tmp_path / "state", command=command) as process, Server(process.url) as server:
        file = server.put(os.urandom(20_000))
        large = server.put(os.urandom(300_000))
        inner = server.put_message(re.Directory(files=[re.FileNode(name="large", digest=large)]))
        node = re.DirectoryNode(name="inner", digest=inner)
        root = server.put_message(re.Directory(files=[re.FileNode(name="f", digest=file)], directories=[node]))
        needed = [file, large, inner, root, server.put_message(re.Command(arguments=["true"]))]
        needed.append(server.put_message(re.Action(command_digest=needed[-1], input_root_digest=root)))
        other = server.put(os.urandom(20_000))
        execute = server.channel.unary_stream(
            "/build.bazel.remote.execution.v2.Execution/Execute",
            re.ExecuteRequest.SerializeToString,
            operations_pb2.Operation.FromString,
        )
        request = re.ExecuteRequest(action_digest=needed[-1])
        operations = execute(request, timeout=60)
        assert not next(operations).done
        while status_of(process)["held"] < len(needed):
            assert not operations.done()
        for _ in range(400):
            server.put(os.urandom(100_000))
        # Once more than the whole store has passed, and nothing is kept for having been used.
        assert status_of(process)["evicted"] > 100
        assert server.missing(*needed) == []
        assert server.missing(other) != []
        cancel = server.channel.unary_unary(
            "/google.longrunning.Operations/CancelOperation",
            operations_pb2.CancelOperationRequest.SerializeToString,
            lambda data: data,
        )
        listed = server.unary(
            "/google.longrunning.Operations/ListOperations",
            operations_pb2.ListOperationsRequest(),
            operations_pb2.ListOperationsResponse,
        )
        cancel(operations_pb2.CancelOperationRequest(name=listed.operations[0].name), timeout=10)
        assert [operation.done for operation in operations][-1]
        assert status_of(process)["held"] == 0
