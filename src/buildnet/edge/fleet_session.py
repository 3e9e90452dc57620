"""One worker's session from the controller's side, and messages as what the fleet's core knows. Decides nothing.

What a node says of itself is bounded and printable before anything keeps it: names reach terminals, pages, the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from google.protobuf.message import DecodeError

from buildnet.edge.flow import Duplex
from buildnet.errors import BuildNetError, InvalidRequest
from buildnet.model.action import ActionKey, Lease, Outcome
from buildnet.model.amounts import AMOUNT_MAX, NOTHING, Amounts
from buildnet.model.caller import public_instance
from buildnet.model.node import SLOTS_MAX, Greeting, NodeView, WorkerOffer, check_node_id
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.amounts import amounts_message, amounts_of
from buildnet.wire.nodes import NODE_STATES
from buildnet.wire.usage import cpu_of

PROPERTIES_MAX: Final = 1000
_PROPERTY_CHARACTERS_MAX: Final = 1024
_RUNNING_MAX: Final = 4096
_HOSTNAME_CHARACTERS_MAX: Final = 255
_VERSION_CHARACTERS_MAX: Final = 64
_QUEUED_MAX: Final = 4096
# Of an Action or a Command that goes with its Assign.
_MESSAGE_BYTES_MAX: Final = 64 << 10

_STATES: Final = {word: state for state, word in NODE_STATES.items()}


@dataclass(slots=True)
class Session:
    """The controller's end of one worker's session; a WorkerLink. `changed` hears of every lease given or ended.

    `ended` says that nothing more is to be said; what is queued until then is still sent, and then `error`.
    """

    number: int
    greeting: Greeting
    running: tuple[int, ...]
    last_heard_s: float
    changed: Callable[[str], None]
    stream: Duplex
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    error: BuildNetError | None = None
    read: Callable[[str], bytes] | None = None
    # Ends the call when its peer takes nothing any more.
    abort: Callable[[], object] = lambda: None

    @property
    def node(self) -> str:
        """Whose it is."""
        return self.greeting.offer.node

    def _send(self, message: fleet_pb2.JoinResponse) -> None:
        if self.ended:
            return
        if self.stream.queued < _QUEUED_MAX:
            self.stream.put(message.SerializeToString())
        else:
            # A worker that reads nothing is lost; its leases go elsewhere.
            self.ended = True
            self.finished.set()

    async def served(self) -> bool:
        """Until the session is over; whether it was the worker that ended it.

        Raises:
            BuildNetError: what the worker is told, or sent wrongly.
        """
        finished = asyncio.ensure_future(self.finished.wait())
        ends: set[asyncio.Future[Any]] = {finished, self.stream.over}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished.cancel()
        if self.ended:
            await self.stream.sent()
            if self.error is not None:
                raise self.error
            return self.stream.over.done()
        # What the worker sent wrongly becomes the status of its session.
        self.stream.over.result()
        return True

    def assign(self, lease: Lease) -> None:
        """Send an Assign."""
        message = fleet_pb2.JoinResponse()
        message.assign.fence = lease.fence
        message.assign.instance_name = public_instance(lease.key.instance)
        message.assign.action_digest.CopyFrom(digest_message(lease.key.digest))
        message.assign.timeout.FromNanoseconds(round(lease.timeout_s * 1e9))
        message.assign.attempt = lease.attempt
        self._add_messages(message.assign, lease)
        message.assign.reserved.CopyFrom(amounts_message(lease.reserved))
        self._send(message)
        self.changed(self.node)

    def _add_messages(self, assign: fleet_pb2.Assign, lease: Lease) -> None:
        if self.read is None or lease.key.digest.size_bytes > _MESSAGE_BYTES_MAX:
            return
        # What cannot be read here the worker asks for itself, and says what is wrong with it.
        with suppress(BuildNetError, DecodeError):
            assign.action = self.read(lease.key.digest.text)
            command = re.Action.FromString(assign.action).command_digest
            if command.size_bytes <= _MESSAGE_BYTES_MAX:
                assign.command = self.read(digest_of(command).text)

    def cancel(self, fence: int, reason: str) -> None:
        """Send a Cancel."""
        message = fleet_pb2.JoinResponse()
        message.cancel.fence = fence
        message.cancel.reason = reason
        self._send(message)
        self.changed(self.node)

    def prefetch(self, key: ActionKey) -> None:
        """Send a Prefetch."""
        message = fleet_pb2.JoinResponse()
        message.prefetch.action_digest.CopyFrom(digest_message(key.digest))
        self._send(message)

    def settle(self, fence: int) -> None:
        """Send a Settled."""
        message = fleet_pb2.JoinResponse()
        message.settled.fence = fence
        self._send(message)
        self.changed(self.node)

    def log_taken(self, fence: int, offsets: Sequence[int], *, resend: bool) -> None:
        """Send a LogTaken."""
        message = fleet_pb2.JoinResponse()
        taken = message.log_taken
        taken.fence, taken.stdout_offset, taken.stderr_offset, taken.resend = fence, *offsets, resend
        self._send(message)

    def tell(self, message: fleet_pb2.JoinResponse) -> None:
        """Send what another room answers."""
        self._send(message)

    def drain(self) -> None:
        """Ask the worker to finish and leave."""
        message = fleet_pb2.JoinResponse()
        message.drain.SetInParent()
        self._send(message)

    def end(self, error: BuildNetError | None) -> None:
        """Say nothing more than what is queued, then this."""
        self.error = error
        self.ended = True
        self.finished.set()


def check_version(theirs: str, ours: str) -> None:
    """Refuse a worker of another minor version.

    Raises:
        InvalidRequest: with what to do.
    """
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise InvalidRequest(
            f"the worker is of version {theirs[:_VERSION_CHARACTERS_MAX]!a}, this controller of {ours}; "
            "install the same on both",
            field="hello.version",
        )


def greeting_of(hello: fleet_pb2.Hello, version: str) -> Greeting:
    """What a Hello says, bounded and printable.

    Raises:
        InvalidRequest: with the field and the reason.
    """
    if not hello.node_id or not hello.boot_id:
        raise InvalidRequest("Hello lacks node_id or boot_id", field="hello.node_id")
    check_node_id(hello.node_id, "hello.node_id")
    check_node_id(hello.boot_id, "hello.boot_id")
    if not 1 <= hello.slots <= SLOTS_MAX:
        raise InvalidRequest(f"slots must be from 1 to {SLOTS_MAX}", field="hello.slots")
    if len(hello.properties) > PROPERTIES_MAX:
        raise InvalidRequest(f"more than {PROPERTIES_MAX} properties", field="hello.properties")
    if len(hello.running) > _RUNNING_MAX:
        raise InvalidRequest(f"more than {_RUNNING_MAX} running attempts", field="hello.running")
    for item in hello.properties:
        if len(item.name) + len(item.value) > _PROPERTY_CHARACTERS_MAX or not (item.name + item.value).isprintable():
            raise InvalidRequest(
                f"the property {item.name[:64]!a} is over {_PROPERTY_CHARACTERS_MAX} characters with its value, "
                "or holds control characters",
                field="hello.properties",
            )
    check_version(hello.version, version)
    offer = WorkerOffer(
        node=hello.node_id,
        boot_id=hello.boot_id,
        slots=hello.slots,
        properties=frozenset((p.name, p.value) for p in hello.properties),
        capacity=_amounts_of(hello, "capacity"),
        action_max=_amounts_of(hello, "action_max") or NOTHING,
    )
    return Greeting(
        offer,
        _for_people(hello.hostname, _HOSTNAME_CHARACTERS_MAX),
        _for_people(hello.version, _VERSION_CHARACTERS_MAX),
        times.unix_ms(hello.sent_at) if hello.HasField("sent_at") else None,
    )


def _amounts_of(hello: fleet_pb2.Hello, name: Literal["capacity", "action_max"]) -> Amounts | None:
    if not hello.HasField(name):
        return None
    said = getattr(hello, name)
    if max(said.cpu_milli, said.memory_bytes, said.disk_bytes, said.gpus) > AMOUNT_MAX:
        raise InvalidRequest(f"an amount of the {name} is over {AMOUNT_MAX}", field=f"hello.{name}")
    return amounts_of(said)


def _for_people(text: str, characters_max: int) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:characters_max])


def running_of(hello: fleet_pb2.Hello) -> tuple[int, ...]:
    """Fences of what the worker still runs.

    Raises:
        InvalidRequest: an action's digest is malformed.
    """
    return tuple(fence for fence, _ in ((r.fence, digest_of(r.action_digest)) for r in hello.running))


def outcome_of(done: fleet_pb2.Done, node: str) -> Outcome:
    """How an attempt ended, as the worker says."""
    result = re.ActionResult.FromString(done.result)
    cpu_ms, cpu_from = cpu_of(result)
    return Outcome(
        code=done.error_code or "ok",
        result=done.result or None,
        message=done.status.message,
        worker=node,
        exit_code=result.exit_code,
        missing=tuple(digest_of(digest).text for digest in done.missing),
        cpu_ms=cpu_ms,
        cpu_from=cpu_from,
    )


def node_message(
    view: NodeView, *, running: int, used: Amounts = NOTHING, last_seen_unix_ms: int, node_key: str = ""
) -> fleet_pb2.Node:
    """A node as people see it."""
    node = fleet_pb2.Node(
        node_id=view.node,
        state=_STATES[view.state],
        cordoned=view.policy.cordoned,
        draining=view.draining,
        running=running,
        asked_by=view.asked_by,
        node_key=node_key,
    )
    if last_seen_unix_ms:
        node.last_seen.FromMilliseconds(last_seen_unix_ms)
    greeting = view.greeting
    if greeting is None:
        return node
    node.boot_id, node.slots = greeting.offer.boot_id, greeting.offer.slots
    node.hostname, node.version = greeting.hostname, greeting.version
    for name, value in sorted(greeting.offer.properties):
        node.properties.add(name=name, value=value)
    if (capacity := greeting.offer.capacity) is not None:
        node.capacity.CopyFrom(amounts_message(capacity))
        node.used.CopyFrom(amounts_message(used))
    node.joined_at.FromMilliseconds(view.joined_at_unix_ms)
    if view.skew_ms is not None:
        node.clock_skew.FromMilliseconds(view.skew_ms)
    return node
