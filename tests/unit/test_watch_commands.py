"""What the commands that watch print when their connection breaks: why, and then what is not as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from buildnet.cli import actions, fleet, options, resources
from buildnet.client import ActionInfo, NodeInfo
from buildnet.client.resources import ResourceNews
from buildnet.errors import NodeDown
from buildnet.model.resource import Resource

GONE = NodeDown("the server went away")
BREAK = object()


class Server:
    """A server that tells this; at BREAK the connection does."""

    url = "grpc://nowhere"

    def __init__(self, told: list[Any]) -> None:
        self._told = told

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def _stream(self, on_break: Callable[[NodeDown], None]) -> Iterator[Any]:
        for event in self._told:
            if event is BREAK:
                on_break(GONE)
            else:
                yield event

    def fleet_watch(self, *, on_break: Callable[[NodeDown], None]) -> Iterator[Any]:
        return self._stream(on_break)

    def watch_resources(self, *, on_break: Callable[[NodeDown], None]) -> Iterator[Any]:
        return self._stream(on_break)

    def watch(self, _: Any, *, on_break: Callable[[NodeDown], None]) -> Iterator[Any]:
        return self._stream(on_break)

    def fleet_find(self, name: str) -> NodeInfo:
        return NodeInfo(name, "draining")

    def fleet_drain(self, name: str) -> NodeInfo:
        return NodeInfo(name, "draining")


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    def invoked(command: Any, arguments: list[str], *told: Any) -> Result:
        monkeypatch.setattr(options, "connected", lambda *_: Server(list(told)))
        return CliRunner().invoke(command, arguments)

    return invoked


def node(name: str, state: str = "active", seen_s: float = 0.0) -> NodeInfo:
    return NodeInfo(name, state, slots=1, last_seen_unix_s=seen_s)


def test_nodes_that_are_as_they_were_are_not_told_again_and_those_that_are_unknown_have_left(invoke: Invoke) -> None:
    before, after = (node("one"), node("two"), node("three"), None), (node("one", seen_s=9.0), node("two", "cordoned"))
    ended = invoke(fleet.command, ["watch", "--json"], *before, BREAK, *after, None, node("three"))
    told = [(row["node"], row["state"]) for row in map(json.loads, ended.stdout.splitlines())]
    first = [("one", "active"), ("two", "active"), ("three", "active")]
    assert told == [*first, ("two", "cordoned"), ("three", "left"), ("three", "active")]
    assert "is made again: the server went away" in ended.stderr


def test_a_drain_that_the_next_server_does_not_know_of_is_not_waited_for(invoke: Invoke) -> None:
    known = node("one", "draining"), node("other"), None
    ended = invoke(fleet.command, ["drain", "--wait", "one"], *known, BREAK, *known, node("one", "left"))
    assert ended.exit_code == 0
    ended = invoke(fleet.command, ["drain", "--wait", "one"], *known, BREAK, node("other"), None, node("one", "left"))
    assert isinstance(ended.exception, NodeDown)
    assert "ask again" in ended.exception.message


def action(name: str, state: str) -> ActionInfo:
    return ActionInfo(name, None, "", state, "w", 0, "", "", False, None, ("true",), 0.0, None)


def test_actions_that_are_as_they_were_are_not_told_again(invoke: Invoke) -> None:
    before = action("a", "queued"), action("b", "queued"), None, action("a", "executing")
    after = action("a", "executing"), action("b", "completed"), action("c", "queued"), None
    ended = invoke(actions.command, ["watch", "--json"], *before, BREAK, *after)
    told = [(row["id"], row["state"]) for row in map(json.loads, ended.stdout.splitlines())]
    assert told == [("a", "queued"), ("b", "queued"), ("a", "executing"), ("b", "completed"), ("c", "queued")]


def news(name: str = "", *tools: str, snapshot: bool = False, revision: int = 0) -> ResourceNews:
    present = tuple(Resource("tool", tool) for tool in tools)
    return ResourceNews("catalog", revision, snapshot, name, bool(name), present, ())


def test_the_first_change_of_an_empty_catalog_is_one(invoke: Invoke) -> None:
    told = news(snapshot=True), news(), news("one", "cc"), news(revision=1)
    assert invoke(resources.command, ["watch", "--changes"], *told).stdout == "+ one  tool:cc  -\n"


@pytest.mark.parametrize("changes", [[], ["--changes"]])
def test_a_second_snapshot_takes_the_first_back(invoke: Invoke, changes: list[str]) -> None:
    first = news(snapshot=True), news("one", "cc"), news("two", "ld"), news(revision=3), news("two"), news(revision=4)
    second = news(snapshot=True), news(revision=1), news("one", "cc"), news(revision=2)
    ended = invoke(resources.command, ["watch", *changes], *first, BREAK, *second)
    told = ["- two  everything", "- one  everything", "+ one  tool:cc  -"]
    assert ended.stdout.splitlines() == (told if changes else ["+ one  tool:cc  -", "+ two  tool:ld  -", *told])
