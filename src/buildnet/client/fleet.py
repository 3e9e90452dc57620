"""What a client may know of nodes and ask of them. It decides nothing: where a node stands is the server's word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from buildnet.client.patience import OnBreak, Patience, watched
from buildnet.errors import NotFound
from buildnet.model.amounts import Amounts
from buildnet.model.join_line import JoinLine
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.amounts import amounts_of
from buildnet.wire.nodes import JOIN_TOKEN_STATES, NODE_STATES

_FLEET: Final = "/buildnet.v1.FleetService/"
_PREFIX_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as a server knows it.

    `state` is joining, active, cordoned, draining, left or removed. `clock_skew_s` is its clock less the server's, None
    when it did not tell its time. Times are Unix seconds, None for never. `asked_by` is who cordoned or removed it, or
    asked it to drain; "" for a caller without credentials and for the node itself. `key` is that of a node that joined
    by a session of its own keys, "" for another. `tier` is how far the server trusts it, untrusted, trusted or local.
    `capacity` is what its actions may use together, `used` what is
    reserved of that now; both None when it told none.
    """

    node: str
    state: str
    hostname: str = ""
    version: str = ""
    slots: int = 0
    running: int = 0
    cordoned: bool = False
    draining: bool = False
    boot: str = ""
    joined_at_unix_s: float | None = None
    last_seen_unix_s: float | None = None
    clock_skew_s: float | None = None
    asked_by: str = ""
    key: str = ""
    tier: str = ""
    capacity: Amounts | None = None
    used: Amounts | None = None
    properties: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JoinTokenInfo:
    """A join token as a server keeps it. `state` is valid, used, expired or revoked; times are Unix seconds, None for
    never; `used_by` is the key of the node that joined with it; `tier` how far that is trusted.
    """

    id: str
    state: str
    made_at_unix_s: float
    expires_at_unix_s: float
    made_by: str = ""
    note: str = ""
    used_by: str = ""
    used_at_unix_s: float | None = None
    tier: str = "trusted"


Unary = Callable[[str, Any, type[Any]], Awaitable[Any]]
Stream = Callable[[str, Any, type[Any]], AsyncGenerator[Any, None]]


class FleetCalls:
    """The calls of FleetService, over a client's connection."""

    def __init__(self, unary: Unary, stream: Stream, patience: Patience) -> None:
        self._patience = patience
        self._unary = unary
        self._stream = stream

    async def nodes(self, *, include_absent: bool = False) -> list[NodeInfo]:
        """The nodes whose sessions are open, by id; with `include_absent` those that are known besides."""
        found: list[NodeInfo] = []
        token = ""
        while True:
            request = fleet_pb2.ListNodesRequest(include_absent=include_absent, page_token=token)
            answer = await self._unary(_FLEET + "ListNodes", request, fleet_pb2.ListNodesResponse)
            found += map(_info, answer.nodes)
            # A server that repeats a page is not asked for ever.
            if not answer.next_page_token or answer.next_page_token <= token:
                return found
            token = answer.next_page_token

    async def find(self, name: str) -> NodeInfo:
        """A node by its id, the beginning of it (4 letters or more), or its host's name.

        Raises:
            NotFound: none, or several, are called so.
        """
        known = await self.nodes(include_absent=True)
        for fits in (
            [node for node in known if node.node == name],
            [node for node in known if len(name) >= _PREFIX_MIN and node.node.startswith(name)],
            [node for node in known if name and node.hostname == name],
        ):
            if len(fits) == 1:
                return fits[0]
            if fits:
                ids = ", ".join(node.node for node in fits[:5])
                raise NotFound(f"{len(fits)} nodes are called {name!r}: {ids}; write one's id", kind="node", name=name)
        raise NotFound(
            f"no node is called {name!r}; `buildnet fleet ls --all` lists those that are known", kind="node", name=name
        )

    async def watch(self, *, on_break: OnBreak | None = None) -> AsyncIterator[NodeInfo | None]:
        """Every known node, then None, then nodes as they change, each as it is now. A connection that breaks is made
        again, for as long as a server that is started anew may take, and tells every known node again, then None;
        `on_break` is called with why.

        Raises:
            NodeDown: the server stayed away.
        """
        request = fleet_pb2.WatchNodesRequest()
        events = watched(
            lambda: self._stream(_FLEET + "WatchNodes", request, fleet_pb2.NodeEvent),
            self._patience.absence(),
            on_break,
        )
        async for event in events:
            yield None if event.complete else _info(event.node)

    async def drain(self, node: str) -> NodeInfo:
        """Let a node finish what it runs and leave. Repeat: safe.

        Raises:
            NotFound: it is not known or has no session.
        """
        request = fleet_pb2.DrainNodeRequest(node_id=node)
        return _info(await self._unary(_FLEET + "DrainNode", request, fleet_pb2.Node))

    async def cordon(self, node: str, *, cordoned: bool = True) -> NodeInfo:
        """Give a node no more work, or work again. Repeat: safe.

        Raises:
            NotFound: it is not known.
        """
        request = fleet_pb2.CordonNodeRequest(node_id=node, cordoned=cordoned)
        return _info(await self._unary(_FLEET + "CordonNode", request, fleet_pb2.Node))

    async def remove(self, node: str) -> NodeInfo:
        """Close a node's session; it may not join until it is allowed. It need not be known. Repeat: safe."""
        request = fleet_pb2.RemoveNodeRequest(node_id=node)
        return _info((await self._unary(_FLEET + "RemoveNode", request, fleet_pb2.RemoveNodeResponse)).node)

    async def allow(self, node: str) -> None:
        """Let a removed node join again. Repeat: safe.

        Raises:
            NotFound: nothing is known of it.
        """
        await self._unary(_FLEET + "AllowNode", fleet_pb2.AllowNodeRequest(node_id=node), fleet_pb2.AllowNodeResponse)

    async def set_tier(self, node: str, tier: str) -> NodeInfo:
        """Trust a node that joined by its key so far, `untrusted` or `trusted`. Repeat: safe.

        Raises:
            NotFound: it has not joined by a key of its own.
            InvalidRequest: the tier is none that may be given.
        """
        request = fleet_pb2.SetNodeTierRequest(node_id=node, tier=tier)
        return _info(await self._unary(_FLEET + "SetNodeTier", request, fleet_pb2.Node))

    async def new_token(
        self, target: str, *, lifetime_s: int, note: str = "", tier: str = "", carrier: str = ""
    ) -> tuple[JoinTokenInfo, JoinLine]:
        """Make a join token, and the line by which one worker joins at `target`, HOST:PORT, or by a `carrier` there,
        `https` or `http`. It is told this once. The worker is `trusted`, or of the tier that is given.

        Raises:
            InvalidRequest: the lifetime or the note is out of bounds, or the tier is none that may be given.
        """
        request = fleet_pb2.CreateJoinTokenRequest(note=note, tier=tier)
        request.lifetime.FromSeconds(lifetime_s)
        made = await self._unary(_FLEET + "CreateJoinToken", request, fleet_pb2.CreateJoinTokenResponse)
        line = JoinLine(target, made.organisation, made.controller_key, made.term, made.secret, carrier)
        # What a server says is checked as if a person had pasted it.
        return _token_info(made.token), JoinLine.parse(line.text)

    async def join_tokens(self) -> list[JoinTokenInfo]:
        """Join tokens, the newest first; those that ended more than a week ago are forgotten."""
        request = fleet_pb2.ListJoinTokensRequest()
        answer = await self._unary(_FLEET + "ListJoinTokens", request, fleet_pb2.ListJoinTokensResponse)
        return [_token_info(token) for token in answer.tokens]

    async def revoke_token(self, token_id: str) -> JoinTokenInfo:
        """Let a join token be of no use. A node that has joined with it stays. Repeat: safe.

        Raises:
            NotFound: there is no such token.
        """
        request = fleet_pb2.RevokeJoinTokenRequest(id=token_id)
        return _token_info(await self._unary(_FLEET + "RevokeJoinToken", request, fleet_pb2.JoinToken))


def _token_info(token: fleet_pb2.JoinToken) -> JoinTokenInfo:
    return JoinTokenInfo(
        id=token.id,
        state=JOIN_TOKEN_STATES.get(token.state, "unknown"),
        made_at_unix_s=token.made_at.ToNanoseconds() / 1e9,
        expires_at_unix_s=token.expires_at.ToNanoseconds() / 1e9,
        made_by=token.made_by,
        note=token.note,
        used_by=token.used_by,
        used_at_unix_s=token.used_at.ToNanoseconds() / 1e9 if token.HasField("used_at") else None,
        tier=token.tier or "trusted",
    )


def _info(node: fleet_pb2.Node) -> NodeInfo:
    properties: dict[str, list[str]] = {}
    for item in node.properties:
        properties.setdefault(item.name, []).append(item.value)
    return NodeInfo(
        node=node.node_id,
        state=NODE_STATES.get(node.state, "unknown"),
        hostname=node.hostname,
        version=node.version,
        slots=node.slots,
        running=node.running,
        cordoned=node.cordoned,
        draining=node.draining,
        boot=node.boot_id,
        joined_at_unix_s=node.joined_at.ToNanoseconds() / 1e9 if node.HasField("joined_at") else None,
        last_seen_unix_s=node.last_seen.ToNanoseconds() / 1e9 if node.HasField("last_seen") else None,
        clock_skew_s=node.clock_skew.ToNanoseconds() / 1e9 if node.HasField("clock_skew") else None,
        asked_by=node.asked_by,
        key=node.node_key,
        tier=node.tier,
        capacity=amounts_of(node.capacity) if node.HasField("capacity") else None,
        used=amounts_of(node.used) if node.HasField("capacity") else None,
        properties=properties,
    )
