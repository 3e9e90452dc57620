"""Caches that choose their own names, over a real socket: ccache, sccache by WebDAV, Gradle, Nx."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from xml.etree import ElementTree

import pytest
import zstandard

from tests.conftest import House
from tests.http_calls import Http, answer_on, send

SIZES = {"empty": 0, "small": 100, "packed": 900_000, "large": 5_000_000}
DAV = "{DAV:}"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield Http(house.up("--no-worker").ready["listen"])
    finally:
        house.close()


def fresh_key(length: int = 40) -> str:
    return os.urandom(length).hex()[:length]


LAYOUTS = {
    "ccache subdirs": lambda: f"/ccache/{fresh_key(2)}/{fresh_key(38)}",
    "ccache flat": lambda: f"/ccache/{fresh_key()}",
    "ccache bazel": lambda: "/ac/" + (lambda key: key + key[:24])(fresh_key()),
    "ccache bazel below": lambda: f"/team/ccache/ac/{fresh_key(64)}",
    "ccache key that begins with ac": lambda: f"/ccache/ac/{fresh_key(38)}",
    "sccache": lambda: (lambda key: f"/sccache/prefix/{key[0]}/{key[1]}/{key[2]}/{key}")(fresh_key(64)),
    "sccache check": lambda: f"/{fresh_key(8)}/sccache/.sccache_check",
    "gradle": lambda: f"/gradle/{fresh_key(32)}",
    "gradle below": lambda: f"/a/b/gradle/any/prefix/{fresh_key(32)}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_value_is_kept_replaced_and_removed(call: Http, layout: str, size: int) -> None:
    path, value = LAYOUTS[layout](), os.urandom(size)
    assert call("GET", path).status == 404
    assert call("HEAD", path).status == 404
    assert call("DELETE", path).status == 404
    assert call("PUT", path, value).status in {200, 201}
    answer = call("GET", path)
    assert (answer.status, answer.body) == (200, value)
    head = call("HEAD", path)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")
    assert call("PUT", path, b"another").status in {200, 204}
    assert call("GET", path).body == b"another"
    assert call("GET", path).headers["etag"] != answer.headers["etag"]
    assert call("DELETE", path).status == 204
    assert call("GET", path).status == 404
    assert call("HEAD", path).status == 404


def test_caches_and_instances_are_apart(call: Http) -> None:
    key = fresh_key(64)
    paths = [
        f"{instance}/{cache}/{key}" for instance in ("", "/a", "/a/b") for cache in ("ccache", "sccache", "gradle")
    ]
    paths += [f"/ac/{key}", f"/v1/cache/{key}", f"/a/v1/cache/{key}"]
    for path in paths:
        assert call("GET", path).status == 404, path
        assert call("PUT", path, path.encode()).status in {200, 201}
    for path in paths:
        assert call("GET", path).body == path.encode()


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_ranges_and_tags_of_values(call: Http, size: int) -> None:
    path, value = f"/sccache/{fresh_key()}", os.urandom(size)
    assert call("PUT", path, value).status == 201
    part = call("GET", path, headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, value[10:20])
    assert call("GET", path, headers={"Range": f"bytes={size}-"}).status == 416
    tag = part.headers["etag"]
    assert call("GET", path, headers={"If-None-Match": tag}).status == 304
    assert call("PUT", path, b"x", {"If-None-Match": "*"}).status == 412
    assert call("PUT", path, b"x", {"If-Match": '"other"'}).status == 412
    assert call("GET", path).body == value
    assert call("PUT", path, b"x", {"If-Match": tag}).status == 204
    assert call("PUT", f"/sccache/{fresh_key()}", b"x", {"If-Match": "*"}).status == 412
    assert call("PUT", f"/sccache/{fresh_key()}", b"x", {"If-None-Match": "*"}).status == 201
    assert call("PUT", path, b"x", {"Content-Range": "bytes 0-0/9"}).status == 400


def test_values_may_come_as_zstd(call: Http) -> None:
    path, value = f"/gradle/{fresh_key()}", b"value" * 100_000
    assert call("PUT", path, zstandard.compress(value), {"Content-Encoding": "zstd"}).status == 201
    answer = call("GET", path, headers={"Accept-Encoding": "zstd"})
    assert (answer.body, "content-encoding" in answer.headers) == (value, False)


def test_a_broken_off_value_is_not_seen(call: Http) -> None:
    path = f"/ccache/{fresh_key()}"
    assert call("PUT", path, b"before").status == 201
    with call.raw() as raw:
        raw.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n".encode() + bytes(1_500_000))
        raw.shutdown(1)
        # The server has seen the end once it has closed.
        while raw.recv(1 << 16):
            pass
    assert call("GET", path).body == b"before"


# sccache: WebDAV.


def propfind(call: Http, path: str, depth: str | None = "1") -> tuple[int, ElementTree.Element | None]:
    body = b'<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:allprop/></D:propfind>'
    answer = call("PROPFIND", path, body, {"Depth": depth} if depth else None)
    if answer.status != 207:
        return answer.status, None
    assert answer.headers["content-type"].startswith("application/xml")
    return 207, ElementTree.fromstring(answer.body)


@pytest.mark.parametrize("depth", ["0", "1", None])
@pytest.mark.parametrize("path", ["/", "/sccache/", "/sccache", "/sccache/a/8/", "/team/sccache/a/", "/team/"])
def test_every_folder_is_there(call: Http, path: str, depth: str | None) -> None:
    status, found = propfind(call, path, depth)
    assert status == 207
    assert found is not None
    assert found.tag == f"{DAV}multistatus"
    (response,) = found.findall(f"{DAV}response")
    assert response.findtext(f"{DAV}href") == path
    prop = response.find(f"{DAV}propstat/{DAV}prop")
    assert prop is not None
    assert prop.find(f"{DAV}resourcetype/{DAV}collection") is not None
    assert response.findtext(f"{DAV}propstat/{DAV}status") == "HTTP/1.1 200 OK"
    assert parsedate_to_datetime(str(prop.findtext(f"{DAV}getlastmodified"))).tzinfo is not None


@pytest.mark.parametrize("size", [0, 77, 2_000_000])
def test_a_value_has_its_properties(call: Http, size: int) -> None:
    path = f"/sccache/a%20%26%3C%C3%A9/{fresh_key()}"
    assert propfind(call, path)[0] == 404
    value = os.urandom(size)
    assert call("PUT", path, value).status == 201
    status, found = propfind(call, path, "0")
    assert status == 207
    assert found is not None
    prop = found.find(f"{DAV}response/{DAV}propstat/{DAV}prop")
    assert prop is not None
    assert prop.find(f"{DAV}resourcetype/{DAV}collection") is None
    assert prop.findtext(f"{DAV}getcontentlength") == str(size)
    assert prop.findtext(f"{DAV}getetag") == call("HEAD", path).headers["etag"]
    href = str(found.findtext(f"{DAV}response/{DAV}href"))
    assert call("GET", href).body == value, "the href leads to the value"


def test_folders_are_made_by_asking_and_never_listed(call: Http) -> None:
    path = f"/sccache/{fresh_key()}"
    assert call("MKCOL", f"{path}/").status == 201
    assert call("MKCOL", f"{path}/x").status == 201
    assert call("PUT", path, b"value").status == 201
    assert call("MKCOL", path).status == 405
    assert propfind(call, "/sccache/", "infinity")[0] == 403
    for method in ("PROPPATCH", "COPY", "MOVE", "LOCK", "UNLOCK", "POST"):
        answer = call(method, path)
        assert answer.status == 405
        assert "PROPFIND" in answer.headers["allow"]
    assert call("GET", "/sccache/a/").status == 404


@pytest.mark.parametrize("path", ["/", "/sccache/x", "/gradle/x", "/v8/artifacts/x"])
def test_options_say_what_there_is_and_let_no_page_in(call: Http, path: str) -> None:
    answer = call("OPTIONS", path)
    assert (answer.status, answer.headers["dav"]) == (200, "1")
    assert {"GET", "PUT", "PROPFIND", "MKCOL"} <= set(answer.headers["allow"].split(", "))
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-origin" not in answer.headers


# Gradle.


def test_gradle_waits_for_a_word_before_it_sends(call: Http) -> None:
    path, value = f"/gradle/{fresh_key(32)}", os.urandom(300_000)
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(value)}\r\n\r\n"
    with call.raw() as raw:
        raw.sendall(head.encode())
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        raw.sendall(value)
        assert answer_on(raw).status == 201
    assert call("GET", path).body == value


def test_gradle_is_told_413_before_it_sends(call: Http) -> None:
    path = f"/gradle/{fresh_key(32)}"
    with call.raw() as raw:
        raw.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {65 << 30}\r\n\r\n".encode()
        )
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert (response.status, response.getheader("connection")) == (413, "close")
        assert b"limit" in response.read()
        assert raw.recv(1) == b"", "the connection was closed"
    assert call("GET", path).status == 404


# Nx.


def test_nx_keeps_the_first(call: Http) -> None:
    path, value = f"/v1/cache/{fresh_key(20)}", os.urandom(200_000)
    assert call("GET", path).status == 404
    assert call("PUT", path, value, {"Content-Type": "application/octet-stream"}).status == 200
    answer = call("PUT", path, b"another")
    assert answer.status == 409
    assert answer.headers["content-type"].startswith("text/plain")
    answer = call("GET", path)
    assert (answer.status, answer.body) == (200, value)
    for method in ("DELETE", "POST", "MKCOL", "PROPFIND"):
        assert call(method, path).status == 405
    assert call("PUT", "/v1/cache/a/b", b"x").status == 404
    assert call("PUT", "/v1/cache/a%20b", b"x").status == 400


def test_of_many_first_writers_one_is_first(call: Http) -> None:
    path = f"/v1/cache/{fresh_key(20)}"
    statuses: dict[int, int] = {}
    start = threading.Barrier(12)

    def put(number: int) -> None:
        connection = call.open()
        connection.connect()
        start.wait()
        statuses[number] = send(connection, "PUT", path, f"writer {number}".encode()).status
        connection.close()

    writers = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (first,) = [number for number, status in statuses.items() if status == 200]
    assert sorted(statuses.values()) == [200] + [409] * 11
    assert call("GET", path).body == f"writer {first}".encode()


# Paths.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ccache/../../etc/passwd", 400),
        ("/ccache/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/ccache/a%2fb", 400),
        ("/ccache/a%00b", 400),
        ("/ccache/a%0d%0ab", 400),
        ("/ccache/%zz", 400),
        ("/ccache/%ff%fe", 400),
        ("/cas/" + "g" * 64, 400),
        ("/cas/" + "A" * 64, 400),
        ("/cas/1234", 400),
        ("/ac/" + "0" * 64 + "/x", 400),
        ("/ccache/" + "a" * 2100, 414),
        ("/ccache/" + "a" * 40_000, 414),
        ("/ccache/" + "a" * 80_000, 414),
        ("/nothing", 404),
        ("/team/a/", 404),
        ("/ccache/", 404),
        ("/ac", 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_paths_that_lead_nowhere_are_refused(call: Http, method: str, path: str, status: int) -> None:
    answer = call(method, path, b"x" if method == "PUT" else None)
    assert answer.status == status
    assert call("GET", "/status").status == 200


def test_an_unknown_path_is_told_which_there_are(call: Http) -> None:
    text = call("GET", "/nothing").body.decode()
    for word in ("/cas/", "/ac/", "/ccache/", "/sccache/", "/gradle/", "/v8/artifacts", "/v1/cache/"):
        assert word in text


def test_slashes_to_spare_and_codes_to_spare_name_the_same(call: Http) -> None:
    key = fresh_key()
    assert call("PUT", f"//team//a/ccache//{key}", b"value").status == 201
    assert call("GET", f"/team/a/ccache/{key}").body == b"value"
    assert call("GET", f"/te%61m/a/ccache/%{ord(key[0]):02x}{key[1:]}").body == b"value"


def test_a_value_of_a_flipped_bit_is_never_served(house: House) -> None:
    """Under a checksum when it is packed, under its hash when it is large."""
    server = house.up("--no-worker")
    call = Http(server.ready["listen"])
    small, large = os.urandom(500_000), os.urandom(3_000_000)
    assert call("PUT", "/ccache/small", small).status == 201
    assert call("PUT", "/gradle/large", large).status == 201
    server.stop()
    flipped = 0
    for file in house.directory.rglob("*"):
        if not file.is_file() or file.suffix == ".idx":
            continue
        content = file.read_bytes()
        for value in (small, large):
            if (at := content.find(value[1000:1100])) >= 0:
                file.chmod(0o600)
                with file.open("r+b") as opened:
                    opened.seek(at)
                    opened.write(bytes([content[at] ^ 1]))
                flipped += 1
    assert flipped == 2
    call = Http(house.up("--no-worker").ready["listen"])
    assert call("GET", "/ccache/small").status == 404
    answer = broken_read(call, "/gradle/large")
    assert hashlib.sha256(answer).digest() != hashlib.sha256(large).digest()
    assert len(answer) < len(large), "nothing stands for the damaged block"
    assert call("GET", "/gradle/large").status == 404
    # It may be written anew.
    assert call("PUT", "/gradle/large", large).status in {201, 204}
    assert call("GET", "/gradle/large").body == large


def broken_read(call: Http, path: str) -> bytes:
    """What comes of a body before it breaks off."""
    try:
        return call("GET", path).body
    except http.client.IncompleteRead as broken:
        return broken.partial
    except ConnectionError:
        return b""
