"""What crosses a session, and the queue it waits in."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from buildnet.errors import InvalidRequest
from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message
from buildnet.worker.lease_book import Assigned, CancelAsked, DrainAsked, Settled
from buildnet.worker.messages import event_of, log_head
from buildnet.worker.outbox import Outbox
from buildnet.worker.stream import Excerpt

DIGEST = Digest.of(b"action")


def test_an_assign_says_all_of_the_lease() -> None:
    message = fleet_pb2.JoinResponse()
    message.assign.fence = 1 << 32 | 5
    message.assign.instance_name = "a/b"
    message.assign.action_digest.CopyFrom(digest_message(DIGEST))
    message.assign.timeout.FromMilliseconds(1500)
    message.assign.attempt = 2
    message.assign.action, message.assign.command = b"action", b"command"
    event = event_of(message)
    assert isinstance(event, Assigned)
    assignment = event.assignment
    assert (assignment.fence, assignment.attempt, assignment.timeout_s) == (1 << 32 | 5, 2, 1.5)
    assert (assignment.key.instance, assignment.key.digest) == ("a/b", DIGEST)
    assert (assignment.action, assignment.command) == (b"action", b"command")


def test_the_other_messages() -> None:
    cancel = fleet_pb2.JoinResponse(cancel=fleet_pb2.Cancel(fence=3, reason="why"))
    settled = fleet_pb2.JoinResponse(settled=fleet_pb2.Settled(fence=4))
    drain = fleet_pb2.JoinResponse(drain=fleet_pb2.Drain())
    assert event_of(cancel) == CancelAsked(3, "why")
    assert event_of(settled) == Settled(4)
    assert event_of(drain) == DrainAsked()


def test_a_welcome_cannot_come_twice() -> None:
    with pytest.raises(InvalidRequest, match="welcome"):
        event_of(fleet_pb2.JoinResponse(welcome=fleet_pb2.Welcome()))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_refused(data: bytes) -> None:
    with suppress(DecodeError, InvalidRequest):
        event_of(fleet_pb2.JoinResponse.FromString(data))


def next_of(outbox: Outbox) -> fleet_pb2.JoinRequest | None:
    body = outbox.next()
    if isinstance(body, Excerpt):
        body = body.head + b"x"
    return None if body is None else fleet_pb2.JoinRequest.FromString(body)


@given(st.integers(1, 600_000), st.integers(0, 1 << 62), st.none() | st.integers(0, 1 << 41))
def test_a_head_and_its_bytes_are_a_piece_of_a_log(size_bytes: int, offset: int, unix_ms: int | None) -> None:
    message = fleet_pb2.JoinRequest.FromString(log_head(1 << 40, 2, offset, size_bytes, unix_ms) + bytes(size_bytes))
    log = message.log
    assert (log.fence, log.stream, log.offset, log.data) == (1 << 40, 2, offset, bytes(size_bytes))
    assert (log.printed_at.ToMilliseconds() if log.HasField("printed_at") else None) == unix_ms


def test_a_log_gives_way_to_everything_else() -> None:
    pieces = [Excerpt(log_head(1, 1, offset, 1, 7), -1, offset, 1, lambda: None) for offset in range(3)]
    outbox = Outbox(lambda: pieces.pop(0) if pieces else None)
    accepted = fleet_pb2.JoinRequest(accepted=fleet_pb2.Accepted(fence=1))
    first = next_of(outbox)
    outbox.put(accepted)
    assert next_of(outbox) == accepted
    second = next_of(outbox)
    assert first is not None
    assert second is not None
    assert (first.log.offset, second.log.offset, second.log.printed_at.ToMilliseconds()) == (0, 1, 7)
    assert not outbox.closed
    outbox.close()
    assert outbox.closed
    assert [message.log.offset for message in [next_of(outbox)] if message] == [2]
    assert next_of(outbox) is None


def test_an_outbox_tells_of_all_that_can_be_asked_for() -> None:
    outbox = Outbox()
    told: list[str] = []
    outbox.put(fleet_pb2.JoinRequest(draining=fleet_pb2.Draining()))
    outbox.news = lambda: told.append("news")
    outbox.put(fleet_pb2.JoinRequest(draining=fleet_pb2.Draining()))
    outbox.log_waits()
    outbox.close()
    assert len(told) == 3
    messages = [next_of(outbox), next_of(outbox)]
    assert all(message is not None and message.HasField("draining") for message in messages)
