"""Turborepo's remote cache over a real socket: artifacts with what their writers said of them, apart by team."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.conftest import House
from tests.http_calls import Http

SAID = {
    "x-artifact-duration": "1234",
    "x-artifact-tag": "c2lnbmF0dXJl" * 20,
    "x-artifact-dirty-hash": "0123abcd",
}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        yield Http(house.up("--no-worker").ready["listen"])
    finally:
        house.close()


def fresh_hash() -> str:
    return os.urandom(8).hex()


def test_the_cache_says_that_it_is_on(call: Http) -> None:
    answer = call("GET", "/v8/artifacts/status?slug=team")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "enabled"})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("size", [0, 100, 50_000, 3_000_000])
def test_an_artifact_comes_back_with_what_was_said_of_it(call: Http, size: int) -> None:
    path, artifact = f"/v8/artifacts/{fresh_hash()}?teamId=team_1&slug=team", os.urandom(size)
    assert call("GET", path).status == 404
    assert call("HEAD", path).status == 404
    put = call("PUT", path, artifact, {**SAID, "x-artifact-client-ci": "VERCEL", "x-artifact-client-interactive": "0"})
    assert (put.status, list(json.loads(put.body))) == (202, ["urls"])
    answer = call("GET", path)
    assert (answer.status, answer.body) == (200, artifact)
    head = call("HEAD", path)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")
    for name, value in SAID.items():
        assert answer.headers[name] == head.headers[name] == value
    if size:
        assert call("GET", path, headers={"Range": "bytes=0-9"}).body == artifact[:10]
    # What nobody said is not made up, and a new artifact takes the old one's signature with it.
    assert call("PUT", path, b"new").status == 202
    answer = call("GET", path)
    assert answer.body == b"new"
    assert not set(SAID) & set(answer.headers)


def test_teams_and_instances_are_apart(call: Http) -> None:
    name = fresh_hash()
    paths = [
        f"/v8/artifacts/{name}",
        f"/v8/artifacts/{name}?slug=a",
        f"/v8/artifacts/{name}?teamId=b&slug=a",
        f"/x/v8/artifacts/{name}?slug=a",
    ]
    for path in paths:
        assert call("GET", path).status == 404
        assert call("PUT", path, path.encode()).status == 202
    for path in paths:
        assert call("GET", path).body == path.encode()
    # A team is the last part of an instance's name.
    assert call("GET", f"/a/v8/artifacts/{name}").body == paths[1].encode()


def test_many_are_asked_for_at_once(call: Http) -> None:
    here, bare, absent = fresh_hash(), fresh_hash(), fresh_hash()
    assert call("PUT", f"/v8/artifacts/{here}?slug=t", b"12345", SAID).status == 202
    assert call("PUT", f"/v8/artifacts/{bare}?slug=t", b"").status == 202
    answer = call("POST", "/v8/artifacts?slug=t", json.dumps({"hashes": [here, bare, absent]}).encode())
    assert answer.status == 200
    assert json.loads(answer.body) == {
        here: {"size": 5, "taskDurationMs": 1234, "tag": SAID["x-artifact-tag"]},
        bare: {"size": 0, "taskDurationMs": 0},
        absent: None,
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"hashes": "x"}', b'{"hashes": [1]}', b'{"hashes": ["../x"]}', b'{"hashes": ["a"', b"\xff"],
)
def test_malformed_questions_are_refused(call: Http, body: bytes) -> None:
    answer = call("POST", "/v8/artifacts", body)
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "invalid_request"


def test_too_many_questions_are_refused(call: Http) -> None:
    assert call("POST", "/v8/artifacts", json.dumps({"hashes": ["a"] * 10_001}).encode()).status == 400
    assert call("POST", "/v8/artifacts", b"[" * (256 << 10)).status == 400
    assert call("POST", "/v8/artifacts", b" " * ((256 << 10) + 1)).status == 413


def test_events_are_taken(call: Http) -> None:
    events = [{"sessionId": "s", "source": "REMOTE", "event": "HIT", "hash": fresh_hash(), "duration": 5}]
    assert call("POST", "/v8/artifacts/events?slug=t", json.dumps(events).encode()).status == 200
    assert call("POST", "/v8/artifacts/events", b"{}").status == 400
    assert call("GET", "/v8/artifacts/events").status == 405


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v8/artifacts/a%20b", {}, 400),
        ("/v8/artifacts/" + "a" * 256, {}, 400),
        ("/v8/artifacts/a/b", {}, 404),
        ("/v8/artifacts/a?slug=..", {}, 400),
        ("/v8/artifacts/a?slug=a%2Fb", {}, 400),
        ("/v8/artifacts/a?slug=%ff", {}, 400),
        ("/v8/artifacts/a", {"x-artifact-tag": "x" * 601}, 400),
        ("/v8/artifacts/a", {"x-artifact-duration": "soon"}, 400),
        ("/v8/artifacts/a", {"Content-Encoding": "gzip"}, 415),
        ("/v8/artifacts/status", {}, 405),
    ],
)
def test_what_is_not_understood_is_a_4xx_which_turbo_does_not_repeat(
    call: Http, path: str, headers: dict[str, str], status: int
) -> None:
    answer = call("PUT", path, b"artifact", headers)
    assert answer.status == status


def test_a_preflight_is_told_what_may_be_sent(call: Http) -> None:
    answer = call("OPTIONS", f"/v8/artifacts/{fresh_hash()}?slug=t")
    assert answer.status == 200
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "x-artifact-tag", "x-artifact-duration", "content-type", "user-agent"} <= allowed
    assert "location" not in answer.headers
