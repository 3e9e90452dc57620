"""What an action asks to use, read from its platform properties: what is malformed is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.history import Requested
from buildnet.wire.asked import asked_of
from buildnet.wire.request_metadata import REQUEST_METADATA, requested_of


def test_amounts_are_read_and_all_else_is_left_alone() -> None:
    properties = [("resource:cpus", "1.5"), ("resource:memory_bytes", "4096"), ("resource:gpus", "1"), ("os", "linux")]
    assert asked_of(properties) == Amounts(1500, 4096, 0, 1)
    assert asked_of([("os", "linux")]) is NOTHING


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resource:cpus", "0"),
        ("resource:cpus", "0.0001"),
        ("resource:cpus", "-1"),
        ("resource:cpus", "many"),
        ("resource:cpus", "nan"),
        ("resource:cpus", "1e3"),
        ("resource:memory_bytes", "1.5"),
        ("resource:memory_bytes", "4GiB"),
        ("resource:memory_bytes", str((1 << 50) + 1)),
        ("resource:gpus", "1025"),
        ("resource:disk", "1"),
    ],
)
def test_what_is_no_amount_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked_of([(name, value)])
    assert name in refused.value.message


def test_an_amount_that_is_asked_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        asked_of([("resource:cpus", "1"), ("resource:cpus", "2")])


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        asked = asked_of([("resource:cpus", text)])
    except InvalidRequest:
        return
    assert 0 < asked.cpu_milli < 10**9


@given(st.binary(max_size=64))
def test_a_header_that_cannot_be_read_costs_nobody_his_call(data: bytes) -> None:
    assert isinstance(requested_of([("x", "y"), (REQUEST_METADATA, data)]), Requested)


def test_an_invocation_is_read() -> None:
    from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

    said = re.RequestMetadata(tool_invocation_id="i" * 2000, target_id="//a:b").SerializeToString()
    assert requested_of([(REQUEST_METADATA, said)]) == Requested(invocation="i" * 1024, target="//a:b")
    assert requested_of([]) == Requested()
