"""The worker's words as messages of FleetService.Join, and the controller's as events of the lease
book.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

from buildnet.errors import InvalidRequest
from buildnet.model.action import ActionKey, Outcome, Properties
from buildnet.model.amounts import Amounts
from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.amounts import amounts_message
from buildnet.wire.lengths import field_of
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.lease_book import (
    Assigned,
    Assignment,
    CancelAsked,
    DrainAsked,
    Event,
    Settled,
    TellAccepted,
    TellCommandEnded,
    TellDone,
    TellDraining,
)

# A door takes messages of 4 MiB; a Done that no session can carry would be repeated for ever.
DONE_BYTES_MAX: Final = (4 << 20) - (64 << 10)
_UNKNOWN = 2


def hello_of(
    config: WorkerConfig,
    identity: Identity,
    properties: Properties,
    held: Iterable[Assignment],
    *,
    sent_unix_ms: int,
) -> fleet_pb2.JoinRequest:
    """The first message of a session."""
    message = fleet_pb2.JoinRequest()
    hello = message.hello
    hello.node_id, hello.boot_id = identity.node, identity.boot
    hello.version, hello.hostname, hello.slots = config.version, config.hostname, config.slots
    hello.sent_at.FromMilliseconds(sent_unix_ms)
    if (capacity := config.capacity) is not None:
        hello.capacity.CopyFrom(amounts_message(capacity))
    limits = config.limits
    if limits.memory_bytes or limits.disk_bytes:
        most = Amounts(memory_bytes=limits.memory_bytes or 0, disk_bytes=limits.disk_bytes or 0)
        hello.action_max.CopyFrom(amounts_message(most))
    for name, value in sorted(properties):
        hello.properties.add(name=name, value=value)
    for assignment in held:
        running = hello.running.add(fence=assignment.fence)
        running.action_digest.CopyFrom(digest_message(assignment.key.digest))
    return message


def heartbeat_of(running: Iterable[Assignment], *, sent_unix_ms: int) -> fleet_pb2.JoinRequest:
    """Renews the leases of what runs."""
    message = fleet_pb2.JoinRequest()
    message.heartbeat.sent_at.FromMilliseconds(sent_unix_ms)
    message.heartbeat.fences.extend(assignment.fence for assignment in running)
    return message


def told(effect: TellAccepted | TellCommandEnded | TellDone | TellDraining) -> fleet_pb2.JoinRequest:
    """The message that an effect asks to send."""
    match effect:
        case TellAccepted():
            message = fleet_pb2.JoinRequest()
            message.accepted.fence = effect.fence
            return message
        case TellCommandEnded():
            message = fleet_pb2.JoinRequest()
            message.command_ended.fence = effect.fence
            return message
        case TellDraining():
            message = fleet_pb2.JoinRequest()
            message.draining.SetInParent()
            return message
        case TellDone():
            return _done_of(effect.fence, effect.outcome)


def _done_of(fence: int, outcome: Outcome) -> fleet_pb2.JoinRequest:
    message = fleet_pb2.JoinRequest()
    done = message.done
    done.fence = fence
    if outcome.code != "ok":
        done.error_code = outcome.code
        # The slug is what counts; its gRPC code is for the controller's one map to choose.
        done.status.code = _UNKNOWN
        done.status.message = outcome.message
    if outcome.result is not None:
        done.result = outcome.result
    for text in outcome.missing:
        done.missing.append(digest_message(Digest.parse(text)))
    if message.ByteSize() > DONE_BYTES_MAX:
        size = message.ByteSize()
        return _done_of(
            fence,
            Outcome(
                "too_large",
                None,
                f"the result's own message has {size} bytes, over the limit of {DONE_BYTES_MAX}; "
                "declare a directory as the output instead of its many files",
            ),
        )
    return message


def log_head(fence: int, stream: int, offset: int, size_bytes: int, printed_at_unix_ms: int | None) -> bytes:
    """A JoinRequest that holds a piece of a log, encoded up to the `size_bytes` of data, which are to follow."""
    log = fleet_pb2.LogChunk(fence=fence, offset=offset)
    log.stream = cast("fleet_pb2.LogStream", stream)
    if printed_at_unix_ms is not None:
        log.printed_at.FromMilliseconds(printed_at_unix_ms)
    head = log.SerializeToString() + field_of(fleet_pb2.LogChunk.DATA_FIELD_NUMBER, size_bytes)
    return field_of(fleet_pb2.JoinRequest.LOG_FIELD_NUMBER, len(head) + size_bytes) + head


def event_of(message: fleet_pb2.JoinResponse) -> Event:
    """What a message of the controller means to the lease book.

    Raises:
        InvalidRequest: it is malformed, or cannot come within a session.
    """
    match message.WhichOneof("message"):
        case "assign":
            assign = message.assign
            key = ActionKey(assign.instance_name, digest_of(assign.action_digest))
            timeout_s = assign.timeout.seconds + assign.timeout.nanos / 1e9
            if timeout_s <= 0:
                raise InvalidRequest("an Assign without a timeout", field="assign.timeout")
            counted = assign.reserved
            amounts = (counted.cpu_milli, counted.memory_bytes, counted.disk_bytes)
            given = (assign.action, assign.command)
            return Assigned(Assignment(assign.fence, key, timeout_s, assign.attempt, *amounts, *given))
        case "cancel":
            return CancelAsked(message.cancel.fence, message.cancel.reason)
        case "settled":
            return Settled(message.settled.fence)
        case "drain":
            return DrainAsked()
        case other:
            raise InvalidRequest(f"{other} cannot come within a session", field="message")
