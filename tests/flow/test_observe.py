"""What is seen from outside: counters that add up, a status that says what happened, a log that tells it, traces."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from buildnet.client import Client, connect
from buildnet.errors import NotFound
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.bytestream import bytestream_pb2 as bs
from buildnet.wire.actions import digest_message
from tests.conftest import House, Role
from tests.flow.test_door import RE, Server

AC = RE + "ActionCache/"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WAIT_S = 20
METADATA = "build.bazel.remote.execution.v2.requestmetadata-bin"


def get(role: Role, path: str, accept: str = "*/*", method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(role.ready["listen"], timeout=WAIT_S)
    try:
        connection.request(method, path, headers={"accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()
    finally:
        connection.close()


def samples(role: Role, accept: str = OPENMETRICS) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, the end of a bucket last."""
    status, kind, text = get(role, "/metrics", accept)
    assert status == 200
    assert kind.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain; version=0.0.4")
    parse = openmetrics if accept == OPENMETRICS else classic
    seen: dict[tuple[str, ...], float] = {}
    for sample in (sample for family in parse(text) for sample in family.samples):
        labels = sorted(sample.labels.items(), key=lambda label: label[0] == "le")
        # The two forms write 0.000016 and 1.6e-05.
        values = (str(float(value)) if name == "le" else value for name, value in labels)
        seen[sample.name, *values] = sample.value
    return seen


def until(condition: Callable[[], Any]) -> Any:
    """What the condition comes to be, when it does within the time."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not come true")


def look_up(server: Server, action: Digest, **fields: Any) -> re.ActionResult | None:
    request = re.GetActionResultRequest(action_digest=digest_message(action), **fields)
    try:
        return server.unary(AC + "GetActionResult", request, re.ActionResult)  # type: ignore[no-any-return]
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def some_calls(server: Server) -> Digest:
    """Two batches, three questions, four hits, five misses, two uploads, one read, one bad call."""
    first, second = server.put(b"first"), server.put(b"second")
    for _ in range(3):
        assert server.missing(first, second, Digest.of(b"never")) == [Digest.of(b"never").text]
    action = Digest.of(b"action")
    update = re.UpdateActionResultRequest(action_digest=digest_message(action))
    update.action_result.output_files.add(path="o", digest=digest_message(first))
    server.unary(AC + "UpdateActionResult", update, re.ActionResult)
    for _ in range(4):
        assert look_up(server, action)
    for number in range(5):
        assert look_up(server, Digest.of(b"no %d" % number)) is None
    for number in range(2):
        data = b"up %d" % number
        name = f"uploads/u/blobs/{Digest.of(data).text}"
        server.write([bs.WriteRequest(resource_name=name, data=data, finish_write=True)])
    assert server.read(f"blobs/{first.text}") == b"first"
    with pytest.raises(grpc.RpcError):
        server.read("nonsense")
    return first


def http_calls(role: Role, present: Digest) -> None:
    assert get(role, f"/cas/{present.hash}")[0] == 200
    assert get(role, f"/cas/{Digest.of(b'never').hash}")[0] == 404
    assert get(role, f"/ac/{Digest.of(b'never').hash}")[0] == 404
    assert get(role, f"/cas/{present.hash}", method="HEAD")[0] == 200


METHOD = "build.bazel.remote.execution.v2.ContentAddressableStorage/"
CACHE = "build.bazel.remote.execution.v2.ActionCache/"
STREAM = "google.bytestream.ByteStream/"
CALLS = {
    (METHOD + "BatchUpdateBlobs", "OK"): 2,
    (METHOD + "FindMissingBlobs", "OK"): 3,
    (CACHE + "UpdateActionResult", "OK"): 1,
    (CACHE + "GetActionResult", "OK"): 4,
    (CACHE + "GetActionResult", "NOT_FOUND"): 5,
    (STREAM + "Write", "OK"): 2,
    (STREAM + "Read", "OK"): 1,
    (STREAM + "Read", "INVALID_ARGUMENT"): 1,
    ("http GET cas", "200"): 1,
    ("http GET cas", "404"): 1,
    ("http GET ac", "404"): 1,
    ("http HEAD cas", "200"): 1,
}


def test_every_call_is_counted_exactly_once(house: House) -> None:
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    http_calls(role, some_calls(server))
    seen = samples(role)
    calls = {key[1:]: value for key, value in seen.items() if key[0] == "buildnet_calls_total"}
    assert calls == {**CALLS}
    for method in {method for method, _ in CALLS}:
        ended = sum(count for (name, _), count in CALLS.items() if name == method)
        assert seen["buildnet_call_duration_seconds_count", method] == ended
        assert seen["buildnet_call_duration_seconds_bucket", method, "inf"] == ended
        assert seen["buildnet_call_duration_seconds_sum", method] > 0
        assert seen["buildnet_calls_in_flight", method] == 0
    assert seen["buildnet_action_cache_lookups_total", "hit"] == 4
    assert seen["buildnet_action_cache_lookups_total", "miss"] == 6
    assert seen["buildnet_find_missing_digests_total", "found"] == 6
    assert seen["buildnet_find_missing_digests_total", "missing"] == 3
    question = re.FindMissingBlobsRequest(
        blob_digests=[digest_message(Digest.of(data)) for data in (b"first", b"second", b"never")]
    )
    assert seen["buildnet_received_bytes_total", METHOD + "FindMissingBlobs"] == 3 * (5 + question.ByteSize())
    read = bs.ReadResponse(data=b"first")
    assert seen["buildnet_sent_bytes_total", STREAM + "Read"] == 5 + read.ByteSize()
    assert seen["buildnet_sent_bytes_total", "http GET cas"] >= 5
    # The pages themselves are counted too, once they have been answered.
    assert samples(role)["buildnet_calls_total", "http GET page", "200"] == 1


def test_the_process_the_store_and_python_are_told(house: House) -> None:
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    server.put(b"x" * 1000)
    seen = until(lambda: (now := samples(role)).get(("buildnet_ledger_entries",)) and now)
    assert seen["buildnet_store_blobs_written_total",] == 1
    assert seen["buildnet_store_records",] == 1
    assert seen["buildnet_store_used_bytes",] > 1000
    assert seen["buildnet_store_disk_free_bytes",] > 0
    assert seen["process_resident_memory_bytes",] > 1 << 20
    assert seen["process_open_fds",] > 3
    assert seen["process_cpu_seconds_total",] > 0
    assert abs(seen["process_start_time_seconds",] - time.time()) < 60
    assert [key for key in seen if key[0] == "buildnet_build_info"]
    assert seen["buildnet_connections_open",] >= 2
    assert seen["buildnet_ledger_entries",] >= 1
    old = samples(role, "text/plain")
    assert set(old) >= {key for key in seen if not key[0].endswith("_created")}


def test_calls_that_python_answers_and_nobody_answers_are_counted_too(house: House) -> None:
    role = house.up("--no-worker")
    with connect(role.url) as client:
        assert client.actions() == []
        size = client.ledger_size()
        assert len(list(client.ledger_tail(0))) == size
        with pytest.raises(NotFound):
            client.cache_stat(Digest.of(b"never").text)
    server = Server(role.ready["listen"])
    with pytest.raises(grpc.RpcError):
        server.raw("/no.such.Service/Method", b"")
    with pytest.raises(grpc.RpcError):
        server.raw("/buildnet.v1.JobService/SubmitJob", b"")
    expected = {
        ("buildnet.v1.ActionService/ListActions", "OK"): 1,
        ("buildnet.v1.LedgerService/GetCheckpoint", "OK"): 1,
        ("buildnet.v1.LedgerService/Tail", "OK"): 1,
        ("buildnet.v1.JobService/SubmitJob", "UNIMPLEMENTED"): 1,
        ("buildnet.v1.CacheService/Stat", "NOT_FOUND"): 1,
        ("unknown", "UNIMPLEMENTED"): 1,
    }
    seen = samples(role)
    assert {key[1:]: value for key, value in seen.items() if key[0] == "buildnet_calls_total"} == expected
    assert seen["buildnet_sent_bytes_total", "buildnet.v1.LedgerService/Tail"] > 100
    assert seen["buildnet_received_bytes_total", "buildnet.v1.CacheService/Stat"] > 64


def test_every_metric_is_in_the_reference(house: House, tmp_path: Path) -> None:
    role = house.up("--no-worker", "--access-log", str(tmp_path / "log"))
    some_calls(Server(role.ready["listen"]))
    until(lambda: ("buildnet_ledger_entries",) in samples(role))
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    text = get(role, "/metrics", "text/plain")[2]
    names = {family.name + ("_total" if family.type == "counter" else "") for family in classic(text)}
    assert not sorted(name for name in names if f"`{name}`" not in page)
    said = json.loads(get(role, "/status")[2])
    fields = {*said, *said["methods"][0], *(f"{name}" for name in said["process"])}
    assert not sorted(name for name in fields if f"`{name}`" not in page)


async def test_an_execution_is_told_with_its_action(house: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    role = house.up("--slots", "1", "--access-log", str(log), "--access-log-sample", "1")
    async with Client(role.url, instance="team") as client:
        result = await client.run(["/bin/true"])
        assert (await client.run(["/bin/true"])).cached
    told = until(lambda: (seen := [line for line in lines(log) if "Execute" in line["method"]])[1:] and seen)
    assert [(line["instance"], line["digest"], line["code"]) for line in told] == [
        ("team", result.action.text, "OK")
    ] * 2
    seen = samples(role)
    assert seen["buildnet_action_cache_lookups_total", "hit"] == 1
    assert seen["buildnet_action_cache_lookups_total", "miss"] >= 1


def test_a_call_that_its_caller_gives_up_is_counted_as_that(house: House) -> None:
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    begun, leave = threading.Event(), threading.Event()

    def requests() -> Iterator[bs.WriteRequest]:
        yield bs.WriteRequest(resource_name=f"uploads/u/blobs/{Digest.of(b'abc').text}", data=b"a")
        begun.set()
        leave.wait(WAIT_S)

    write = server.channel.stream_unary(
        "/google.bytestream.ByteStream/Write", bs.WriteRequest.SerializeToString, bs.WriteResponse.FromString
    )
    call = write.future(requests())
    begun.wait(WAIT_S)
    until(lambda: samples(role).get(("buildnet_calls_in_flight", STREAM + "Write")) == 1)
    call.cancel()
    leave.set()
    until(lambda: samples(role).get(("buildnet_calls_total", STREAM + "Write", "CANCELLED")) == 1)
    seen = samples(role)
    assert seen["buildnet_calls_in_flight", STREAM + "Write"] == 0
    assert seen["buildnet_uploads_waiting",] == 1


def test_the_status_is_stable_json_and_a_page_for_people(house: House) -> None:
    role = house.up("--no-worker", "--durability", "power")
    server = Server(role.ready["listen"])
    some_calls(server)
    status, kind, text = get(role, "/status")
    assert (status, kind) == (200, "application/json")
    said = json.loads(text)
    assert said["listen"] == role.ready["listen"]
    assert said["pid"] == role.ready["pid"]
    assert said["durability"] == "power"
    assert said["action_cache"] == {"hits": 4, "misses": 5}
    assert said["find_missing"] == {"found": 6, "missing": 3}
    assert said["calls"]["total"] == sum(method["calls"] for method in said["methods"])
    methods = {method["method"]: method for method in said["methods"]}
    looked_up = methods[CACHE + "GetActionResult"]
    assert looked_up["codes"] == {"OK": 4, "NOT_FOUND": 5}
    assert looked_up["errors"] == 0
    assert methods[STREAM + "Read"]["errors"] == 1
    assert 0 < looked_up["p50_ms"] <= looked_up["p99_ms"]
    assert until(lambda: json.loads(get(role, "/status")[2])["calls"]["per_s"] > 0)
    assert set(said) >= {
        *("version", "started", "uptime_s", "execution", "connections", "uploads_waiting", "store"),
        *("statistics", "controller", "bridge", "process", "access_log"),
    }
    status, kind, page = get(role, "/status", "text/html,application/xhtml+xml")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "GetActionResult" in page
    assert "src=" not in page
    assert 'href="http' not in page
    assert get(role, "/status", method="POST")[0] == 405
    assert get(role, "/metrics", method="HEAD")[2] == ""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_access_log_tells_errors_slow_calls_and_nothing_of_a_token(house: House, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    role = house.up("--no-worker", "--access-log", str(log), "--slow-ms", "300", "--access-log-sample", "0")
    server = Server(role.ready["listen"])
    some_calls(server)
    told = re.RequestMetadata(tool_invocation_id="build-1", action_id="a-1", target_id='//x:y\n{"code":"\x1b[31m\u202e')
    told.tool_details.tool_name, told.tool_details.tool_version = "bazel", "8.0"
    metadata = [(METADATA, told.SerializeToString()), ("authorization", "Bearer s3cret-token")]
    slow = Digest.of(b"slow")

    def requests() -> Iterator[bs.WriteRequest]:
        yield bs.WriteRequest(resource_name=f"team/uploads/u/blobs/{slow.text}", data=b"sl")
        # The call itself is to take long.
        threading.Event().wait(0.4)
        yield bs.WriteRequest(write_offset=2, data=b"ow", finish_write=True)

    call = server.channel.stream_unary(
        "/google.bytestream.ByteStream/Write", bs.WriteRequest.SerializeToString, bs.WriteResponse.FromString
    )
    call(requests(), metadata=metadata, timeout=WAIT_S)
    error, write = until(lambda: (seen := lines(log)) and len(seen) >= 2 and seen)
    assert (error["why"], error["method"], error["code"]) == ("error", STREAM + "Read", "INVALID_ARGUMENT")
    assert (write["why"], write["method"], write["code"]) == ("slow", STREAM + "Write", "OK")
    assert write["duration_ms"] >= 300
    assert (write["instance"], write["digest"]) == ("team", slow.text)
    assert (write["tool"], write["invocation_id"], write["action_id"]) == ("bazel 8.0", "build-1", "a-1")
    assert write["target"].startswith("//x:y\ufffd")
    assert not set(write["target"]) & {"\n", "\x1b", "\u202e"}
    assert write["bytes_in"] > 4
    assert write["peer"].startswith("127.0.0.1:")
    assert "s3cret" not in log.read_text()
    assert write["time"].endswith("Z")


def test_a_sample_of_all_is_all_and_a_moved_log_is_followed(house: House, tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    role = house.up("--no-worker", "--access-log", str(log), "--access-log-sample", "1")
    server = Server(role.ready["listen"])
    server.put(b"before")
    until(lambda: lines(log))
    log.rename(old)
    os.kill(role.ready["pid"], signal.SIGHUP)
    until(log.exists)
    look_up(server, Digest.of(b"after"), instance_name="a/b")
    after = until(lambda: lines(log))
    assert (after[0]["instance"], after[0]["digest"]) == ("a/b", Digest.of(b"after").text)
    assert [line["method"] for line in lines(old)] == [METHOD + "BatchUpdateBlobs"]
    get(role, "/nothing/is/here")
    last = until(lambda: (seen := lines(log)) and len(seen) > 1 and seen[-1])
    assert (last["path"], last["code"], last["why"]) == ("/nothing/is/here", "404", "sample")
    seen = samples(role)
    assert seen["buildnet_access_log_dropped_total",] == 0
    assert seen["buildnet_access_log_lines_total",] >= 3


def test_a_hang_up_without_a_log_ends_nothing(house: House) -> None:
    role = house.up("--no-worker")
    os.kill(role.ready["pid"], signal.SIGHUP)
    assert Server(role.ready["listen"]).put(b"still here")


def test_a_log_that_cannot_be_written_refuses_the_start(house: House, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 125"):
        house.up("--no-worker", "--access-log", str(tmp_path / "no" / "such" / "directory"))


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans over OTLP as protobuf, and keeps them."""

    def __init__(self) -> None:
        self.requests: queue.Queue[trace_service_pb2.ExportTraceServiceRequest] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _Handler)

    def spans(self) -> Iterator[tuple[str, trace_pb2.Span]]:
        """Service and span, as they come."""
        while True:
            request = self.requests.get(timeout=WAIT_S)
            for resource in request.resource_spans:
                names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        yield names[0], span


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        assert isinstance(self.server, Collector)
        self.server.requests.put(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Nothing: the test says what failed."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("service", ["", "cache-7"])
def test_a_callers_trace_goes_on_in_our_spans(
    house: House, collector: Collector, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    # Only what a caller samples, so that nothing else comes.
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    if service:
        monkeypatch.setenv("OTEL_SERVICE_NAME", service)
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    server.put(b"not traced")
    action = Digest.of(b"traced")
    call = server.channel.unary_unary(
        AC + "GetActionResult", re.GetActionResultRequest.SerializeToString, re.ActionResult.FromString
    )
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with pytest.raises(grpc.RpcError):
        call(
            re.GetActionResultRequest(instance_name="team", action_digest=digest_message(action)),
            metadata=[("traceparent", f"00-{trace}-{parent}-01")],
        )
    name, span = next(collector.spans())
    assert name == (service or "buildnet")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert span.name == CACHE + "GetActionResult"
    attributes = {a.key: a.value.string_value for a in span.attributes}
    assert attributes["rpc.grpc.status"] == "NOT_FOUND"
    assert (attributes["buildnet.instance"], attributes["buildnet.digest"]) == ("team", action.text)
    assert span.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10**10
    assert until(lambda: samples(role)["buildnet_trace_sends_total", "taken"]) == 1


def test_a_collector_that_cannot_be_reached_so_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example")
    with pytest.raises(AssertionError, match="ended with 125"):
        house.up("--no-worker")


def test_a_collector_that_is_down_hinders_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    role = house.up("--no-worker")
    server = Server(role.ready["listen"])
    server.put(b"x")
    assert until(lambda: samples(role)["buildnet_trace_sends_total", "failed"])
    assert server.put(b"y")
    assert role.stop() == 0
