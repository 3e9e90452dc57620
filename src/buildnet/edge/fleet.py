"""FleetService: one outbound session per worker, translated to and from the scheduler's events.

A session that ends, for whatever reason, is a lost worker: the scheduler decides what that means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from buildnet.edge.announcements import Announcements
from buildnet.edge.bridge import Call, Method
from buildnet.edge.logs import LogBook
from buildnet.errors import InvalidRequest
from buildnet.model.action import Lease, Outcome
from buildnet.model.caller import public_instance
from buildnet.model.node import WorkerOffer
from buildnet.ports import Clock
from buildnet.scheduler.service import Scheduler
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_message, digest_of

_FLEET = "/buildnet.v1.FleetService/"
HEARTBEAT_INTERVAL_S = 1
LEASE_DURATION_S = 4
_PROPERTIES_MAX = 1000
_SLOTS_MAX = 1024
_QUEUED_MAX = 4096


@dataclass(slots=True)
class _Session:
    """The controller's end of one worker's session; a WorkerLink."""

    offer: WorkerOffer
    hostname: str
    version: str
    joined_at_unix_ms: int
    outbox: asyncio.Queue[fleet_pb2.JoinResponse] = field(default_factory=lambda: asyncio.Queue(_QUEUED_MAX))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False

    def _send(self, message: fleet_pb2.JoinResponse) -> None:
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            # A worker that reads nothing is lost; its leases go elsewhere.
            self.ended.set()

    def assign(self, lease: Lease) -> None:
        """Send an Assign."""
        message = fleet_pb2.JoinResponse()
        message.assign.fence = lease.fence
        message.assign.instance_name = public_instance(lease.key.instance)
        message.assign.action_digest.CopyFrom(digest_message(lease.key.digest))
        message.assign.timeout.FromNanoseconds(round(lease.timeout_s * 1e9))
        message.assign.attempt = lease.attempt
        self._send(message)

    def cancel(self, fence: int, reason: str) -> None:
        """Send a Cancel."""
        message = fleet_pb2.JoinResponse()
        message.cancel.fence = fence
        message.cancel.reason = reason
        self._send(message)

    def settle(self, fence: int) -> None:
        """Send a Settled."""
        message = fleet_pb2.JoinResponse()
        message.settled.fence = fence
        self._send(message)

    def tell(self, message: fleet_pb2.JoinResponse) -> None:
        """Send what another room answers."""
        self._send(message)

    def drain(self) -> None:
        """Ask the worker to finish and leave."""
        message = fleet_pb2.JoinResponse()
        message.drain.SetInParent()
        self._send(message)


class FleetService:
    """Join, and what a person may ask of the nodes that joined."""

    def __init__(
        self,
        scheduler: Scheduler,
        logs: LogBook,
        clock: Clock,
        *,
        controller_id: str,
        version: str,
        record: Callable[[str, dict[str, str | int]], None],
        announcements: Announcements,
    ) -> None:
        self._announcements = announcements
        self._scheduler = scheduler
        self._logs = logs
        self._clock = clock
        self._controller_id = controller_id
        self._version = version
        self._record = record
        self._sessions: dict[str, _Session] = {}

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = fleet_pb2
        return {
            _FLEET + "Join": Method("bidi", self.join, pb.JoinRequest, pb.JoinResponse),
            _FLEET + "ListNodes": Method("unary", self.list_nodes, pb.ListNodesRequest, pb.ListNodesResponse),
        }

    async def join(
        self, requests: AsyncIterator[fleet_pb2.JoinRequest], call: Call
    ) -> AsyncIterator[fleet_pb2.JoinResponse]:
        """Serve one worker until its session ends."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session begins with Hello", field="hello")
        session = self._session_of(first.hello)
        node = session.offer.node
        older = self._sessions.get(node)
        if older is not None:
            # The worker came back before its old connection was seen to break.
            older.ended.set()
            self._scheduler.worker_lost(node)
        self._sessions[node] = session
        yield self._welcome()
        running = tuple((r.fence, digest_of(r.action_digest)) for r in first.hello.running)
        self._announcements.joined(node, session.offer.boot_id)
        self._scheduler.worker_joined(session.offer, session, tuple(f for f, _ in running))
        self._record("node.joined", {"node": node, "slots": session.offer.slots})
        reader = asyncio.ensure_future(self._read(session, requests))
        ended = asyncio.ensure_future(session.ended.wait())
        try:
            async for message in self._outgoing(session, reader, ended):
                yield message
        finally:
            reader.cancel()
            ended.cancel()
            if self._sessions.get(node) is session:
                del self._sessions[node]
                self._scheduler.worker_lost(node)
                self._announcements.lost(node)
                self._record("node.left", {"node": node, "drained": int(session.draining)})

    async def _outgoing(
        self, session: _Session, reader: asyncio.Future[Any], ended: asyncio.Future[Any]
    ) -> AsyncIterator[fleet_pb2.JoinResponse]:
        getter: asyncio.Future[Any] = asyncio.ensure_future(session.outbox.get())
        try:
            while True:
                done, _ = await asyncio.wait({getter, reader, ended}, return_when=asyncio.FIRST_COMPLETED)
                if getter in done:
                    yield getter.result()
                    getter = asyncio.ensure_future(session.outbox.get())
                    continue
                if reader in done:
                    # What the worker sent wrongly becomes the status of its session.
                    reader.result()
                return
        finally:
            getter.cancel()

    async def _read(self, session: _Session, requests: AsyncIterator[fleet_pb2.JoinRequest]) -> None:
        node = session.offer.node
        async for request in requests:
            match request.WhichOneof("message"):
                case "heartbeat":
                    self._scheduler.heartbeat(node, tuple(request.heartbeat.fences))
                case "accepted":
                    self._scheduler.accepted(node, request.accepted.fence)
                case "log":
                    log = request.log
                    self._logs.append(log.fence, log.stream, log.offset, log.data)
                case "done":
                    self._scheduler.done(node, request.done.fence, _outcome_of(request.done, node))
                case "announcement":
                    session.tell(self._announcements.take(node, request.announcement))
                case "draining":
                    session.draining = True
                    self._scheduler.drain(node)
                case other:
                    raise InvalidRequest(f"{other} cannot come within a session", field="message")

    def _session_of(self, hello: fleet_pb2.Hello) -> _Session:
        if not hello.node_id or not hello.boot_id:
            raise InvalidRequest("Hello lacks node_id or boot_id", field="hello.node_id")
        if not 1 <= hello.slots <= _SLOTS_MAX:
            raise InvalidRequest(f"slots must be from 1 to {_SLOTS_MAX}", field="hello.slots")
        if len(hello.properties) > _PROPERTIES_MAX:
            raise InvalidRequest(f"more than {_PROPERTIES_MAX} properties", field="hello.properties")
        if hello.version.split(".")[:2] != self._version.split(".")[:2]:
            raise InvalidRequest(
                f"the worker is of version {hello.version}, this controller of {self._version}; "
                "install the same on both",
                field="hello.version",
            )
        offer = WorkerOffer(
            node=hello.node_id,
            boot_id=hello.boot_id,
            slots=hello.slots,
            properties=frozenset((p.name, p.value) for p in hello.properties),
        )
        return _Session(offer, hello.hostname, hello.version, self._clock.now_unix_ms())

    def _welcome(self) -> fleet_pb2.JoinResponse:
        message = fleet_pb2.JoinResponse()
        message.welcome.controller_id = self._controller_id
        message.welcome.version = self._version
        message.welcome.heartbeat_interval.seconds = HEARTBEAT_INTERVAL_S
        message.welcome.lease_duration.seconds = LEASE_DURATION_S
        return message

    def list_nodes(self, request: fleet_pb2.ListNodesRequest, call: Call) -> fleet_pb2.ListNodesResponse:
        """The nodes whose sessions are open."""
        answer = fleet_pb2.ListNodesResponse()
        for session in sorted(self._sessions.values(), key=lambda s: s.offer.node):
            node = answer.nodes.add(
                node_id=session.offer.node,
                boot_id=session.offer.boot_id,
                hostname=session.hostname,
                version=session.version,
                slots=session.offer.slots,
            )
            for name, value in sorted(session.offer.properties):
                node.properties.add(name=name, value=value)
            node.joined_at.FromMilliseconds(session.joined_at_unix_ms)
        return answer


def _outcome_of(done: fleet_pb2.Done, node: str) -> Outcome:
    exit_code = re.ActionResult.FromString(done.result).exit_code if done.result else 0
    return Outcome(
        code=done.error_code or "ok",
        result=done.result or None,
        message=done.status.message,
        worker=node,
        exit_code=exit_code,
        missing=tuple(digest_of(digest).text for digest in done.missing),
    )
