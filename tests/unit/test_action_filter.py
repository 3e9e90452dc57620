"""Filters mean what they say, and pages go on where they ended, whatever came and went meanwhile."""

from __future__ import annotations

import pytest

from buildnet.edge import action_filter
from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Outcome, Wanted
from buildnet.model.caller import ANYBODY, Caller
from buildnet.model.digest import EMPTY
from buildnet.model.history import Requested
from buildnet.ports import Progress
from buildnet.scheduler.operation import Operation
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.actions import Described
from buildnet.wire.request_metadata import REQUEST_METADATA, requested_of


def operation(number: int, progress: Progress | None = None, instance: str = "") -> Operation:
    wanted = Wanted(ActionKey(instance, EMPTY), frozenset(), 1.0)
    return Operation(f"o{number}", wanted, 1000 * number, progress=progress or Progress("queued"))


OPERATIONS = [
    operation(5, Progress("waiting")),
    operation(4, Progress("queued"), "team/a"),
    operation(3, Progress("executing", worker="w1" * 16)),
    operation(2, Progress("completed", Outcome("ok", b"", worker="w2"), "w2")),
    operation(1, Progress("completed", Outcome("cancelled", None))),
    operation(0, Progress("completed", Outcome("node_down", None))),
]
SAID = {
    "o4": Described((), Requested("bazel", "run-1", "//a:b", "CppCompile")),
    "o3": Described((), Requested("bazel", "run-2", "//c", "CppCompile")),
}


def fitting(caller: Caller = ANYBODY, **fields: object) -> list[str]:
    wanted = action_pb2.ActionFilter(**fields)  # type: ignore[arg-type]
    fits = action_filter.fitting(wanted, caller, SAID.get, lambda id_: "g" if id_ == "o5" else "")
    return [one.id for one in OPERATIONS if fits(one)]


def test_each_field_leaves_out_the_others() -> None:
    everything = [one.id for one in OPERATIONS]
    assert fitting() == everything
    assert fitting(states=[action_pb2.ACTION_STATE_WAITING, action_pb2.ACTION_STATE_CANCELLED]) == ["o5", "o1"]
    assert fitting(states=[action_pb2.ACTION_STATE_FAILED]) == ["o0"]
    assert fitting(states=[action_pb2.ACTION_STATE_COMPLETED]) == ["o2"]
    assert fitting(filter_instance_name=True) == ["o5", "o3", "o2", "o1", "o0"]
    assert fitting(filter_instance_name=True, instance_name="team/a") == ["o4"]
    assert fitting(worker="w1w1") == ["o3"]
    assert fitting(mnemonic="CppCompile") == ["o4", "o3"]
    assert fitting(mnemonic="CppCompile", target_id="//c") == ["o3"]
    assert fitting(invocation_id="run-1") == ["o4"]
    assert fitting(graph_id="g") == ["o5"]
    assert fitting(submitted_since={"seconds": 3}, submitted_before={"seconds": 5}) == ["o4", "o3"]
    assert fitting(Caller(instances=("team",))) == ["o4"]


def test_pages_go_on_where_they_ended() -> None:
    token = action_filter.token_of(OPERATIONS[2])
    after = action_filter.after_of(token)
    assert [one.id for one in action_filter.later(iter(OPERATIONS), after)] == ["o2", "o1", "o0"]
    grown = [operation(6), *OPERATIONS]
    assert [one.id for one in action_filter.later(iter(grown), after)] == ["o2", "o1", "o0"]
    shrunk = [one for one in OPERATIONS if one.id != "o3"]
    assert [one.id for one in action_filter.later(iter(shrunk), after)] == ["o2", "o1", "o0"]
    assert list(action_filter.later(iter(OPERATIONS), None)) == OPERATIONS


@pytest.mark.parametrize("token", ["x", "1", ":o", "-1:o", "1e3:o", "9" * 30 + ":o"])
def test_a_token_of_somebody_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        action_filter.after_of(token)


def test_what_a_build_tool_says_is_kept_and_garbage_is_not() -> None:
    said = re.RequestMetadata(target_id="//a", action_mnemonic="M", tool_invocation_id="i" * 2000)
    found = requested_of([("other", "x"), (REQUEST_METADATA, said.SerializeToString())])
    assert found == Requested("", "i" * 1024, "//a", "M")
    for value in (b"\xff\xff", "text"):
        assert requested_of([(REQUEST_METADATA, value)]) == Requested()
