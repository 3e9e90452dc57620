"""The history of an action is told whatever clock its worker had."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildnet.edge.explain import _message
from buildnet.model.action import ActionKey
from buildnet.model.digest import Digest
from buildnet.model.history import PastOperation
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.protobuf.timestamp_pb2 import Timestamp
from buildnet.wire.history import ran_of

NOW_MS = 1_700_000_000_000
times = st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))


@given(times, times)
def test_far_times_of_a_worker_are_told_as_the_nearest_that_can_be(start: Timestamp, end: Timestamp) -> None:
    result = re.ActionResult()
    result.execution_metadata.worker_start_timestamp.CopyFrom(start)
    result.execution_metadata.execution_start_timestamp.CopyFrom(start)
    result.execution_metadata.execution_completed_timestamp.CopyFrom(end)
    ran = ran_of(result)
    assert ran.worker_started_at_unix_ms is not None
    # As the history keeps it (history/store.py).
    queued_ms = ran.worker_started_at_unix_ms - NOW_MS
    key = ActionKey("", Digest.of(b"an action"))
    told = _message(PastOperation(1, "o", key, NOW_MS, NOW_MS, ran=ran, queued_ms=queued_ms))
    assert told.ran.ToMilliseconds() == ran.ran_ms
    assert told.queued.ToMilliseconds() == queued_ms
    assert told.ran.ToJsonString(), "it is one that protobuf takes"
    assert told.queued.ToJsonString()
