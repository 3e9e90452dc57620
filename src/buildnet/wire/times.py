"""Times of messages as numbers. They come from outside: a far one, which their own conversion refuses, is one too."""

from __future__ import annotations

from typing import Final

from buildnet.wire._gen.google.protobuf import duration_pb2, timestamp_pb2

# What a Timestamp may hold: the years 1 to 9999 (google/protobuf/timestamp.proto). So can a database and JSON, and a
# Duration holds the difference of any two.
MS_MIN: Final = -62_135_596_800_000
MS_MAX: Final = 253_402_300_799_999


def nanoseconds(time: duration_pb2.Duration | timestamp_pb2.Timestamp) -> int:
    """Its length, or since 1970; up to 2^63 seconds either way."""
    return time.seconds * 1_000_000_000 + time.nanos


def unix_ms(time: timestamp_pb2.Timestamp) -> int:
    """Milliseconds since 1970, rounded down, from `MS_MIN` to `MS_MAX`: the nearest that a Timestamp may hold."""
    return bounded_ms(nanoseconds(time) // 1_000_000)


def bounded_ms(at_unix_ms: int) -> int:
    """This moment, or the nearest that a Timestamp may hold."""
    return max(MS_MIN, min(at_unix_ms, MS_MAX))


def set_unix_ms(time: timestamp_pb2.Timestamp, at_unix_ms: int) -> None:
    """Make it this moment, or the nearest that a Timestamp may hold."""
    time.FromMilliseconds(bounded_ms(at_unix_ms))


def seconds(duration: duration_pb2.Duration) -> float:
    """Its length in seconds."""
    return nanoseconds(duration) / 1e9
