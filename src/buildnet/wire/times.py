"""Times of messages as numbers. They come from outside: a far one, which their own conversion refuses, is one too."""

from __future__ import annotations

from buildnet.wire._gen.google.protobuf import duration_pb2, timestamp_pb2

_MS_MAX = 2**53
# What a Timestamp may hold: the years 1 to 9999 (google/protobuf/timestamp.proto).
_TIMESTAMP_MS_MIN, _TIMESTAMP_MS_MAX = -62_135_596_800_000, 253_402_300_799_999


def nanoseconds(time: duration_pb2.Duration | timestamp_pb2.Timestamp) -> int:
    """Its length, or since 1970; up to 2^63 seconds either way."""
    return time.seconds * 1_000_000_000 + time.nanos


def unix_ms(time: timestamp_pb2.Timestamp) -> int:
    """Milliseconds since 1970, rounded down, within 2^53 either way: what a database and JSON can hold."""
    return max(-_MS_MAX, min(nanoseconds(time) // 1_000_000, _MS_MAX))


def set_unix_ms(time: timestamp_pb2.Timestamp, at_unix_ms: int) -> None:
    """Make it this moment, or the nearest that a Timestamp may hold."""
    time.FromMilliseconds(max(_TIMESTAMP_MS_MIN, min(at_unix_ms, _TIMESTAMP_MS_MAX)))


def seconds(duration: duration_pb2.Duration) -> float:
    """Its length in seconds."""
    return nanoseconds(duration) / 1e9
