"""A graph whose controller is killed, or stopped, in the middle: nobody submits it again, and each action ends once."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from buildnet.client import ActionFilter, SubmittedGraph, SyncClient, connect
from buildnet.errors import InvalidRequest
from buildnet.ledger import audit
from buildnet.model.action_spec import ActionSpec, OutputInput, spec_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.action_spec import message_of_spec
from tests.conftest import House

WIDTH = 10
PATH = {"PATH": "/usr/bin:/bin"}


def layered(count: int) -> dict[str, ActionSpec]:
    """Layers of ten, each action taking two outputs of the layer below."""
    specs = {}
    for number in range(count):
        layer, place = divmod(number, WIDTH)
        below = [f"a{(layer - 1) * WIDTH + (place + side) % WIDTH}" for side in (0, 1)] if layer else []
        specs[f"a{number}"] = spec_of(
            ["sh", "-c", f"cat in/* > o; echo {number} >> o"],
            inputs=[OutputInput(f"in/{name}", name, "o") for name in below],
            variables=PATH,
            outputs=["o"],
        )
    return specs


def until_ended(net: SyncClient, graph: SubmittedGraph, count: int) -> set[str]:
    """Watch until so many have ended; which."""
    ended: set[str] = set()
    for info in net.watch(ActionFilter(graph=graph.id)):
        if info is not None and info.state == "completed":
            ended.add(info.id)
        if len(ended) >= count:
            break
    return ended


def published(state: Path) -> Counter[str]:
    bodies = (json.loads(body) for _, body in audit.iterate(state))
    return Counter(body["action"] for body in bodies if body["kind"] == "action.published")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_graph_goes_on_under_the_next_controller(house: House, how: str) -> None:
    specs = layered(200)
    first = house.up("--no-worker")
    house.join(first.url, "--slots", "2")
    told: list[tuple[str, str]] = []
    with connect(first.url) as net, ThreadPoolExecutor(1) as pool:
        graph = net.start_graph(specs, client_id="nightly")
        ended = until_ended(net, graph, 60)
        following = pool.submit(net.follow_graph, graph, on_change=lambda info: told.append((info.id, info.state)))
        first.kill() if how == "killed" else first.stop()
        house.up("--no-worker", listen=first.ready["listen"])
        outcome = following.result()
        assert {info.state for info in outcome.actions.values()} == {"completed"}
        assert {info.exit_code for info in outcome.actions.values()} == {0}
        assert {state for id_, state in told if id_ in ended} == {"completed"}, "what was told has ended still has"
        known = net.actions(only=ActionFilter(graph=graph.id), limit=1000)
        assert {info.graph_name: info.id for info in known} == graph.ids
        last = net.result(graph.ids["a199"])
        digest = last.outputs["o"].digest
        assert digest is not None
        assert net.read(digest).endswith(b"\n199\n")
        assert net.start_graph(specs, client_id="nightly") == graph, "asked for again, it is the same"
    counts = published(house.directory / "controller")
    assert len(counts) == 200
    assert set(counts.values()) == {1}, "each was published once"


@pytest.mark.timeout(120)
def test_what_was_cancelled_before_a_kill_is_cancelled_after_it(house: House) -> None:
    first = house.up("--no-worker")
    names = ["a", "b", "c", "d"]
    specs = {
        name: spec_of(
            ["sh", "-c", f"echo {name} > o"],
            inputs=[OutputInput("i", below, "o")] if below else [],
            variables=PATH,
            outputs=["o"],
        )
        for name, below in zip(names, ["", "a", "b", "a"], strict=True)
    }
    lone = spec_of(["sh", "-c", "echo lone"], variables=PATH)
    with connect(first.url) as net:
        graph = net.start_graph(specs, client_id="g")
        single = net.submit(lone, client_id="s")
        net.cancel(graph.ids["b"])
        first.kill()
        second = house.up("--no-worker", listen=first.ready["listen"])
        states = {name: net.action(id_) for name, id_ in graph.ids.items()}
        assert [states[name].state for name in names] == ["queued", "cancelled", "failed", "waiting"]
        assert states["c"].error_code == "dependency_failed"
        assert states["d"].arguments[0] == "sh"
        assert net.submit(lone, client_id="s").id == single.id
        with pytest.raises(InvalidRequest, match="client id"):
            net.start_graph({"a": specs["a"]}, client_id="g")
        house.join(second.url, "--slots", "1")
        outcome = net.follow_graph(graph)
        assert [outcome.actions[name].state for name in names] == ["completed", "cancelled", "failed", "completed"]
        assert net.result(single.id).stdout() == b"lone\n"
        second.kill()
        house.up("--no-worker", listen=first.ready["listen"])
        again = net.follow_graph(graph)
        assert {name: info.state for name, info in again.actions.items()} == {
            name: info.state for name, info in outcome.actions.items()
        }
        assert net.cancel_graph(graph.id) == 0


@pytest.mark.timeout(120)
def test_an_invocation_is_cancelled_after_a_kill(house: House) -> None:
    first = house.up("--no-worker")
    said = re.RequestMetadata(tool_invocation_id="run-7", action_mnemonic="Link", target_id="//a")
    header = (("build.bazel.remote.execution.v2.requestmetadata-bin", said.SerializeToString()),)
    request = action_pb2.SubmitActionsRequest()
    for name, inputs in (("a", []), ("b", [OutputInput("i", "a", "o")])):
        spec = spec_of(["sh", "-c", "echo > o"], inputs=inputs, variables=PATH, outputs=["o"])
        request.actions.add(name=name, spec=message_of_spec(spec))
    with grpc.insecure_channel(first.ready["listen"]) as channel:
        call = channel.stream_unary(
            "/buildnet.v1.ActionService/SubmitActions",
            action_pb2.SubmitActionsRequest.SerializeToString,
            action_pb2.SubmitActionsResponse.FromString,
        )
        answer = call(iter([request]), metadata=header, timeout=20)
    first.kill()
    second = house.up("--no-worker", listen=first.ready["listen"])
    with connect(second.url) as net:
        assert net.cancel_invocation("run-7") == 2
        states = {info.id: info.state for info in net.actions(only=ActionFilter(invocation="run-7"))}
        assert states == {one.id: "cancelled" for one in answer.actions}
