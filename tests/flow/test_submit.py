"""Actions in the engine's own form over a real door: one, and graphs whose actions take each other's outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from buildnet.client import ActionFilter, SyncClient, connect
from buildnet.errors import BlobsMissing, BuildNetError, InvalidRequest, NotFound
from buildnet.model.action_spec import ActionSpec, FileInput, OutputInput, TreeInput, spec_of
from buildnet.model.amounts import Amounts
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2
from buildnet.wire.action_spec import message_of_spec
from tests.conftest import House, Role

PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture
def net(running: Role) -> Iterator[SyncClient]:
    with connect(running.url) as client:
        yield client


def shell(script: str, *outputs: str, **more: object) -> ActionSpec:
    return spec_of(["sh", "-c", script], variables=PATH, outputs=outputs, **more)  # type: ignore[arg-type]


def test_one_action_is_submitted_and_its_result_told(net: SyncClient) -> None:
    text = net.upload(b"hello")
    spec = shell("cat in/a > b; echo said", "b", inputs=[FileInput("in/a", text)])
    info = net.submit(spec)
    result = net.result(info.id)
    assert (result.exit_code, result.stdout(), result.cached) == (0, b"said\n", False)
    assert net.read(result.outputs["b"].digest) == b"hello"
    assert net.action(info.id).state == "completed"
    again = net.submit(spec)
    assert again.id != info.id
    assert net.result(again.id).cached
    assert again.action == info.action


def test_the_other_face_finds_it_in_the_cache(net: SyncClient) -> None:
    mine = net.result(net.submit(shell("echo one digest > o", "o")).id)
    theirs = net.run(["sh", "-c", "echo one digest > o"], outputs=["o"])
    assert theirs.cached
    assert theirs.action == mine.action


def test_a_submission_is_repeated_without_harm(net: SyncClient) -> None:
    spec = shell(f"echo {time.time_ns()}")
    first = net.submit(spec, client_id="once")
    assert net.submit(spec, client_id="once").id == first.id
    with pytest.raises(InvalidRequest, match="client id") as told:
        net.submit(shell("echo other"), client_id="once")
    assert told.value.code == "invalid_request"


def test_inputs_that_are_not_there_are_named(net: SyncClient) -> None:
    absent, other = Digest.of(b"not there"), Digest.of(b"nor there")
    with pytest.raises(BlobsMissing) as told:
        net.submit(shell("true", inputs=[FileInput("a", absent), TreeInput("b", other)]))
    assert set(told.value.fields["digests"]) == {absent.text, other.text}


def test_a_refusal_is_not_remembered(net: SyncClient) -> None:
    data = f"late {time.time_ns()}".encode()
    spec = shell("true", inputs=[FileInput("a", Digest.of(data))])
    with pytest.raises(BlobsMissing):
        net.submit(spec, client_id="late")
    net.upload(data)
    assert net.result(net.submit(spec, client_id="late").id).exit_code == 0


def diamond(salt: str) -> dict[str, ActionSpec]:
    return {
        "join": shell(
            "cat left right dir/deep > all",
            "all",
            inputs=[
                OutputInput("left", "left", "out/l"),
                OutputInput("right", "right", "r"),
                OutputInput("dir", "right", "d"),
            ],
        ),
        "left": shell("mkdir -p out; tr a-z A-Z < s > out/l", "out/l", inputs=[OutputInput("s", "source", "text")]),
        "right": shell("rev s > r; mkdir d; cp s d/deep", "r", "d", inputs=[OutputInput("s", "source", "text")]),
        "source": shell(f"echo {salt} > text", "text"),
    }


def test_a_graph_runs_in_order_and_is_bound(net: SyncClient) -> None:
    outcome = net.submit_graph(diamond("abc"))
    assert {name: info.state for name, info in outcome.actions.items()} == dict.fromkeys(diamond(""), "completed")
    result = net.result(outcome.actions["join"].id)
    assert net.read(result.outputs["all"].digest) == b"ABC\ncba\nabc\n"
    again = net.submit_graph(diamond("abc"))
    assert again.id != outcome.id
    assert all(info.cached for info in again.actions.values()), "upstream results in the cache bind what follows"


def test_a_failure_is_what_depends_on_it_fails_by(net: SyncClient) -> None:
    specs = diamond("xyz")
    specs["left"] = shell("exit 3", "out/l", inputs=[OutputInput("s", "source", "text")])
    outcome = net.submit_graph(specs)
    states = {name: (info.state, info.error_code) for name, info in outcome.actions.items()}
    assert states == {
        "source": ("completed", ""),
        "right": ("completed", ""),
        "left": ("completed", ""),
        "join": ("failed", "dependency_failed"),
    }
    assert outcome.actions["left"].exit_code == 3
    assert "'left'" in outcome.actions["join"].message
    with pytest.raises(BuildNetError) as told:
        net.result(outcome.actions["join"].id)
    assert told.value.code == "dependency_failed"


def test_an_output_that_was_not_left_is_what_it_fails_by(net: SyncClient) -> None:
    specs = {"a": shell("true", "x"), "b": shell("true", inputs=[OutputInput("x", "a", "x")])}
    outcome = net.submit_graph(specs)
    assert outcome.actions["b"].error_code == "dependency_failed"
    assert "left no 'x'" in outcome.actions["b"].message


BAD: dict[str, tuple[dict[str, ActionSpec], str]] = {
    "circle": (
        {n: shell("true", "o", inputs=[OutputInput("i", m, "o")]) for n, m in (("a", "b"), ("b", "a"))},
        "'a' -> 'b' -> 'a'",
    ),
    "unknown": ({"a": shell("true", inputs=[OutputInput("i", "z", "o")])}, "'z'"),
    "undeclared": (
        {"z": shell("true", "o/p"), "a": shell("true", inputs=[OutputInput("i", "z", "o")])},
        "which declares no such output",
    ),
    "nothing": ({}, "no actions"),
    "constraint": ({"a": shell("true", constraints=["gcc >< 1"])}, "not a constraint"),
    "name": ({"\n": shell("true")}, "printed"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_graph_is_refused_whole(net: SyncClient, kind: str) -> None:
    specs, said = BAD[kind]
    before = len(net.actions(limit=1000))
    with pytest.raises(InvalidRequest, match=said):
        net.submit_graph(specs)
    assert len(net.actions(limit=1000)) == before


def test_a_graph_is_cancelled_whole(net: SyncClient) -> None:
    specs = {
        "long": shell(f"sleep 60; echo {time.time_ns()}", "o"),
        "next": shell("true", inputs=[OutputInput("i", "long", "o")]),
        "last": shell("true", inputs=[OutputInput("i", "long", "o")]),
    }
    graph = net.start_graph(specs, client_id="cancelled")
    assert net.start_graph(specs, client_id="cancelled") == graph
    states = {info.graph_name: info.state for info in net.actions(only=ActionFilter(graph=graph.id))}
    assert states["next"] == states["last"] == "waiting"
    assert net.cancel_graph(graph.id) == 3
    ended = net.follow_graph(graph)
    assert {info.state for info in ended.actions.values()} == {"cancelled"}
    assert net.cancel_graph(graph.id) == 0


def test_one_action_of_a_graph_is_cancelled(net: SyncClient) -> None:
    specs = {
        "long": shell(f"sleep 60; echo {time.time_ns()}", "o"),
        "next": shell("true", "o", inputs=[OutputInput("i", "long", "o")]),
        "last": shell("true", inputs=[OutputInput("i", "next", "o")]),
    }
    graph = net.start_graph(specs)
    net.cancel(graph.ids["next"])
    assert net.action(graph.ids["last"]).error_code == "dependency_failed"
    net.cancel(graph.ids["long"])
    ended = net.follow_graph(graph)
    assert [ended.actions[name].state for name in ("long", "next", "last")] == ["cancelled", "cancelled", "failed"]


def test_pages_neither_repeat_nor_leave_out(net: SyncClient) -> None:
    graph = net.submit_graph({f"n{number}": shell(f"echo {number}") for number in range(7)})
    pages = list(net.action_pages(only=ActionFilter(graph=graph.id), page_size=3))
    assert [len(page) for page in pages] == [3, 3, 1]
    names = [info.graph_name for page in pages for info in page]
    assert names == [f"n{number}" for number in reversed(range(7))]
    assert net.actions(only=ActionFilter(graph="no such")) == []


def test_a_graph_that_is_not_known_cannot_be_cancelled(net: SyncClient) -> None:
    with pytest.raises(NotFound):
        net.cancel_graph("nothing")
    with pytest.raises(NotFound):
        net.cancel_invocation("nothing")


def test_a_watch_tells_what_is_and_what_comes(net: SyncClient) -> None:
    events = net.watch()
    known = set()
    for event in events:
        if event is None:
            break
        known.add(event.id)
    assert known
    info = net.submit(shell(f"echo {time.time_ns()}"))
    states = []
    for event in events:
        if event is not None and event.id == info.id:
            states.append(event.state)
            if event.state == "completed":
                break
    assert states[-1] == "completed"
    assert states == sorted(states, key=["queued", "executing", "completed"].index)


def test_what_no_worker_offers_is_refused_by_name(net: SyncClient) -> None:
    info = net.submit(shell("true", platform=[("pool", "gold"), ("container-image", "docker://x")]))
    with pytest.raises(BuildNetError) as told:
        net.result(info.id)
    assert told.value.code == "no_capable_worker"
    assert "pool=gold" in told.value.message
    assert "container-image" not in told.value.message


def test_amounts_are_no_names_that_a_worker_offers(net: SyncClient) -> None:
    spec = shell("echo amounts", resources=Amounts(cpu_milli=500), platform=[("container-image", "docker://x")])
    assert net.result(net.submit(spec).id).exit_code == 0


def test_what_is_ignored_is_configured(house: House) -> None:
    role = house.up("--slots", "1", "--ignored-properties", "pool, dockerNetwork")
    with connect(role.url) as net:
        assert net.run(["true"], platform={"pool": "gold"}).exit_code == 0
        with pytest.raises(BuildNetError, match="container-image"):
            net.run(["true"], platform={"container-image": "docker://x"})


def test_how_long_an_action_may_run_is_configured(house: House) -> None:
    role = house.up("--slots", "1", "--timeout-max", "3h")
    with connect(role.url) as net:
        long = shell("true", timeout_s=10_800.0)
        assert net.result(net.submit(long).id).exit_code == 0
        assert net.run(["true"], timeout_s=10_800.0).exit_code == 0
        longer = shell("true", timeout_s=10_801.0)
        for ask in (
            lambda: net.submit(longer),
            lambda: net.submit_graph({"one": longer}),
            lambda: net.run(["true"], timeout_s=10_801.0),
        ):
            with pytest.raises(InvalidRequest, match=r"at most 10800 s.*timeout_max"):
                ask()


def test_an_invocation_is_listed_and_cancelled(running: Role, net: SyncClient) -> None:
    said = re.RequestMetadata(tool_invocation_id=f"run-{time.time_ns()}", action_mnemonic="Sleep", target_id="//a")
    header = [("build.bazel.remote.execution.v2.requestmetadata-bin", said.SerializeToString())]
    request = action_pb2.SubmitActionRequest(spec=message_of_spec(shell(f"sleep 60; echo {time.time_ns()}")))
    with grpc.insecure_channel(running.url.removeprefix("grpc://")) as channel:
        call = channel.unary_unary(
            "/buildnet.v1.ActionService/SubmitAction",
            action_pb2.SubmitActionRequest.SerializeToString,
            action_pb2.ActionSummary.FromString,
        )
        ids = {call(request, metadata=header, timeout=20).id for _ in range(2)}
    only = ActionFilter(invocation=said.tool_invocation_id, mnemonic="Sleep", target="//a")
    assert {info.id for info in net.actions(only=only)} == ids, "two operations of one action"
    assert net.cancel_invocation(said.tool_invocation_id) == 2
    assert {info.state for info in net.actions(only=only)} == {"cancelled"}
    assert net.cancel_invocation(said.tool_invocation_id) == 0


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (action_pb2.SubmitActionRequest(), "spec"),
        (action_pb2.SubmitActionRequest(spec=action_pb2.ActionSpec()), "arguments"),
        (action_pb2.SubmitActionRequest(instance_name="\n", spec=message_of_spec(spec_of(["a"]))), "instance_name"),
        (
            action_pb2.SubmitActionRequest(spec=message_of_spec(spec_of(["a"], inputs=[OutputInput("a", "b", "c")]))),
            "spec.inputs",
        ),
        (action_pb2.SubmitActionRequest(client_id="x" * 257, spec=message_of_spec(spec_of(["a"]))), "client_id"),
    ],
    ids=["no spec", "nothing to run", "an instance", "a reference", "a client id"],
)
def test_a_refusal_names_its_field(running: Role, message: action_pb2.SubmitActionRequest, field: str) -> None:
    with grpc.insecure_channel(running.url.removeprefix("grpc://")) as channel:
        call = channel.unary_unary(
            "/buildnet.v1.ActionService/SubmitAction",
            action_pb2.SubmitActionRequest.SerializeToString,
            action_pb2.ActionSummary.FromString,
        )
        with pytest.raises(grpc.RpcError) as told:
            call(message, timeout=20)
    assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = dict(told.value.trailing_metadata())["grpc-status-details-bin"]
    bad = error_details_pb2.BadRequest()
    found = [d for d in status_pb2.Status.FromString(details).details if d.Unpack(bad)]
    assert found
    assert [violation.field for violation in bad.field_violations] == [field]


def test_graph_in_pieces_with_garbage_is_refused_whole(running: Role, net: SyncClient) -> None:
    before = len(net.actions(limit=1000))

    def piece(*names: str) -> action_pb2.SubmitActionsRequest:
        message = action_pb2.SubmitActionsRequest()
        for name in names:
            message.actions.add(name=name, spec=message_of_spec(spec_of(["true"])))
        return message

    with grpc.insecure_channel(running.url.removeprefix("grpc://")) as channel:
        call = channel.stream_unary(
            "/buildnet.v1.ActionService/SubmitActions",
            action_pb2.SubmitActionsRequest.SerializeToString,
            action_pb2.SubmitActionsResponse.FromString,
        )
        for pieces, said in (
            ([piece("a", "b"), piece("b")], "two actions"),
            ([], "no actions"),
            ([piece("")], "bytes"),
        ):
            with pytest.raises(grpc.RpcError, match=said):
                call(iter(pieces), timeout=20)
        answer = call(iter([piece("a"), piece(), piece("b")]), timeout=20)
    assert [one.name for one in answer.actions] == ["a", "b"]
    net.cancel_graph(answer.graph_id)
    assert len(net.actions(limit=1000)) == before + 2


def test_the_other_face_waits_for_what_waits(running: Role, net: SyncClient) -> None:
    specs = {
        "slow": shell(f"sleep 1; echo {time.time_ns()} > o", "o"),
        "next": shell("cat i", inputs=[OutputInput("i", "slow", "o")]),
    }
    graph = net.start_graph(specs)
    with grpc.insecure_channel(running.url.removeprefix("grpc://")) as channel:
        call = channel.unary_stream(
            "/build.bazel.remote.execution.v2.Execution/WaitExecution",
            re.WaitExecutionRequest.SerializeToString,
            operations_pb2.Operation.FromString,
        )
        messages = list(call(re.WaitExecutionRequest(name=f"operations/{graph.ids['next']}"), timeout=60))
    stages, digests = [], []
    for message in messages:
        metadata = re.ExecuteOperationMetadata()
        assert message.metadata.Unpack(metadata)
        stages.append(metadata.stage)
        digests.append(metadata.action_digest.hash)
    assert stages[0] == re.ExecutionStage.QUEUED
    assert messages[-1].done
    assert digests[0] == ""
    assert digests[-1] == net.action(graph.ids["next"]).action.hash
