"""A door with several network threads: what one connection wrote, another reads, whichever thread each has."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from buildnet._native import Door, Store
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.flow.test_observe import until

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
THREADS = 3
CONNECTIONS = 9


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    store = Store(str(tmp_path / "cas"))
    before = door_threads()
    door = Door(store, [], threads=THREADS)
    address = door.start("127.0.0.1:0")
    # A thread gives itself its name.
    until(lambda: door_threads() - before == THREADS)
    yield address
    door.stop()
    door.close()
    store.close()
    until(lambda: door_threads() == before)


def door_threads() -> int:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("buildnet-door")


def channels(address: str) -> list[grpc.Channel]:
    # A pool of its own for each: channels with the same options share a connection.
    return [grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(CONNECTIONS)]


def digest(data: bytes) -> re.Digest:
    return re.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def call(channel: grpc.Channel, method: str, request: re.FindMissingBlobsRequest | re.BatchUpdateBlobsRequest) -> bytes:
    ask = channel.unary_unary(CAS + method)
    return bytes(ask(request.SerializeToString(), timeout=30))


def test_what_one_thread_was_given_all_have(listening: str) -> None:
    opened = channels(listening)
    meet = threading.Barrier(CONNECTIONS)

    def one(number: int) -> None:
        mine = [b"%d of %d" % (piece, number) for piece in range(100)]
        entries = [re.BatchUpdateBlobsRequest.Request(digest=digest(data), data=data) for data in mine]
        update = re.BatchUpdateBlobsRequest(requests=entries)
        answered = re.BatchUpdateBlobsResponse.FromString(call(opened[number], "BatchUpdateBlobs", update))
        assert all(response.status.code == 0 for response in answered.responses)
        meet.wait(30)
        # Long enough to be answered beside, where a processor is free, as four of each connection are under way.
        everything = [digest(b"%d of %d" % (piece, other)) for other in range(CONNECTIONS) for piece in range(100)]
        absent = digest(b"nobody's %d" % number)
        ask = re.FindMissingBlobsRequest(blob_digests=[*everything, absent])
        futures = [
            opened[number].unary_unary(CAS + "FindMissingBlobs").future(ask.SerializeToString(), timeout=30)
            for _ in range(4)
        ]
        for future in futures:
            missing = re.FindMissingBlobsResponse.FromString(future.result()).missing_blob_digests
            assert list(missing) == [absent]

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(one, range(CONNECTIONS)))
    for channel in opened:
        channel.close()
