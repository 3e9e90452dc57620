"""What a command used is told by its worker; a worker that tells nonsense does no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2
from buildnet.wire.usage import CPU_MS_MAX, cpu_of

SECONDS = st.integers(-(2**63), 2**63 - 1)
NANOS = st.integers(-(2**31), 2**31 - 1)


def test_what_was_measured_is_told() -> None:
    result = re.ActionResult()
    result.execution_metadata.virtual_execution_duration.seconds = 9
    usage = action_pb2.Usage(max_rss_bytes=4096)
    usage.user_cpu.FromNanoseconds(1_250_000_000)
    usage.system_cpu.FromNanoseconds(500_000_000)
    result.execution_metadata.auxiliary_metadata.add().Pack(usage)
    assert cpu_of(re.ActionResult.FromString(result.SerializeToString())) == (1750, "usage")


def test_else_how_long_it_took_is_told_as_such() -> None:
    result = re.ActionResult()
    assert cpu_of(result) == (0, "")
    result.execution_metadata.execution_start_timestamp.seconds = 5
    result.execution_metadata.execution_completed_timestamp.seconds = 7
    assert cpu_of(result) == (2000, "wall")
    result.execution_metadata.virtual_execution_duration.nanos = 9_900_000
    assert cpu_of(result) == (9, "wall")


@pytest.mark.parametrize("value", [b"\xff", b"\x0a\x05\x08"])
def test_metadata_that_cannot_be_read_tells_nothing(value: bytes) -> None:
    result = re.ActionResult()
    detail = result.execution_metadata.auxiliary_metadata.add()
    detail.Pack(action_pb2.Usage())
    detail.value = value
    assert cpu_of(result) == (0, "")


@given(SECONDS, NANOS, SECONDS, NANOS, st.booleans())
def test_a_worker_is_believed_within_bounds(first: int, nanos: int, second: int, more: int, measured: bool) -> None:
    result = re.ActionResult()
    if measured:
        usage = action_pb2.Usage()
        usage.user_cpu.seconds, usage.user_cpu.nanos = first, nanos
        usage.system_cpu.seconds, usage.system_cpu.nanos = second, more
        result.execution_metadata.auxiliary_metadata.add().Pack(usage)
    else:
        metadata = result.execution_metadata
        metadata.execution_start_timestamp.seconds, metadata.execution_start_timestamp.nanos = first, nanos
        metadata.execution_completed_timestamp.seconds, metadata.execution_completed_timestamp.nanos = second, more
    cpu_ms, known = cpu_of(result)
    assert 0 <= cpu_ms <= CPU_MS_MAX
    assert known == ("usage" if measured else "wall")
