"""Tiers that fail: killed, wrong, full, gone. A server behind which they stand goes on, and serves no wrong byte."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from tests.conformance import zstd
from tests.conformance.server import Server, fresh, refused
from tests.engines import KEY, PASSWORD, SECRET, Fronts, Seaweed, Valkey, until
from tests.http_calls import Http

MIB = 1 << 20
Code = grpc.StatusCode
EXHAUSTED = Code.RESOURCE_EXHAUSTED.value[0]
UNAVAILABLE = Code.UNAVAILABLE.value[0]


@pytest.fixture(scope="module")
def running_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    engine = Seaweed(tmp_path_factory.mktemp("bucket"))
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@pytest.fixture
def bucket(running_bucket: Seaweed) -> Seaweed:
    """One that runs, whatever the last test did to it."""
    if running_bucket.process is None:
        running_bucket.start()
    return running_bucket


@pytest.fixture
def hot(tmp_path: Path) -> Iterator[Valkey]:
    engine = Valkey(tmp_path / "hot")
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    fronts = Fronts(tmp_path)
    try:
        yield fronts
    finally:
        fronts.close()


def stored(server: Server, count: int) -> tuple[re.Digest, re.ActionResult, list[re.Digest]]:
    """A result that refers to so many blobs."""
    files = [server.put(fresh(3000)) for _ in range(count)]
    result = re.ActionResult(output_files=[re.OutputFile(path=f"{n}", digest=d) for n, d in enumerate(files)])
    action = server.action()
    server.store_result(action, result)
    return action, result, files


def test_what_was_acknowledged_while_the_bucket_was_down_is_there_once_it_is_back(
    bucket: Seaweed, fronts: Fronts
) -> None:
    front = fronts.start(bucket.table(timeout="1 s"))
    with front.client() as server:
        before = stored(server, 5)
        bucket.kill()
        during = stored(server, 20)
        # The server answers as ever meanwhile.
        assert server.missing(*during[2]) == []
        assert server.result(during[0]) == during[1]
        assert front.counts("bucket")["queue_entries"] > 0
        bucket.start()
        front.drained("bucket")
    other = fronts.start(bucket.table(write="never"))
    with other.client() as server:
        for action, result, files in (before, during):
            assert server.result(action) == result
            assert all(len(answer.data) == 3000 for answer in server.read_batch(*files))


def test_a_killed_server_goes_on_with_its_queue(bucket: Seaweed, fronts: Fronts) -> None:
    bucket.kill()
    front = fronts.start(bucket.table(timeout="1 s"))
    with front.client() as server:
        action, result, files = stored(server, 50)
    waiting = front.counts("bucket")["queue_entries"]
    assert waiting > 50
    front.kill()
    # What a power switch leaves of the last record.
    with (front.state / "tiers" / "bucket.queue").open("ab") as queue:
        queue.write(b"\x99\x00\x00")
    front.start()
    assert front.counts("bucket")["queue_entries"] == waiting
    bucket.start()
    front.drained("bucket")
    assert "3 bytes at the end of its queue's file were no records" in front.log
    other = fronts.start(bucket.table(write="never"))
    with other.client() as server:
        assert server.result(action) == result
        assert all(len(answer.data) == 3000 for answer in server.read_batch(*files))


def test_wrong_bytes_of_a_bucket_are_never_served_and_the_next_tier_is_asked(
    bucket: Seaweed, hot: Valkey, fronts: Fronts
) -> None:
    front = fronts.start(bucket.table(write="through"), hot.table(write="through"))
    blobs = [fresh(4000), fresh(200_000)]
    with front.client() as server:
        digests = [server.put(data) for data in blobs]
    for digest in digests:
        bucket.corrupt(digest)
    alone = fronts.start(bucket.table(write="never"))
    with alone.client() as server:
        for digest in digests:
            refused(lambda digest=digest: server.read(server.name(digest)), Code.NOT_FOUND)
    assert alone.counts("bucket")["damaged"] == 2
    assert "is something else" in alone.log
    both = fronts.start(bucket.table(), hot.table())
    with both.client() as server:
        for digest, data in zip(digests, blobs, strict=True):
            assert server.read(server.name(digest)) == data
    assert both.counts("bucket")["damaged"] == 2
    assert both.counts("hot")["hits"] == 2
    # And the bucket gets what it should have had.
    again = fronts.start(bucket.table(write="never"))
    with again.client() as server:
        until(lambda: both.counts("bucket")["blobs_written"] == 2, "the bucket is mended")
        for digest, data in zip(digests, blobs, strict=True):
            assert server.read(server.name(digest)) == data


def test_an_altered_entry_of_a_tier_is_no_hit(hot: Valkey, fronts: Fronts) -> None:
    front = fronts.start(hot.table(write="through"))
    with front.client() as server:
        action, result, _ = stored(server, 1)
        names = [name for name in hot.ask("KEYS", "buildnet:entry:*").split(b"\r\n") if name.startswith(b"buildnet")]
        assert len(names) == 1
        assert hot.ask("SETRANGE", names[0].decode(), "60", "X").startswith(b":")
        assert server.result(action) == result
    other = fronts.start(hot.table(write="never"))
    with other.client() as server:
        refused(lambda: server.result(action), Code.NOT_FOUND)
    assert other.counts("hot")["damaged"] == 1


@pytest.mark.parametrize("size", [3000, 900_000, 5 * MIB])
def test_what_rots_here_is_healed_from_a_tier(bucket: Seaweed, fronts: Fronts, size: int) -> None:
    front = fronts.start(bucket.table(write="through"))
    data = fresh(size)
    with front.client() as server:
        digest = server.put(data)
    front.stop()
    rot(front.state / "cas", data)
    front.start()
    with front.client() as server:
        assert server.read(server.name(digest)) == data
        assert server.read(server.name(digest), offset=size - 10) == data[-10:]
    assert front.counts("bucket")["hits"] == 1


@pytest.mark.parametrize("size", [3000, 900_000, 5 * MIB])
def test_what_rots_here_is_right_at_the_first_get_over_http(bucket: Seaweed, fronts: Fronts, size: int) -> None:
    front = fronts.start(bucket.table(write="through"))
    values = {f"/{cache}/{fresh(32).hex()}": fresh(size) for cache in ("ac", "ccache", "v1/cache", "v8/artifacts")}
    for data in (fresh(size), fresh(size)):
        values[f"/cas/{hashlib.sha256(data).hexdigest()}"] = data
    for path, data in values.items():
        assert front.http("PUT", path, data)[0] in (200, 201, 202)
    front.stop()
    for data in values.values():
        rot(front.state / "cas", data)
    front.start()
    call = Http(front.listen)
    *plain, last = values
    for path in plain:
        assert front.http("GET", path) == (200, values[path])
    answer = call("GET", last, headers={"Accept-Encoding": "zstd"})
    assert answer.status == 200
    is_zstd = answer.headers.get("content-encoding") == "zstd"
    assert (zstd.decompress(answer.body) if is_zstd else answer.body) == values[last]
    # What was brought is kept.
    assert call("GET", last, headers={"Range": f"bytes={size - 10}-"}).body == values[last][-10:]


def rot(store: Path, data: bytes) -> None:
    """Flip a byte in the middle of where `data` stands on the disk."""
    needle = data[len(data) // 2 : len(data) // 2 + 64]
    for path in sorted(store.rglob("*")):
        if path.is_file() and (at := (content := bytearray(path.read_bytes())).find(needle)) >= 0:
            content[at] ^= 1
            path.chmod(0o600)
            path.write_bytes(content)
            return
    raise AssertionError("the blob is nowhere on the disk")


def test_a_write_through_a_tier_that_is_down_is_not_acknowledged_and_reads_go_on(
    bucket: Seaweed, fronts: Fronts
) -> None:
    front = fronts.start(bucket.table(write="through", timeout="500 ms"))
    with front.client() as server:
        data = fresh(100)
        there = server.put(data)
        bucket.kill()
        late = fresh(100)
        digest = server.digest(late)
        assert server.update((digest, late)) == {f"{digest.hash}/100": UNAVAILABLE}
        upload = server.upload_name(digest)
        refused(lambda: server.write(iter([write_of(upload, late)])), Code.UNAVAILABLE)
        assert server.read(server.name(there)) == data
        bucket.start()
        until(lambda: server.update((digest, late)) == {f"{digest.hash}/100": 0}, "it is taken")
        assert bucket.holds(digest)


def write_of(name: str, data: bytes) -> Any:
    from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs

    return bs.WriteRequest(resource_name=name, data=data, finish_write=True)


def test_a_full_queue_makes_writers_wait_and_then_says_so(hot: Valkey, fronts: Fronts) -> None:
    hot.kill()
    front = fronts.start(hot.table(queue_entries_max=3, timeout="200 ms"))
    with front.client() as server:
        for _ in range(3):
            server.put(fresh())
        data = fresh()
        digest = server.digest(data)
        began = time.monotonic()
        call = Http(front.listen)
        values = (f"/cas/{hashlib.sha256(data).hexdigest()}", "/gradle/one", "/v8/artifacts/ab12")
        with ThreadPoolExecutor() as threads:
            answers = [threads.submit(call, "PUT", path, data) for path in values]
            assert set(server.update((digest, data)).values()) == {EXHAUSTED}
            # It passes, unlike a store that is full.
            assert {(a.result().status, a.result().headers["buildnet-code"]) for a in answers} == {(503, "overloaded")}
        assert time.monotonic() - began < 9
        # It is here all the same, and once there is room it goes.
        assert server.missing(digest) == []
        hot.start()
        front.drained("hot")
        assert set(server.update((digest, data)).values()) == {0}


def test_a_dead_tier_is_left_alone_and_asked_again_later(hot: Valkey, fronts: Fronts) -> None:
    front = fronts.start(hot.table(write="never", timeout="200 ms"))
    hot.kill()
    with front.client() as server:
        for _ in range(10):
            refused(lambda: server.read(server.name(server.digest(fresh()))), Code.NOT_FOUND)
        assert front.counts("hot")["left_alone"] == 1
        began = time.monotonic()
        for _ in range(50):
            assert len(server.missing(server.digest(fresh()))) == 1
        assert time.monotonic() - began < 5
        hot.start()

        def closed() -> bool:
            server.missing(server.digest(fresh()))
            return bool(front.counts("hot")["left_alone"] == 0)

        until(closed, "it is asked again")
    until(lambda: "answers again" in front.log, "it is reported")


def test_what_a_tier_could_not_be_told_to_forget_is_not_told_to_be_gone(hot: Valkey, fronts: Fronts) -> None:
    front = fronts.start(hot.table(write="through", timeout="500 ms"))
    path = f"/gradle/{fresh(16).hex()}"
    assert front.http("PUT", path, b"value")[0] == 201
    hot.kill()
    status, said = front.http("DELETE", path)
    assert (status, b"send it again" in said) == (503, True)
    hot.start()
    # By now it is left alone or asked again: once it answers, it forgets.
    until(lambda: front.http("DELETE", path)[0] in (204, 404), "it is removed there too")
    assert front.http("GET", path)[0] == 404


def test_a_required_tier_that_is_down_refuses_the_start_and_another_is_reported(hot: Valkey, fronts: Fronts) -> None:
    hot.kill()
    refusing = fronts.start(hot.table(required=True, timeout="500 ms"))
    assert refusing.ready["error"] == "node_down"
    assert "required = false" in refusing.ready["message"]
    front = fronts.start(hot.table(timeout="500 ms"))
    assert "url" in front.ready
    until(lambda: "does not answer at the start" in front.log, "it is reported")


def test_no_credential_reaches_a_log_or_a_status(bucket: Seaweed, hot: Valkey, fronts: Fronts) -> None:
    front = fronts.start(
        bucket.table(secret_access_key_env="TEST_PASSWORD", timeout="2 s"),
        hot.table(password_env="TEST_S3_SECRET", timeout="2 s"),
    )
    with front.client() as server:
        refused(lambda: server.read(server.name(server.digest(fresh()))), Code.NOT_FOUND)
    until(lambda: front.log.count("does not answer at the start") == 2, "both are reported")
    told = front.log + front.http("GET", "/status")[1].decode()
    for secret in (KEY, SECRET, PASSWORD):
        assert secret not in told


def test_small_blobs_are_hot_and_large_ones_are_not(bucket: Seaweed, hot: Valkey, fronts: Fronts) -> None:
    tables = (hot.table(blob_size_max="10 KiB", ttl="1h"), bucket.table())
    front = fronts.start(*tables)
    small, large = fresh(5000), fresh(50_000)
    with front.client() as server:
        digests = [server.put(small), server.put(large)]
    front.drained("hot")
    front.drained("bucket")
    hot.kill()
    hot.start()
    other = fronts.start(*tables)
    with other.client() as server:
        assert [server.read(server.name(digest)) for digest in digests] == [small, large]
    # What was read from behind is hot again, if it is small.
    until(lambda: other.counts("hot")["blobs_written"] == 1, "the small one is hot")
    name = f"buildnet:cas:sha256:{digests[0].hash}"
    until(lambda: hot.ask("STRLEN", name) == b":5000\r\n", "it is there")
    assert int(hot.ask("TTL", name).strip(b":\r\n")) > 3000
    assert hot.ask("DBSIZE") == b":1\r\n"
