"""What crosses a session, and the queue it waits in."""

from __future__ import annotations

import asyncio
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
from buildnet.worker.messages import LOG_CHUNK_BYTES_MAX, event_of, log_messages
from buildnet.worker.outbox import Outbox

DIGEST = Digest.of(b"action")


def test_an_assign_says_all_of_the_lease() -> None:
    message = fleet_pb2.JoinResponse()
    message.assign.fence = 1 << 32 | 5
    message.assign.instance_name = "a/b"
    message.assign.action_digest.CopyFrom(digest_message(DIGEST))
    message.assign.timeout.FromMilliseconds(1500)
    message.assign.attempt = 2
    event = event_of(message)
    assert isinstance(event, Assigned)
    assignment = event.assignment
    assert (assignment.fence, assignment.attempt, assignment.timeout_s) == (1 << 32 | 5, 2, 1.5)
    assert (assignment.key.instance, assignment.key.digest) == ("a/b", DIGEST)


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


@given(st.integers(0, 1 << 20), st.integers(0, 3 * LOG_CHUNK_BYTES_MAX))
def test_log_chunks_join_to_what_was_printed(offset: int, size: int) -> None:
    position = offset
    for message in log_messages(1, 2, offset, b"x" * size):
        assert message.log.offset == position
        assert 0 < len(message.log.data) <= LOG_CHUNK_BYTES_MAX
        position += len(message.log.data)
    assert position == offset + size


async def test_a_full_outbox_drops_logs_and_nothing_else() -> None:
    outbox = Outbox()
    for message in log_messages(1, 1, 0, b"x" * (8 << 20)):
        outbox.put_log(message)
    outbox.put(fleet_pb2.JoinRequest(accepted=fleet_pb2.Accepted(fence=1)))
    outbox.close()
    taken = []
    while (message := await outbox.get()) is not None:
        taken.append(message)
    assert taken[-1].accepted.fence == 1
    assert sum(len(message.log.data) for message in taken) == 1 << 20


async def test_an_outbox_has_room_again_once_logs_are_taken() -> None:
    outbox = Outbox()
    chunk = next(log_messages(1, 1, 0, b"x" * LOG_CHUNK_BYTES_MAX))
    for _ in range(100):
        outbox.put_log(chunk)
        assert await outbox.get() == chunk


async def test_a_reader_waits_for_what_is_put_later() -> None:
    outbox = Outbox()
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(outbox.get())
        outbox.put(fleet_pb2.JoinRequest(draining=fleet_pb2.Draining()))
    message = reader.result()
    assert message is not None
    assert message.HasField("draining")
