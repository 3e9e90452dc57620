"""The web's own rules, without a socket: ASGI as the bridge runs it, claims, names that lead here, the built page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.edge.bridge import WebRequest
from buildnet.edge.flow import ACK, SEND, START, WINDOW_BYTES, Exchange, Requests
from buildnet.edge.status import GRPC_CODES, http_status
from buildnet.edge.web import page
from buildnet.edge.web.app import application, is_misdirected
from buildnet.edge.web.asgi import Asgi, Deferred, Message, Receive, Send, scope_of
from buildnet.edge.web.events import event
from buildnet.edge.web.facts import entry_fact
from buildnet.edge.web.proof import LEAVES_MAX, Claim
from buildnet.errors import BY_CODE, InvalidRequest
from buildnet.model.caller import Caller
from buildnet.model.entry import Entry

Op = tuple[int, int, Any]


def request(path: str = "/", method: str = "GET", **more: Any) -> WebRequest:
    headers = more.pop("headers", [(b"host", b"localhost:8980")])
    return WebRequest(method, path, "", "1.1", "http", headers, b"", "127.0.0.1:5", **more)


async def asked(app: Any, one: WebRequest) -> tuple[int, dict[bytes, bytes], bytes]:
    ops: list[Op] = []
    await Asgi(app)(one, Exchange(ops.append, 1))
    (_, kind, head), *rest = ops
    assert kind == START
    return head[0], dict(head[1]), b"".join(body for _, _, body in rest)


async def test_a_piece_waits_for_room_and_the_end_needs_none() -> None:
    ops: list[Op] = []
    exchange = Exchange(ops.append, 1)
    whole = bytes(3 * WINDOW_BYTES)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": whole})

    task = asyncio.ensure_future(Asgi(app)(request(), exchange))
    sent = 0
    while not task.done():
        await asyncio.sleep(0)
        now = sum(len(body) for _, kind, body in ops if kind == SEND)
        assert now <= sent + WINDOW_BYTES * 3 // 2
        if now > sent:
            exchange.credit(now - sent + 16 * len(ops))
            sent = now
    assert (ops[0], sent) == ((1, START, (200, [])), len(whole))


async def test_a_stopping_server_is_a_disconnect() -> None:
    exchange = Exchange(lambda op: None, 1)
    seen: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append((await receive())["type"])
        await send({"type": "http.response.body"})

    task = asyncio.ensure_future(Asgi(app)(request(), exchange))
    await asyncio.sleep(0)
    assert not task.done()
    exchange.leave.set()
    await task
    assert seen == ["http.disconnect"]


@pytest.mark.parametrize("kinds", [[], ["start"], ["body"], ["start", "start"], ["start", "body", "body"], ["other"]])
async def test_an_application_that_breaks_the_protocol_fails(kinds: list[str]) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for kind in kinds:
            await send({"type": f"http.response.{kind}", "status": 200, "headers": []})

    with pytest.raises(RuntimeError):
        await Asgi(app)(request(), Exchange(lambda op: None, 1))


async def test_what_is_deferred_is_made_once_when_it_can_be() -> None:
    made: list[None] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def make() -> Any:
        made.append(None)
        if len(made) == 1:
            raise InvalidRequest("it cannot be made", field="page")
        return app

    deferred = Deferred(make)
    assert not made
    with pytest.raises(InvalidRequest):
        await asked(deferred, request())
    answers = await asyncio.gather(*(asked(deferred, request()) for _ in range(3)))
    assert [status for status, _, _ in answers] == [204] * 3
    assert len(made) == 2


async def test_requests_are_acknowledged_by_halves() -> None:
    ops: list[Op] = []
    stream = Requests(ops.append, 1, bytes.decode)
    for _ in range(3):
        stream.message(b"x" * (WINDOW_BYTES // 4))
    stream.end()
    assert [len(text) async for text in stream.requests()] == [WINDOW_BYTES // 4] * 3
    assert [(kind, size) for _, kind, size in ops] == [(ACK, WINDOW_BYTES // 2 + 32)]


def test_the_scope_says_who_asks() -> None:
    scope = scope_of(WebRequest("GET", "/a b", "q=%20", "2", "https", [], b"", "[::1]:7", Caller("ci")))
    assert scope["client"] == ("::1", 7)
    assert (scope["path"], scope["query_string"], scope["state"]["caller"].subject) == ("/a b", b"q=%20", "ci")


@pytest.mark.parametrize(
    ("host", "peer", "subject", "refused"),
    [
        ("127.0.0.1:8980", "127.0.0.1", "", False),
        ("[::1]:8980", "::1", "", False),
        ("localhost", "127.0.0.1", "", False),
        ("build.localhost:1", "127.0.0.1", "", False),
        ("machine:8980", "127.0.0.1", "", False),
        ("evil.example:8980", "127.0.0.1", "", True),
        ("evil.example.", "::1", "", True),
        ("evil.example", "127.0.0.1", "ci", False),
        ("build.example.com", "10.0.0.7", "", False),
        ("", "127.0.0.1", "", False),
    ],
)
async def test_a_name_bound_for_an_attack_leads_nowhere(host: str, peer: str, subject: str, refused: bool) -> None:
    assert is_misdirected(host, (peer, 1), subject) is refused


async def test_every_answer_has_its_rules() -> None:
    app = application(page.routes(Path("/nowhere")))
    status, headers, body = await asked(app, request())
    assert (status, b"was not built" in body) == (200, True)
    assert b"require-trusted-types-for" in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    tag = headers[b"etag"]
    again = [(b"host", b"localhost"), (b"if-none-match", b'"x", W/' + tag)]
    assert (await asked(app, request(headers=again)))[0] == 304
    for path, expected in [("/x", 404), ("/assets/x.js", 404), ("/assets", 404)]:
        status, headers, body = await asked(app, request(path))
        assert (status, headers[b"cache-control"]) == (expected, b"no-store"), path
    status, headers, _ = await asked(app, request(method="POST"))
    assert (status, headers[b"buildnet-code"]) == (405, b"invalid_request")
    evil = request(headers=[(b"host", b"evil.example")])
    assert (await asked(app, evil))[0] == 421


async def test_an_asset_is_kept_for_ever_and_the_page_is_not(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a-123.js").write_text("1")
    (tmp_path / "index.html").write_text("<p>")
    app = application(page.routes(tmp_path))
    _, headers, body = await asked(app, request("/assets/a-123.js"))
    assert (body, headers[b"content-type"]) == (b"1", b"text/javascript; charset=utf-8")
    assert b"immutable" in headers[b"cache-control"]
    _, headers, body = await asked(app, request("/"))
    assert (body, headers[b"cache-control"]) == (b"<p>", b"no-cache")


def test_an_event_is_one_block_of_lines() -> None:
    assert event("a", '{"x":1}', "7") == b'id: 7\nevent: a\ndata: {"x":1}\n\n'
    assert event("a", "{}") == b"event: a\ndata: {}\n\n"


@settings(max_examples=30)
@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=20), max_size=3))
def test_an_entry_is_told_whole_and_on_one_line(fields: dict[str, str]) -> None:
    fields = {name: value for name, value in fields.items() if name not in ("v", "kind", "at_unix_ms")}
    fact = entry_fact(3, Entry("k", 5, fields).encode())
    assert (fact["index"], fact["kind"], fact["at_unix_ms"], fact["fields"]) == (3, "k", 5, {"v": 1, **fields})
    assert "\n" not in json.dumps(fact)


LEAF = "ab" * 32
GOOD: dict[str, Any] = {"known": {"size": 1, "root": LEAF}, "leaves": [[0, LEAF]]}


def test_a_claim_is_read() -> None:
    claim = Claim.parse(json.dumps(GOOD).encode())
    assert (claim.size, claim.root, claim.leaves) == (1, bytes.fromhex(LEAF), ((0, bytes.fromhex(LEAF)),))
    assert Claim.parse(b"{}") == Claim(0, b"", ())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"known": 1}',
        b'{"known": {"size": true, "root": ""}}',
        json.dumps({**GOOD, "leaves": [[0.5, LEAF]]}).encode(),
        json.dumps({**GOOD, "leaves": [[-1, LEAF]]}).encode(),
        json.dumps({**GOOD, "leaves": [[1 << 60, LEAF]]}).encode(),
        json.dumps({**GOOD, "leaves": [[1, LEAF[1:]]]}).encode(),
        json.dumps({**GOOD, "leaves": [[1, "g" * 64]]}).encode(),
        json.dumps({**GOOD, "leaves": [[1, LEAF]] * (LEAVES_MAX + 1)}).encode(),
    ],
)
def test_a_claim_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Claim.parse(body)


@settings(max_examples=30)
@given(st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists)))
def test_no_claim_breaks_the_parser(said: Any) -> None:
    body = said if isinstance(said, bytes) else json.dumps({"known": said, "leaves": said}).encode()
    try:
        claim = Claim.parse(body)
    except InvalidRequest:
        return
    assert claim.size >= 0
    assert len(claim.leaves) <= LEAVES_MAX


def test_every_error_has_an_http_status() -> None:
    for code, error in BY_CODE.items():
        status = http_status(error("x"))
        assert 400 <= status <= 599, code
        assert code in GRPC_CODES
