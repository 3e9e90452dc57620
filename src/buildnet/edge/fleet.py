"""FleetService: one outbound session per worker, translated to and from the events of scheduler and fleet.

A session that ends, for whatever reason, is a lost worker: the scheduler decides what that means. Where a node stands
is decided in `scheduler/fleet.py`. What an administrator asks is kept and in the ledger before it is in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from buildnet.edge.announcements import Announcements
from buildnet.edge.bridge import Call, Method
from buildnet.edge.fleet_session import Session, greeting_of, node_message, outcome_of, running_of
from buildnet.edge.fleet_watch import Watchers
from buildnet.edge.flow import Duplex
from buildnet.edge.log_spool import LogPiece
from buildnet.edge.logs import LogBook
from buildnet.edge.node_tiers import NodeTiers
from buildnet.edge.printed import Printed, checked_piece, log_piece_of, said_of
from buildnet.edge.sessions import Sessions
from buildnet.errors import BuildNetError, DeadlinePassed, InvalidRequest, NodeDown, NotFound
from buildnet.model.entry import Value
from buildnet.model.node import NodePolicy, check_node_id
from buildnet.model.tier import GIVEN, Tier, tier_of
from buildnet.ports import Clock
from buildnet.scheduler import fleet_events as fleet
from buildnet.scheduler.fleet import FleetCore, removed_error
from buildnet.scheduler.service import Scheduler
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import fleet_pb2

log = logging.getLogger(__name__)

_FLEET = "/buildnet.v1.FleetService/"
HEARTBEAT_INTERVAL_S = 1
LEASE_DURATION_S = 4
# No lease depends on it: it shows that the worker's own loop turns, where the connection shows only that its kernel
# does.
IDLE_HEARTBEAT_INTERVAL_S = 5
# Six beats: leases have their own, shorter deadline, and a machine under load is not a machine that is gone.
SILENCE_S_MAX = 30.0
# A removed worker is told why; one that takes nothing is cut off.
_CLOSE_GRACE_S: Final = 0.5
_HELLO_TIMEOUT_S: Final = 10.0
_PAGE_BYTES: Final = 1 << 20

Policies = Mapping[str, NodePolicy]
Facts = Mapping[str, Value]


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
        record: Callable[[str, Facts], None],
        append: Callable[[str, Facts], Awaitable[None]],
        policies: Policies,
        keep: Callable[[Policies], Awaitable[None]],
        announcements: Announcements,
        tiers: NodeTiers,
        sessions: Sessions | None = None,
        read: Callable[[str], bytes] | None = None,
    ) -> None:
        """`read` returns a small blob of the store by its digest text: what a worker is to run goes with the asking."""
        self._read_blob = read
        self._keys = sessions
        self._tiers = tiers
        self._announcements = announcements
        self._scheduler = scheduler
        self._logs = logs
        self._clock = clock
        self._controller_id = controller_id
        self._version = version
        self._record = record
        self._append = append
        self._keep = keep
        self._core = FleetCore(policies)
        self._sessions: dict[int, Session] = {}
        self._session_next = 1
        self._watchers = Watchers()
        # One ask at a time: what is kept and what is in force must not pass each other.
        self._asking = asyncio.Lock()
        self._settling: set[asyncio.Future[None]] = set()

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = fleet_pb2
        return {
            _FLEET + "Join": Method("bidi", self.join, pb.JoinRequest, pb.JoinResponse, direct=True, read=said_of),
            _FLEET + "ListNodes": Method("unary", self.list_nodes, pb.ListNodesRequest, pb.ListNodesResponse),
            _FLEET + "WatchNodes": Method("server_stream", self.watch_nodes, pb.WatchNodesRequest, pb.NodeEvent),
            _FLEET + "DrainNode": Method("unary", self.drain_node, pb.DrainNodeRequest, pb.Node),
            _FLEET + "CordonNode": Method("unary", self.cordon_node, pb.CordonNodeRequest, pb.Node),
            _FLEET + "RemoveNode": Method("unary", self.remove_node, pb.RemoveNodeRequest, pb.RemoveNodeResponse),
            _FLEET + "AllowNode": Method("unary", self.allow_node, pb.AllowNodeRequest, pb.AllowNodeResponse),
            _FLEET + "SetNodeTier": Method("unary", self.set_node_tier, pb.SetNodeTierRequest, pb.Node),
        }

    async def run(self) -> None:
        """End sessions of workers that say nothing, until cancelled."""
        while True:
            began_s = self._clock.monotonic_s()
            await asyncio.sleep(IDLE_HEARTBEAT_INTERVAL_S)
            now_s = self._clock.monotonic_s()
            if now_s - began_s > 2 * IDLE_HEARTBEAT_INTERVAL_S:
                # This process itself stood still: what was said meanwhile is not read yet.
                continue
            self.end_silent(now_s)

    def end_silent(self, now_s: float) -> None:
        """End the sessions of workers that have said nothing for `SILENCE_S_MAX`, by the monotonic clock."""
        for session in list(self._sessions.values()):
            if now_s - session.last_heard_s > SILENCE_S_MAX and session.error is None:
                error = NodeDown(f"node {session.node} said nothing for {SILENCE_S_MAX:.0f} s", url="")
                log.warning("%s; its session is ended, and its actions run elsewhere", error.message)
                self._close(session, error)

    # Workers.

    async def join(self, stream: Duplex, call: Call) -> None:
        """Serve one worker until its session ends."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                first = await stream.first()
        except TimeoutError:
            raise DeadlinePassed(f"no Hello within {_HELLO_TIMEOUT_S:.0f} s", timeout_s=_HELLO_TIMEOUT_S) from None
        if first is None or isinstance(first, Printed) or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session begins with Hello", field="hello")
        now_unix_ms = self._clock.now_unix_ms()
        greeting = greeting_of(first.hello, self._version)
        if self._keys is not None:
            await self._keys.check_hello(greeting.offer.node, call.caller)
        offer, strict = self._tiers.offer_of(greeting.offer, call.caller)
        greeting = replace(greeting, offer=offer)
        number, self._session_next = self._session_next, self._session_next + 1
        running, heard_s = running_of(first.hello), self._clock.monotonic_s()
        session = Session(number, greeting, running, heard_s, self._watchers.changed, stream)
        task = asyncio.current_task()
        assert task is not None
        session.abort, session.read = task.cancel, self._read_blob
        self._sessions[number] = session
        clean = False
        try:
            self._apply(fleet.Hello(number, greeting, now_unix_ms, call.caller.subject))
            if session.error is not None:
                raise session.error
            stream.put(self._welcome(strict=strict).SerializeToString())
            self._apply(fleet.Welcomed(number))
            stream.attach(lambda request: self._hear(session, request))
            clean = await session.served()
        finally:
            stream.detach()
            del self._sessions[number]
            self._apply(fleet.Ended(number, clean, self._last_seen_unix_ms(session)))

    def _hear(self, session: Session, request: fleet_pb2.JoinRequest | Printed) -> Coroutine[Any, Any, None] | None:
        node = session.node
        if not self._core.is_current(session.number):
            # It was displaced or removed: what it says now counts for nothing.
            return None
        session.last_heard_s = self._clock.monotonic_s()
        if isinstance(request, Printed):
            return self._hear_log(session, request.fence, lambda: checked_piece(request.piece))
        match request.WhichOneof("message"):
            case "heartbeat":
                self._scheduler.heartbeat(node, tuple(request.heartbeat.fences))
                if request.heartbeat.HasField("sent_at"):
                    sent_unix_ms = times.unix_ms(request.heartbeat.sent_at)
                    self._apply(fleet.TimeSaid(session.number, sent_unix_ms, self._clock.now_unix_ms()))
            case "accepted":
                self._scheduler.accepted(node, request.accepted.fence)
            case "command_ended":
                self._scheduler.command_ended(node, request.command_ended.fence)
            case "log":
                return self._hear_log(session, request.log.fence, lambda: log_piece_of(request.log))
            case "done":
                self._scheduler.done(node, request.done.fence, outcome_of(request.done, node))
            case "announcement":
                session.tell(self._announcements.take(node, request.announcement))
            case "draining":
                self._apply(fleet.DrainSaid(session.number))
            case other:
                raise InvalidRequest(f"{other} cannot come within a session", field="message")
        return None

    def _hear_log(
        self, session: Session, fence: int, piece: Callable[[], LogPiece]
    ) -> Coroutine[Any, Any, None] | None:
        # What is printed under a lease that is lost, or another's, is nobody's.
        if self._scheduler.leased(session.node, fence) and not self._logs.take_now(fence, printed := piece(), session):
            return self._logs.take(fence, printed, session)
        return None

    def _welcome(self, *, strict: bool) -> fleet_pb2.JoinResponse:
        message = fleet_pb2.JoinResponse()
        message.welcome.controller_id = self._controller_id
        message.welcome.version = self._version
        message.welcome.heartbeat_interval.seconds = HEARTBEAT_INTERVAL_S
        message.welcome.lease_duration.seconds = LEASE_DURATION_S
        message.welcome.idle_heartbeat_interval.seconds = IDLE_HEARTBEAT_INTERVAL_S
        message.welcome.strict = strict
        message.welcome.takes_command_ended = True
        return message

    # What the core decided.

    def _apply(self, event: fleet.Event) -> None:
        for effect in self._core.step(event):
            match effect:
                case fleet.Refuse():
                    self._sessions[effect.session].end(effect.error)
                case fleet.Begin():
                    session = self._sessions[effect.session]
                    offer = session.greeting.offer
                    self._announcements.joined(offer.node, offer.boot_id)
                    self._scheduler.worker_joined(offer, session, session.running, cordoned=effect.cordoned)
                case fleet.Lose():
                    self._scheduler.worker_lost(effect.node, may_return=effect.may_return)
                    self._announcements.lost(effect.node)
                case fleet.Close():
                    self._close(self._sessions[effect.session], effect.error)
                case fleet.TellDrain():
                    self._sessions[effect.session].drain()
                case fleet.NoMoreWork():
                    self._scheduler.drain(effect.node)
                case fleet.SetCordon():
                    self._scheduler.cordon(effect.node, effect.cordoned)
                case fleet.Record():
                    self._record(effect.kind, effect.facts)
                case fleet.Changed():
                    self._watchers.changed(effect.node)

    def _close(self, session: Session, error: BuildNetError) -> None:
        # What it runs is not wanted any more: the scheduler gives it to somebody else.
        for fence in self._scheduler.leases_of(session.node):
            session.cancel(fence, error.message)
        session.end(error)
        asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, self._cut, session.number)

    def _cut(self, number: int) -> None:
        if (session := self._sessions.get(number)) is not None:
            session.abort()

    # People.

    def _node(self, name: str) -> fleet_pb2.Node:
        view = self._core.view(name)
        if view is None:
            raise NotFound(f"node {name} has just been forgotten", kind="node", name=name)
        session = self._sessions.get(view.session) if view.session is not None else None
        last_seen_unix_ms = view.last_seen_unix_ms if session is None else self._last_seen_unix_ms(session)
        running = len(self._scheduler.leases_of(name)) if session is not None else 0
        key = "" if self._keys is None else self._keys.key_of(name)
        used = self._scheduler.used_of(name)
        message = node_message(view, running=running, used=used, last_seen_unix_ms=last_seen_unix_ms, node_key=key)
        message.tier = self._tiers.tier_of(name) or (session.greeting.offer.tier if session is not None else "")
        return message

    def find(self, name: str) -> fleet_pb2.Node:
        """A node as it is now; an empty message for one that is not known."""
        return fleet_pb2.Node() if self._core.view(name) is None else self._node(name)

    def _last_seen_unix_ms(self, session: Session) -> int:
        silent_s = self._clock.monotonic_s() - session.last_heard_s
        return self._clock.now_unix_ms() - round(silent_s * 1000)

    def list_nodes(self, request: fleet_pb2.ListNodesRequest, call: Call) -> fleet_pb2.ListNodesResponse:
        """Nodes by id, a page at a time."""
        answer = fleet_pb2.ListNodesResponse()
        size_bytes = 0
        for name in self._core.names():
            view = self._core.view(name)
            if name <= request.page_token or view is None or (view.session is None and not request.include_absent):
                continue
            if size_bytes > _PAGE_BYTES:
                answer.next_page_token = answer.nodes[-1].node_id
                break
            node = self._node(name)
            size_bytes += node.ByteSize()
            answer.nodes.append(node)
        return answer

    async def watch_nodes(self, request: fleet_pb2.WatchNodesRequest, call: Call) -> AsyncIterator[fleet_pb2.NodeEvent]:
        """Every known node, then changes."""
        async for name in self._watchers.watch(self._core.names()):
            if name is None:
                yield fleet_pb2.NodeEvent(complete=True)
            elif (view := self._core.view(name)) is not None:
                yield fleet_pb2.NodeEvent(node=self._node(name), left=view.session is None)

    def removed(self, name: str) -> BuildNetError | None:
        """What a node is told that was removed, by its id or its key; None for one that was not."""
        policy = self._core.policies.get(name)
        return removed_error(name) if policy is not None and policy.removed else None

    async def drain_node(self, request: fleet_pb2.DrainNodeRequest, call: Call) -> fleet_pb2.Node:
        """Let a node finish and leave."""
        return await self._ask(fleet.DrainAsked(check_node_id(request.node_id), call.caller.subject), call)

    async def cordon_node(self, request: fleet_pb2.CordonNodeRequest, call: Call) -> fleet_pb2.Node:
        """Give a node no more work, or work again."""
        ask = fleet.CordonAsked(check_node_id(request.node_id), request.cordoned, call.caller.subject)
        return await self._ask(ask, call)

    async def remove_node(self, request: fleet_pb2.RemoveNodeRequest, call: Call) -> fleet_pb2.RemoveNodeResponse:
        """Close a node's session for good."""
        node = await self._ask(fleet.RemoveAsked(check_node_id(request.node_id), call.caller.subject), call)
        return fleet_pb2.RemoveNodeResponse(node=node)

    async def allow_node(self, request: fleet_pb2.AllowNodeRequest, call: Call) -> fleet_pb2.AllowNodeResponse:
        """Let a removed node in again.

        Raises:
            NotFound: nothing is known of it.
        """
        ask = fleet.AllowAsked(check_node_id(request.node_id), call.caller.subject)
        if self._core.view(ask.node) is None:
            raise NotFound(f"no node {ask.node} was removed", kind="node", name=ask.node)
        await self._decide(ask, call.peer)
        return fleet_pb2.AllowNodeResponse()

    async def set_node_tier(self, request: fleet_pb2.SetNodeTierRequest, call: Call) -> fleet_pb2.Node:
        """Trust a node more or less; what it runs is run anew, where that may be.

        Raises:
            NotFound: it has not joined by a key of its own.
        """
        node, tier = check_node_id(request.node_id), tier_of(request.tier, "tier", GIVEN)
        # As a task of its own: a caller that goes away meanwhile leaves nothing half-way.
        await self._shielded(self._set_tier(node, tier, call))
        if self._core.view(node) is None:
            # It has no session and had none since the start: all that is known of it is its key.
            return fleet_pb2.Node(node_id=node, state=fleet_pb2.NODE_STATE_LEFT, tier=tier)
        return self._node(node)

    async def _set_tier(self, node: str, tier: Tier, call: Call) -> None:
        if not await self._tiers.set(node, tier, call):
            return
        view = self._core.view(node)
        if view is not None and view.session is not None:
            self._close(self._sessions[view.session], NodeDown(f"node {node} is now {tier}; dial again", url=""))

    async def _ask(self, ask: fleet.Ask, call: Call) -> fleet_pb2.Node:
        await self._decide(ask, call.peer)
        return self._node(ask.node)

    async def _decide(self, ask: fleet.Ask, peer: str) -> None:
        """Settle it as a task of its own: a caller that goes away meanwhile leaves nothing half-way."""
        await self._shielded(self._settle(ask, peer))

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _settle(self, ask: fleet.Ask, peer: str) -> None:
        """Keep it, write it, and only then let it be in force."""
        async with self._asking:
            plan, before = self._core.plan(ask), self._core.policies
            if plan is None:
                return
            if plan.policies is not before:
                await self._keep(plan.policies)
            try:
                await self._append(plan.kind, {**plan.facts, "peer": peer})
            except BuildNetError:
                if plan.policies is not before:
                    await self._keep(before)
                raise
            self._apply(ask)
            if isinstance(ask, fleet.RemoveAsked) and self._keys is not None:
                # Its blobs travel in sessions of their own; the one with its calls is told first.
                error = removed_error(ask.node)
                asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, self._keys.put_out, ask.node, error)
