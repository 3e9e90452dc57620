"""What a client makes of a result: it has one, whatever clock its worker had."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import Link
from buildnet.client.results import result_of
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

NO_LINK = cast(Link, None)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_a_workers_far_time_is_no_reason_to_have_no_result(seconds: int, nanos: int) -> None:
    response = re.ExecuteResponse()
    metadata = response.result.execution_metadata
    metadata.execution_start_timestamp.seconds = 1_700_000_000
    metadata.execution_completed_timestamp.seconds = seconds
    metadata.execution_completed_timestamp.nanos = nanos
    result = result_of(response, Digest.of(b"an action"), "operation", None, NO_LINK)
    assert result.execution_s == (seconds * 10**9 + nanos - 1_700_000_000 * 10**9) / 1e9
    assert result.queued_s is None
