"""HTTP requests that are for no cache, over real sockets: what reaches the application, what does not, how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import House, Role
from tests.engines import until
from tests.flow.guarded import Guarded
from tests.http_calls import Http, answer_on

JSON = {"content-type": "application/json"}
WAIT_S = 20


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


class Events:
    """A reader of server-sent events on a socket of its own."""

    def __init__(self, call: Http, last_id: str = "", headers: str = "") -> None:
        self.socket = call.raw()
        said = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
        self.socket.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n{said}{headers}\r\n".encode())
        self._stream = self.socket.makefile("rb")
        self.head = self._until(b"\r\n\r\n")
        self._rest = b""

    def _until(self, end: bytes) -> bytes:
        read = b""
        while not read.endswith(end):
            byte = self._stream.read(1)
            assert byte, f"ended after {read!r}"
            read += byte
        return read

    def chunk(self) -> bytes:
        """The next chunk; empty at the end of the answer."""
        size = int(self._until(b"\r\n"), 16)
        data = self._stream.read(size)
        self._stream.read(2)
        return data

    def next(self, name: str) -> tuple[str, Any]:
        """The id and data of the next event of that name."""
        while True:
            while b"\n\n" not in self._rest:
                data = self.chunk()
                assert data, "the stream ended"
                self._rest += data
            block, _, self._rest = self._rest.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines())
            if fields.get("event") == name:
                return fields.get("id", ""), json.loads(fields["data"])

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_calls(call: Http) -> int:
    return int(json.loads(call("GET", "/status").body)["bridge"]["calls_open"])


def test_the_page_is_served_with_its_rules(call: Http) -> None:
    page = call("GET", "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["cache-control"] == "no-cache"
    assert call("GET", "/", headers={"if-none-match": page.headers["etag"]}).status == 304
    head = call("HEAD", "/")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", page.headers["content-length"])
    for asset in re.findall(rb'(?:src|href)="(/assets/[^"]+)"', page.body):
        found = call("GET", asset.decode())
        assert (found.status, "immutable" in found.headers["cache-control"]) == (200, True)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_an_unknown_path_is_told_what_is_here(call: Http, method: str) -> None:
    answer = call(method, "/nowhere/at/all?x=1")
    assert (answer.status, answer.headers["buildnet-code"]) == (404, "not_found")
    assert answer.headers["content-type"].startswith("text/plain")
    assert method == "HEAD" or b"/cas/HASH" in answer.body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/api/v1/nodes", 404),
        ("DELETE", "/", 404),
        ("PROPFIND", "/", 207),
        ("MKCOL", "/api/", 201),
        ("OPTIONS", "/", 200),
        ("POST", "/", 405),
        ("GET", "/api/v1/ledger/verify", 405),
        ("GET", "/api/cas/xyz", 400),
        ("GET", "/api/v1/cache/absent", 404),
        ("GET", "/assets/../api", 400),
        ("GET", "/assets/%2e%2e/api", 400),
        ("GET", "/api%2fv1/nodes", 400),
        ("GET", "//api///v1/%6eodes/", 200),
    ],
)
def test_caches_come_first_and_one_path_has_one_meaning(call: Http, method: str, path: str, status: int) -> None:
    assert call(method, path).status == status


def test_values_of_a_cache_below_any_name_stay_values(call: Http) -> None:
    for path in ("/api/v1/ccache/x", "/assets/gradle/y"):
        assert call("PUT", path, b"value").status == 201
        assert call("GET", path).body == b"value"


def test_http2_reaches_the_application_too(call: Http) -> None:
    url = f"http://{call.host}:{call.port}"
    for path, expected in [("/api/v1/ledger/head", b"verifier_key"), ("/", b"<html")]:
        asked = ["curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", url + path]
        assert expected in subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout
    asked = ["curl", "--silent", "--http2-prior-knowledge", "--head", f"{url}/"]
    assert b"HTTP/2 200" in subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout


def test_bodies_have_their_limit(call: Http) -> None:
    for size, status in [(1 << 20, 400), ((1 << 20) + 1, 413)]:
        assert call("POST", "/api/v1/ledger/verify", bytes(size), JSON).status == status
    assert call("POST", "/api/v1/ledger/verify", b"{}", {"content-type": "text/plain"}).status == 415
    with call.raw() as raw:
        raw.sendall(b"POST /api/v1/ledger/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n")
        assert answer_on(raw).status == 413
    for path in ("ledger/entries?count=201", "ledger/entries?from=-1", "actions?recent=0", "ledger/entries/x"):
        answer = call("GET", f"/api/v1/{path}")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "invalid_request"), path
    assert call("GET", "/api/v1/ledger/entries/999999").status == 404
    assert call("GET", "/api/v1/actions/none").status == 404


def test_what_the_page_shows_is_proved(call: Http) -> None:
    head = json.loads(call("GET", "/api/v1/ledger/head").body)
    entries = json.loads(call("GET", "/api/v1/ledger/entries?from=0&count=5").body)["entries"]
    assert entries[0]["kind"] == "controller.started"
    assert call("PUT", f"/ac/{hashlib.sha256(os.urandom(9)).hexdigest()}", b"value").status in (200, 201)
    leaves = [[entry["index"], entry["leaf"]] for entry in entries]

    def proved(known: Any, shown: Any) -> Any:
        claim = json.dumps({"known": known, "leaves": shown}).encode()
        return json.loads(call("POST", "/api/v1/ledger/verify", claim, JSON).body)

    known = {"size": head["size"], "root": head["root"]}
    good = proved(known, leaves)
    assert (good["holds"], good["consistency"]["holds"], good["inclusion"]["count"]) == (True, True, len(leaves))
    assert good["head"]["size"] > head["size"]
    wrong = "00" * 32
    bad = proved({**known, "root": wrong}, [[0, wrong], *leaves[1:]])
    assert (bad["holds"], bad["consistency"]["holds"], bad["inclusion"]["failed"]) == (False, False, [0])
    assert proved({"size": 1 << 40, "root": wrong}, [[1 << 40, wrong]])["holds"] is False
    assert proved(None, [])["consistency"] is None


def test_what_a_node_offers_is_listed(tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        call = Http(house.up("--slots", "1").ready["listen"])
        with Events(call) as events:
            while not (nodes := events.next("nodes")[1]["nodes"]) or not nodes[0]["resources"]:
                continue
        at = f"/api/v1/nodes/{nodes[0]['node']}/resources"
        whole = json.loads(call("GET", f"{at}?count=1000").body)
        assert sum(many for _, many in whole["kinds"]) == nodes[0]["resources"]
        shells = json.loads(call("GET", f"{at}?kind=tool&name=sh&count=1000").body)
        assert "sh" in [tool["name"] for tool in shells["resources"]]
        assert shells["matching"] < whole["matching"]
        assert {tool["kind"] for tool in shells["resources"]} == {"tool"}
        for wrong, status in (("kind=nonsense", 400), ("count=1001", 400), (f"name={'x' * 300}", 400)):
            answer = call("GET", f"{at}?{wrong}")
            assert (answer.status, wrong.partition("=")[0] in answer.body.decode()) == (status, True)
        assert call("GET", "/api/v1/nodes/nobody/resources").status == 404
    finally:
        house.close()


def test_a_stream_goes_on_where_it_broke_off(call: Http) -> None:
    with Events(call) as events:
        assert b" 200 " in events.head
        assert b"text/event-stream" in events.head
        _, hello = events.next("hello")
        assert hello["limited"] is False
        assert events.next("nodes")[1] == {"nodes": [], "absent": [], "behind": 0}
        assert events.next("actions")[1]["running"] == []
        first_id, first = events.next("ledger")
        assert first["entries"][-1]["index"] + 1 == first["head"]["size"] == int(first_id)
        assert call("PUT", f"/ac/{hashlib.sha256(os.urandom(9)).hexdigest()}", b"value").status in (200, 201)
        live_id, live = events.next("ledger")
        assert [entry["kind"] for entry in live["entries"]] == ["results.updated"]
    with Events(call, first_id) as events:
        again_id, again = events.next("ledger")
        assert (again_id, again["entries"], again["skipped"]) == (live_id, live["entries"], 0)
    with Events(call, live_id) as events:
        assert events.next("ledger")[1]["entries"] == []
    with Events(call, "99999999") as events:
        assert events.next("reset")[1]["known"] == 99999999
        assert events.next("ledger")[1]["entries"]
    for odd in ("x", "-1", "9" * 40):
        with Events(call, odd) as events:
            assert events.next("ledger")[1]["entries"]


def test_who_leaves_is_forgotten(call: Http) -> None:
    until(lambda: open_calls(call) == 0, "those of other tests end", WAIT_S)
    streams = [Events(call) for _ in range(20)]
    until(lambda: open_calls(call) == 20, "20 are open", WAIT_S)
    for stream in streams:
        stream.close()
    until(lambda: open_calls(call) == 0, "none is open", WAIT_S)
    assert call("HEAD", "/api/v1/events").status == 200
    until(lambda: open_calls(call) == 0, "none is open", WAIT_S)


def resident_bytes(server: Role) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.ready['pid']}/status").read_text())
    assert found
    return int(found[1]) << 10


def test_a_slow_reader_costs_a_window_and_misses_the_steps_between(server: Role, call: Http) -> None:
    with contextlib.ExitStack() as held:
        slow = []
        for _ in range(10):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(WAIT_S)
            raw.connect((call.host, call.port))
            held.enter_context(raw)
            raw.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            slow.append(raw)
        keeps_up = held.enter_context(Events(call))
        keeps_up.next("ledger")
        before = resident_bytes(server)
        connection = call.open()
        for _ in range(1500):
            connection.request("PUT", f"/ac/{hashlib.sha256(os.urandom(9)).hexdigest()}", b"value")
            connection.getresponse().read()
        connection.close()
        size = json.loads(call("GET", "/api/v1/ledger/head").body)["size"]
        while int(keeps_up.next("ledger")[0]) < size:
            pass
        assert resident_bytes(server) - before < 64 << 20


def test_a_server_that_stops_ends_its_streams_at_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        role = house.up("--no-worker")
        events = Events(Http(role.ready["listen"]))
        events.next("ledger")
        began_s = time.monotonic()
        role.process.send_signal(signal.SIGTERM)
        while events.chunk():
            pass
        # Well within the grace that calls in progress get.
        assert time.monotonic() - began_s < 4
        assert role.process.wait(WAIT_S) == 0
        events.close()
    finally:
        house.close()


def test_a_name_from_outside_leads_nowhere(call: Http) -> None:
    assert call("GET", "/api/v1/nodes", headers={"host": "evil.example:8980"}).status == 421
    assert call("GET", "/api/v1/nodes", headers={"host": f"localhost:{call.port}"}).status == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    house = House(tmp_path_factory.mktemp("guarded"))
    try:
        yield Guarded(house.up("--no-worker", "--anonymous", "none"))
    finally:
        house.close()


def test_who_may_look(guarded: Guarded) -> None:
    def status(token: str, method: str, path: str) -> int:
        caller = guarded.caller(token)
        try:
            body = b"{}" if method == "POST" else None
            return caller.http(method, path, body, **{"content-type": "application/json"})[0]
        finally:
            caller.close()

    team = guarded.token("read", instances=("team",))
    writer, reader = guarded.token("write"), guarded.token("read")
    table = [
        ("GET", "/", (401, 403, 200, 200)),
        ("GET", "/api/v1/nodes", (401, 403, 200, 200)),
        ("GET", "/api/v1/actions", (401, 403, 200, 200)),
        ("GET", "/api/v1/ledger/head", (401, 403, 403, 200)),
        ("GET", "//api/v1/%6cedger/head", (401, 403, 403, 200)),
        ("GET", "/ledger/checkpoint", (401, 403, 403, 200)),
        ("POST", "/api/v1/ledger/verify", (401, 403, 403, 200)),
        ("POST", "/api/v1/nodes", (401, 403, 403, 403)),
        ("GET", "/nowhere", (401, 403, 404, 404)),
    ]
    for method, path, expected in table:
        assert tuple(status(token, method, path) for token in ("", writer, team, reader)) == expected, path


def test_a_browser_is_asked_for_a_token_and_a_limited_one_sees_no_ledger(guarded: Guarded) -> None:
    caller = guarded.caller()
    _, headers, _ = caller.http("GET", "/")
    caller.close()
    assert 'Basic realm="buildnet"' in ", ".join(headers.get_all("www-authenticate"))
    token = guarded.token("read", instances=("team",))
    with Events(Http(guarded.listen), headers=f"Authorization: Bearer {token}\r\n") as events:
        assert events.next("hello")[1]["limited"] is True
        events.next("nodes")
        events.next("actions")
        events.socket.settimeout(1)
        with pytest.raises((TimeoutError, OSError)):
            events.next("ledger")
