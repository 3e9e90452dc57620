"""Times that clients send, near and far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildnet.wire import times
from buildnet.wire._gen.google.protobuf.duration_pb2 import Duration
from buildnet.wire._gen.google.protobuf.timestamp_pb2 import Timestamp

whole = st.integers(-(2**63), 2**63 - 1)
parts = st.integers(-(2**31), 2**31 - 1)


@given(whole, parts)
def test_every_time_that_a_message_can_hold_is_a_number(seconds: int, nanos: int) -> None:
    far = Timestamp(seconds=seconds, nanos=nanos)
    exact_ms = (seconds * 1_000_000_000 + nanos) // 1_000_000
    assert times.unix_ms(far) == max(times.MS_MIN, min(exact_ms, times.MS_MAX))
    assert times.seconds(Duration(seconds=seconds, nanos=nanos)) == pytest.approx(seconds + nanos / 1e9)


@given(st.integers(-(2**64), 2**64))
def test_every_moment_becomes_the_nearest_that_a_message_may_hold(ms: int) -> None:
    stamp, year_1, end_of_9999 = Timestamp(), Timestamp(), Timestamp()
    year_1.FromJsonString("0001-01-01T00:00:00Z")
    end_of_9999.FromJsonString("9999-12-31T23:59:59.999Z")
    times.set_unix_ms(stamp, ms)
    assert stamp.ToJsonString(), "it is one that protobuf takes"
    assert stamp.ToMilliseconds() == max(year_1.ToMilliseconds(), min(ms, end_of_9999.ToMilliseconds()))


def test_a_duration_holds_the_difference_of_any_two() -> None:
    apart = Duration()
    apart.FromMilliseconds(times.MS_MAX - times.MS_MIN)
    assert apart.ToJsonString(), "it is one that protobuf takes"
    apart.FromMilliseconds(times.MS_MIN - times.MS_MAX)
    assert apart.ToJsonString()


@given(st.integers(-(2**40), 2**40))
def test_what_protobuf_takes_is_converted_as_protobuf_does(ms: int) -> None:
    stamp, length = Timestamp(), Duration()
    stamp.FromMilliseconds(ms)
    length.FromMilliseconds(ms)
    assert times.unix_ms(stamp) == ms
    assert times.nanoseconds(length) == length.ToNanoseconds()
