"""Bazel's `/cas` and `/ac`: content is what its name says, a hit is complete, and HTTP and gRPC share one cache."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Iterator
from typing import Any

import blake3
import grpc
import pytest
import zstandard

from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from tests.conftest import House
from tests.http_calls import Http, send

AC = "/build.bazel.remote.execution.v2.ActionCache/"
ZSTD = {"Content-Encoding": "zstd"}
WANTS_ZSTD = {"Accept-Encoding": "gzip, zstd"}


@pytest.fixture(scope="module")
def listen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up("--no-worker").ready["listen"]
    finally:
        house.close()


@pytest.fixture(scope="module")
def call(listen: str) -> Http:
    return Http(listen)


@pytest.fixture(scope="module")
def channel(listen: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(listen) as channel:
        yield channel


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stored(call: Http, data: bytes) -> str:
    path = f"/cas/{name_of(data)}"
    assert call("PUT", path, data).status == 200
    return path


def squeezable(size: int) -> bytes:
    return (os.urandom(16).hex() * (size // 32 + 1)).encode()[:size]


SIZES = {"empty": 0, "small": 100, "packed": 100_000, "large": 3_000_000}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_blob_is_what_was_put(call: Http, size: int, chunked: bool) -> None:
    data = os.urandom(size)
    path = f"/cas/{name_of(data)}"
    if size:
        assert call("GET", path).status == 404
        assert call("HEAD", path).status == 404
    connection = call.open()
    body: Any = iter([data[:1000], data[1000:]]) if chunked else data
    connection.request("PUT", path, body, encode_chunked=chunked)
    assert connection.getresponse().status == 200
    connection.close()
    answer = call("GET", path)
    assert (answer.status, answer.body) == (200, data)
    head = call("HEAD", f"/any/instance{path}")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(size))
    assert head.headers["etag"] == answer.headers["etag"] == f'"{name_of(data)}"'
    assert call("DELETE", path).status == 405


@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize("function", ["sha256", "sha1", "md5", "sha384", "sha512", "blake3"])
def test_each_digest_function_names_by_its_length_or_by_its_name(call: Http, function: str, size: int) -> None:
    data = os.urandom(size)
    hexed = blake3.blake3(data).hexdigest() if function == "blake3" else hashlib.new(function, data).hexdigest()
    spelled = f"/cas/{function}/{hexed}"
    path = spelled if function == "blake3" else f"/cas/{hexed}"
    assert call("PUT", path, data[::-1]).status == 400
    assert call("PUT", path, data).status == 200
    assert call("GET", spelled).body == data
    assert call("PUT", f"/ac/{function}/{hexed}", b"value").status == 200
    assert call("GET", path.replace("cas", "ac")).body == b"value"


@pytest.mark.parametrize("size", [100, 100_000, 3_000_000])
def test_bytes_of_another_digest_are_refused_and_leave_nothing(call: Http, size: int) -> None:
    data = os.urandom(size)
    path = f"/cas/{name_of(data)}"
    for wrong in (data[:-1], data + b"x", bytes(size)):
        answer = call("PUT", path, wrong)
        assert (answer.status, answer.headers["buildnet-code"]) == (400, "digest_mismatch")
        assert call("GET", path).status == 404
    assert call("PUT", path, zstandard.compress(data[1:]), ZSTD).status == 400
    assert call("PUT", path, zstandard.compress(data)[:-3], ZSTD).status == 400
    assert call("GET", path).status == 404


def test_a_known_blob_is_not_taken_for_one_of_another_size(call: Http) -> None:
    data = os.urandom(1000)
    path = stored(call, data)
    assert call("PUT", path, data).status == 200
    assert call("PUT", path, data + b"x").status == 400
    assert call("GET", path).body == data


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_other_bytes_under_the_name_of_a_known_blob_are_refused(call: Http, size: int) -> None:
    data = os.urandom(size)
    path = stored(call, data)
    for wrong, headers in ((bytes(size), {}), (data[:-1], {}), (zstandard.compress(bytes(size)), ZSTD)):
        answer = call("PUT", path, wrong, headers)
        assert (answer.status, answer.headers["buildnet-code"]) == (400, "digest_mismatch")
    assert call("PUT", path, zstandard.compress(data), ZSTD).status == 200
    assert call("GET", path).body == data


@pytest.mark.parametrize("size", [600, 100_000, 3_000_000])
@pytest.mark.parametrize("declared", [False, True])
def test_a_blob_travels_as_zstd_both_ways(call: Http, size: int, declared: bool) -> None:
    data = squeezable(size)
    path = f"/cas/{name_of(data)}"
    frames = zstandard.compress(data)
    said = {"X-Digest-SizeBytes": str(size)} if declared else {}
    assert call("PUT", path, frames, {**ZSTD, **said}).status == 200
    assert call("GET", path).body == data
    packed = call("GET", path, headers=WANTS_ZSTD)
    assert packed.headers["content-encoding"] == "zstd"
    assert packed.headers["vary"].lower() == "accept-encoding"
    assert len(packed.body) < size
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed.body) == data
    if size <= 128 << 10:
        assert packed.body == frames, "small frames are stored as they came"
    # A strong tag is of the bytes that were sent.
    plain = call("GET", path)
    assert packed.headers["etag"] != plain.headers["etag"]
    again = call("GET", path, headers={**WANTS_ZSTD, "If-None-Match": packed.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_what_does_not_shrink_is_sent_as_it_is(call: Http) -> None:
    data = os.urandom(5000)
    answer = call("GET", stored(call, data), headers=WANTS_ZSTD)
    assert "content-encoding" not in answer.headers
    assert answer.body == data


def test_a_bomb_stops_at_the_declared_size_or_the_limit(call: Http) -> None:
    bomb = zstandard.compress(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    path = f"/cas/{name_of(b'never')}"
    assert call("PUT", path, bomb, {**ZSTD, "X-Digest-SizeBytes": "5"}).status == 400
    # An entry is at most 64 MiB, unpacked.
    entry = call("PUT", f"/ac/{name_of(os.urandom(9))}", bomb, ZSTD)
    assert (entry.status, entry.headers["buildnet-code"]) == (413, "too_large")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd, gzip"])
def test_other_codings_are_refused_by_name(call: Http, coding: str) -> None:
    answer = call("PUT", f"/cas/{name_of(b'x')}", b"x", {"Content-Encoding": coding})
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "zstd")


@pytest.mark.parametrize("size", [1000, 2_000_000])
def test_parts_of_a_blob(call: Http, size: int) -> None:
    data = os.urandom(size)
    path = stored(call, data)
    for asked, first, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        ("bytes=5-99999999999999999999", 5, size),
    ]:
        answer = call("GET", path, headers={"Range": asked, **WANTS_ZSTD})
        assert (answer.status, answer.body) == (206, data[first:end]), asked
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - first)
    for asked in ("bytes=0-1,3-4", "bytes=9-1", "lines=1-2", "bytes=x-"):
        answer = call("GET", path, headers={"Range": asked})
        assert (answer.status, answer.body) == (200, data), asked
    for asked in (f"bytes={size}-", "bytes=-0"):
        answer = call("GET", path, headers={"Range": asked})
        assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{size}")
    tag = f'"{name_of(data)}"'
    for condition, status in [(tag, 206), ('"other"', 200), ("Sat, 29 Oct 1994 19:43:31 GMT", 200)]:
        assert call("GET", path, headers={"Range": "bytes=1-2", "If-Range": condition}).status == status
    assert call("HEAD", path, headers={"Range": "bytes=1-2"}).headers["content-length"] == str(size)


def test_a_client_that_has_it_is_sent_nothing(call: Http) -> None:
    data = os.urandom(1000)
    path = stored(call, data)
    tag = f'"{name_of(data)}"'
    for condition in (tag, f'"a", W/{tag}', "*"):
        for method in ("GET", "HEAD"):
            answer = call(method, path, headers={"If-None-Match": condition})
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    assert call("GET", path, headers={"If-None-Match": '"other"'}).status == 200
    assert call("GET", path, headers={"If-Match": '"other"'}).status == 412


# The action cache.


def result_over(*blobs: bytes) -> re.ActionResult:
    result = re.ActionResult(exit_code=0)
    for i, blob in enumerate(blobs):
        result.output_files.add(path=f"o{i}", digest=digest_message(Digest.of(blob)))
    return result


def get_result(channel: grpc.Channel, action: Digest, instance: str = "") -> re.ActionResult:
    request = re.GetActionResultRequest(instance_name=instance, action_digest=digest_message(action))
    method = channel.unary_unary(
        AC + "GetActionResult", re.GetActionResultRequest.SerializeToString, re.ActionResult.FromString
    )
    return method(request, timeout=20)


def test_a_result_put_by_grpc_is_a_hit_by_http_once_it_is_complete(call: Http, channel: grpc.Channel) -> None:
    output, action = os.urandom(50), Digest.of(os.urandom(9))
    update = re.UpdateActionResultRequest(
        instance_name="a/b", action_digest=digest_message(action), action_result=result_over(output)
    )
    method = channel.unary_unary(
        AC + "UpdateActionResult", re.UpdateActionResultRequest.SerializeToString, re.ActionResult.FromString
    )
    method(update, timeout=20)
    path = f"/a/b/ac/{action.hash}"
    assert call("GET", path).status == 404
    assert call("HEAD", path).status == 404
    stored(call, output)
    answer = call("GET", path)
    assert answer.status == 200
    assert re.ActionResult.FromString(answer.body) == update.action_result
    assert call("GET", f"/ac/{action.hash}").status == 404, "another instance is another cache"


def test_a_result_put_by_http_is_a_hit_by_grpc_once_it_is_complete(call: Http, channel: grpc.Channel) -> None:
    output, action = os.urandom(50), Digest.of(os.urandom(9))
    result = result_over(output)
    assert call("PUT", f"/a/b/ac/{action.hash}", result.SerializeToString()).status == 200
    with pytest.raises(grpc.RpcError) as caught:
        get_result(channel, action, "a/b")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert call("GET", f"/a/b/ac/{action.hash}").status == 404
    stored(call, output)
    assert get_result(channel, action, "a/b") == result
    assert call("GET", f"/a/b/ac/{action.hash}").body == result.SerializeToString()


@pytest.mark.parametrize("kind", ["tree", "root", "stdout", "future"])
def test_completeness_reaches_everything_over_http(call: Http, kind: str) -> None:
    leaf = os.urandom(40)
    directory = re.Directory()
    directory.files.add(name="f", digest=digest_message(Digest.of(leaf)))
    result = re.ActionResult()
    between = directory.SerializeToString()
    match kind:
        case "tree":
            between = re.Tree(root=directory).SerializeToString()
            result.output_directories.add(path="d", tree_digest=digest_message(Digest.of(between)))
        case "root":
            result.output_directories.add(path="d", root_directory_digest=digest_message(Digest.of(between)))
        case _:
            result.stdout_digest.CopyFrom(digest_message(Digest.of(leaf)))
    value = result.SerializeToString()
    if kind == "future":
        # Field 1000, of a specification that is not written yet, does not make it any less of a result.
        value += b"\xc2\x3e\x01x"
    path = f"/ac/{name_of(os.urandom(9))}"
    assert call("PUT", path, value).status == 200
    assert call("GET", path).status == 404
    stored(call, between)
    assert call("GET", path).status == 404
    stored(call, leaf)
    assert call("GET", path).body == value


VALUES = {"empty": b"", "small": b"not a result", "large": os.urandom(3_000_000)}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_that_is_no_result_comes_back_untouched(call: Http, value: bytes) -> None:
    path = f"/ac/{name_of(os.urandom(9))}"
    assert call("PUT", path, value).status == 200
    answer = call("GET", path)
    assert (answer.status, answer.body) == (200, value)
    assert call("GET", path, headers={"If-None-Match": answer.headers["etag"]}).status == 304
    head = call("HEAD", path)
    assert (head.status, head.headers["content-length"]) == (200, str(len(value)))
    assert call("GET", f"/x{path}").status == 404
    assert call("DELETE", path).status == 204
    assert call("DELETE", path).status == 404
    assert call("GET", path).status == 404


def test_an_entry_travels_as_zstd_both_ways(call: Http) -> None:
    path, value = f"/ac/{name_of(os.urandom(9))}", squeezable(50_000)
    assert call("PUT", path, zstandard.compress(value), ZSTD).status == 200
    assert call("GET", path).body == value
    packed = call("GET", path, headers=WANTS_ZSTD)
    assert packed.headers["content-encoding"] == "zstd"
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed.body) == value
    assert call("GET", path, headers={**WANTS_ZSTD, "If-None-Match": packed.headers["etag"]}).status == 304


def test_a_large_result_is_complete_or_no_hit(call: Http) -> None:
    outputs = [os.urandom(8) for _ in range(20)]
    result = result_over(*outputs)
    # Past what is kept in a segment.
    result.stdout_raw = os.urandom(2 << 20)
    path = f"/ac/{name_of(os.urandom(9))}"
    assert call("PUT", path, result.SerializeToString()).status == 200
    for output in outputs[1:]:
        stored(call, output)
    assert call("GET", path).status == 404
    stored(call, outputs[0])
    assert call("GET", path).body == result.SerializeToString()


def test_an_entry_over_the_limit_is_refused_before_it_is_read(call: Http) -> None:
    path = f"/ac/{name_of(os.urandom(9))}"
    with call.raw() as raw:
        raw.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 67108865\r\n\r\n".encode()
        )
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.status == 413
    # One that does not say its size is refused where it passes the limit.
    connection = call.open()
    connection.request("PUT", path, iter([bytes(1 << 20)] * 65), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert call("GET", path).status == 404


def test_a_connection_serves_on_after_every_refusal(call: Http) -> None:
    connection = call.open()
    data = os.urandom(100_000)
    for method, path, body, status in [
        ("PUT", f"/cas/{name_of(data)}", data[::-1], 400),
        ("PUT", "/cas/nonsense", data, 400),
        ("PUT", "/nowhere", data, 404),
        ("POST", f"/cas/{name_of(data)}", data, 405),
        ("PUT", f"/cas/{name_of(data)}", data, 200),
        ("PUT", f"/cas/{name_of(data)}", data, 200),
        ("GET", f"/cas/{name_of(data)}", None, 200),
        ("GET", f"/cas/{name_of(data[1:])}", None, 404),
    ]:
        answer = send(connection, method, path, body)
        assert answer.status == status, (method, path)
        assert "connection" not in answer.headers
    connection.close()
