"""Clients that are slow, broken or hostile get a clear refusal, little memory, and a server that serves on."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import House, Role
from tests.http_calls import Http, answer_on, send

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield house.up("--no-worker")
    finally:
        house.close()


@pytest.fixture(scope="module")
def call(server: Role) -> Http:
    return Http(server.ready["listen"])


def fresh_path() -> str:
    return f"/ccache/{os.urandom(20).hex()}"


def resident_bytes(server: Role, what: str) -> int:
    """`VmRSS` now, or `VmHWM` at most so far."""
    status = Path(f"/proc/{server.ready['pid']}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /cas/x HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(200)), 431),
        (b"GET /cas/x HTTP/1.1\r\nh: " + b"x" * 200_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 414),
        (b"GET /cas/x HTTP/1.1\r\nbad header\r\n", 400),
        (b"GET /cas/\x01 HTTP/1.1\r\n", 400),
        (b"PUT /ccache/x HTTP/1.1\r\nContent-Length: -1\r\n", 400),
        (b"PUT /ccache/x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        (b"GET /ccache/x HTTP/1.1\r\nHost: y\r\n", 400),
        (b"\x00\x01\x02\x03 nonsense\r\n", 400),
    ],
)
def test_absurd_heads_are_refused(call: Http, head: bytes, status: int) -> None:
    with call.raw() as raw:
        # The server may have answered and closed before all of it was sent.
        with contextlib.suppress(ConnectionError):
            raw.sendall(head + b"Host: x\r\n\r\n")
        assert answer_on(raw).status == status
    assert call("GET", "/status").status == 200


def test_a_request_names_its_host(call: Http) -> None:
    with call.raw() as raw:
        raw.sendall(b"GET /ccache/x HTTP/1.1\r\n\r\n")
        answer = answer_on(raw)
        assert (answer.status, b"Host" in answer.body) == (400, True)


def test_a_body_of_which_nothing_comes_is_given_up(call: Http) -> None:
    path = fresh_path()
    with call.raw() as raw:
        raw.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegun".encode())
        raw.settimeout(60)
        answer = answer_on(raw)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert raw.recv(1) == b""
    assert call("GET", path).status == 404


def test_a_body_that_nobody_wants_is_read_a_little_and_no_more(call: Http) -> None:
    small = call.open()
    for _ in range(3):
        answer = send(small, "PUT", "/nowhere", bytes(1 * MIB))
        assert (answer.status, "connection" in answer.headers) == (404, False)
    small.close()
    sent = 0
    with call.raw() as raw, contextlib.suppress(ConnectionError):
        raw.sendall(f"PUT /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
        while sent < 1 << 30:
            raw.sendall(bytes(MIB))
            sent += MIB
    assert sent < 300 * MIB, "the server closed"


def test_requests_may_follow_each_other_without_waiting(call: Http) -> None:
    path = fresh_path()
    put = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nvalue".encode()
    get = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    head = f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    absent = b"GET /cas/" + b"0" * 64 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with call.raw() as raw:
        raw.sendall(put + get + head + get + absent)
        received = b""
        while data := raw.recv(1 << 16):
            received += data
    statuses = re.findall(rb"HTTP/1.1 (\d{3})", received)
    assert statuses == [b"201", b"200", b"200", b"200", b"404"]
    assert received.count(b"\r\n\r\nvalue") == 2


def test_old_clients_are_answered_and_let_go(call: Http) -> None:
    path = fresh_path()
    assert call("PUT", path, b"value").status == 201
    with call.raw() as raw:
        raw.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = answer_on(raw)
        assert (answer.status, answer.body) == (200, b"value")
        assert raw.recv(1) == b""


def test_http_2_serves_the_same(call: Http) -> None:
    path, value = fresh_path(), os.urandom(300_000)
    url = f"http://{call.host}:{call.port}{path}"
    curl = [
        "curl",
        "--silent",
        "--http2-prior-knowledge",
        "--max-time",
        "30",
        "--write-out",
        "%{http_version} %{http_code}",
    ]
    put = subprocess.run([*curl, "--upload-file", "-", url], input=value, capture_output=True)
    if put.returncode in {2, 4}:
        pytest.skip("curl is built without HTTP/2")
    assert put.stdout == b"2 201"
    assert subprocess.run([*curl, url], capture_output=True).stdout == value + b"2 200"
    # The end of one stream is not the end of the connection: no word about it is said.
    refused = subprocess.run([*curl, "--upload-file", "-", url + "/../x/%00"], input=value, capture_output=True)
    assert refused.stdout.endswith(b"2 400")


def test_bodies_do_not_fill_memory(server: Role, call: Http) -> None:
    """Twelve uploads of 64 MiB at once, twelve readers that take their time."""
    chunk = os.urandom(MIB)
    before = resident_bytes(server, "VmRSS")
    statuses: list[int] = []

    def put(path: str, size_is_known: bool) -> None:
        connection = call.open()
        headers = {"Content-Length": str(64 * MIB)} if size_is_known else {}
        connection.request("PUT", path, iter([chunk] * 64), headers, encode_chunked=not size_is_known)
        statuses.append(connection.getresponse().status)
        connection.close()

    paths = [fresh_path() for _ in range(12)]
    writers = [threading.Thread(target=put, args=(path, i % 2 == 0)) for i, path in enumerate(paths)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert statuses == [201] * 12
    readers = []
    for path in paths:
        reader = call.raw()
        reader.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert reader.recv(16).startswith(b"HTTP/1.1 200")
        readers.append(reader)
    # All of them have begun to be sent, and none is read: others are served meanwhile.
    assert call("GET", "/status").status == 200
    assert resident_bytes(server, "VmHWM") - before < 100 * MIB
    for reader in readers:
        reader.close()
    digest = hashlib.sha256(chunk * 64).hexdigest()
    assert hashlib.sha256(call("GET", paths[0]).body).hexdigest() == digest


def test_a_body_may_come_a_byte_at_a_time(server: Role, call: Http) -> None:
    path, value = fresh_path(), os.urandom(300_000)
    before = resident_bytes(server, "VmRSS")
    with call.raw() as raw:
        raw.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        raw.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in value))
        assert resident_bytes(server, "VmRSS") - before < 32 * MIB
        raw.sendall(b"0\r\n\r\n")
        assert answer_on(raw).status == 201
    assert call("GET", path).body == value


def test_many_unfinished_values_do_not_fill_memory(server: Role, call: Http) -> None:
    """Each is small enough to be kept in memory, all of them are not."""
    count, size = 300, 1_000_000
    value = os.urandom(size)
    before = resident_bytes(server, "VmRSS")
    writers: list[tuple[str, socket.socket]] = []
    try:
        for _ in range(count):
            path, raw = fresh_path(), call.raw()
            writers.append((path, raw))
            raw.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + value[:-1])
        assert call("PUT", fresh_path(), value).status == 201
        assert resident_bytes(server, "VmRSS") - before < 200 * MIB
        for path, raw in writers:
            raw.sendall(value[-1:])
            assert answer_on(raw).status == 201
            assert call("HEAD", path).headers["content-length"] == str(size)
    finally:
        for _, raw in writers:
            raw.close()
    assert call("GET", writers[-1][0]).body == value


def test_connections_that_wait_take_little(server: Role, call: Http) -> None:
    """Each has made a request, so that its buffers are there."""
    count = 1500
    connections: list[http.client.HTTPConnection] = []
    before = resident_bytes(server, "VmRSS")
    try:
        for _ in range(count):
            connection = call.open()
            connections.append(connection)
            assert send(connection, "GET", "/cas/" + "0" * 64).status == 404
        assert (resident_bytes(server, "VmRSS") - before) / count < 64 << 10
        assert call("GET", "/status").status == 200
    finally:
        for connection in connections:
            connection.close()


def test_connections_that_wait_too_long_are_closed(call: Http) -> None:
    connection = call.open()
    assert send(connection, "GET", "/status").status == 200
    assert isinstance(connection.sock, socket.socket)
    connection.sock.settimeout(60)
    assert connection.sock.recv(1) == b""
    connection.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_507_or_what_the_client_expects(small_disk: Path) -> None:
    house = House(small_disk)
    try:
        call = Http(house.up("--no-worker").ready["listen"])
        kept = os.urandom(5 * MIB)
        assert call("PUT", "/ccache/kept", kept).status == 201
        big = os.urandom(60 * MIB)
        name = hashlib.sha256(big).hexdigest()
        for path, status in [
            (f"/cas/{name}", 507),
            (f"/ac/{name}", 507),
            ("/ccache/big", 507),
            ("/sccache/big", 507),
            ("/v1/cache/big", 507),
            # The one refusal after which Gradle goes on reading; turbo would repeat any 5xx.
            ("/gradle/big", 413),
            ("/v8/artifacts/big", 403),
        ]:
            answer = call("PUT", path, big)
            assert (answer.status, answer.headers["buildnet-code"]) == (status, "storage_full"), path
            assert call("GET", path).status == 404
        assert b'"remote_caching_over_limit"' in call("PUT", "/v8/artifacts/big", big).body
        assert call("GET", "/ccache/kept").body == kept
        assert call("PUT", "/ccache/small", b"small").status == 201
    finally:
        house.close()
