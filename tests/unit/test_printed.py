"""Pieces of logs as workers send them: whatever time one names, its followers get a record."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildnet._native import Body
from buildnet.edge.action_logs import _record
from buildnet.edge.bridge import Parted
from buildnet.edge.printed import Printed, log_piece_of, said_of
from buildnet.wire._gen.buildnet.v1 import action_pb2, fleet_pb2

LONG = bytes(16 << 10)


def sent(data: bytes, seconds: int, nanos: int) -> fleet_pb2.JoinRequest:
    message = fleet_pb2.JoinRequest()
    log = message.log
    log.fence, log.stream, log.offset, log.data = 7, fleet_pb2.LOG_STREAM_STDOUT, 3, data
    log.printed_at.seconds, log.printed_at.nanos = seconds, nanos
    return message


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_a_follower_gets_what_a_worker_printed_at_any_time(seconds: int, nanos: int) -> None:
    said = said_of(Body(sent(LONG, seconds, nanos).SerializeToString()))
    assert isinstance(said, Printed)
    piece = log_piece_of(sent(b"short", seconds, nanos).log)
    assert said.piece.printed_at_unix_ms == piece.printed_at_unix_ms, "long or short: at the same time"
    long = _record(said.piece, 7)
    assert isinstance(long, Parted)
    short = _record(piece, 7)
    assert isinstance(short, action_pb2.LogRecord)
    records = action_pb2.LogRecord.FromString(long.head + bytes(long.rest)), short
    assert [record.data for record in records] == [LONG, b"short"]
    for record in records:
        assert record.printed_at.ToJsonString() >= "1970", "it is one that protobuf takes"
