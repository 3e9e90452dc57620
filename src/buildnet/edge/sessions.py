"""Who may join by a session of its own keys: let in, bound to one id, ledgered, put out. Believes no key that the door
has not seen proven.

What a node joined with is in the ledger before it is let in; a crash between the two is made good when it dials again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from buildnet.access.members import Members, TokenRefused
from buildnet.catalog.pins import Pins
from buildnet.edge.bridge import Greeted
from buildnet.errors import BuildNetError, Forbidden
from buildnet.model.caller import Caller
from buildnet.model.entry import Value
from buildnet.ports import Clock

log = logging.getLogger(__name__)

# Names of nodes that are refused again and again: each is told to the ledger once.
_TOLD_MAX: Final = 10_000

Facts = Mapping[str, Value]


class Ender(Protocol):
    """Ends open sessions; the door's bridge is one."""

    def end_sessions(self, key: str, error: BuildNetError) -> int:
        """End every session of the node with this key, telling it why; return how many those are."""
        ...


class Sessions:
    """The door's gate, and what the fleet asks of keys."""

    def __init__(
        self,
        members: Members,
        pins: Pins,
        clock: Clock,
        *,
        record: Callable[[str, Facts], None],
        append: Callable[[str, Facts], Awaitable[None]],
        removed: Callable[[str], BuildNetError | None],
    ) -> None:
        """`removed` says whether the node with an id or a key may not join, and what it is told then."""
        self._members = members
        self._pins = pins
        self._clock = clock
        self._record = record
        self._append = append
        self._removed = removed
        self._told: OrderedDict[str, None] = OrderedDict()
        # One at a time, so that a node that dials twice at once joins once.
        self._joining = asyncio.Lock()
        self._ender: Ender | None = None
        self.tokens_refused = 0

    def over(self, ender: Ender | None) -> None:
        """Sessions are open there from now on; None once they are no more, so that it is not held any longer."""
        self._ender = ender

    async def admit(self, greeted: Greeted) -> None:
        """Let a node in that has joined, or joins now.

        Raises:
            TokenRefused: it has not joined, and its token does not let it.
            Forbidden: it was removed.
        """
        if (removed := self._removed(greeted.key)) is not None:
            raise removed
        async with self._joining:
            try:
                member = await asyncio.to_thread(
                    self._members.admit, greeted.key, greeted.token, self._clock.now_unix_ms()
                )
            except TokenRefused as error:
                self._refused(greeted, error)
                raise
            if member.node and (removed := self._removed(member.node)) is not None:
                self._tell_once(member.node, greeted)
                raise removed
            if not member.is_ledgered:
                facts: dict[str, Value] = {"token": member.token_id, "key": member.key, "peer": greeted.peer}
                await self._append("join_token.used", facts)
                await asyncio.to_thread(self._members.ledgered, member.key)
        said: dict[str, Value] = {"session": greeted.session, "key": greeted.key, "node": member.node}
        self._record("session.opened", {**said, "pattern": greeted.pattern, "peer": greeted.peer})

    def _refused(self, greeted: Greeted, error: TokenRefused) -> None:
        self.tokens_refused += 1
        log.warning("a node at %s was not let in: %s (key %.16s)", greeted.peer, error.message, greeted.key)
        # Whoever holds a token that is of no use may make any number of keys: it is told once for each reason. A token
        # that is not known names nothing, so it is only counted.
        if error.is_news:
            facts: dict[str, Value] = {"token": error.token_id, "reason": error.reason}
            self._record("join_token.refused", {**facts, "key": greeted.key, "peer": greeted.peer})

    def _tell_once(self, node: str, greeted: Greeted) -> None:
        if node in self._told:
            return
        self._told[node] = None
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        self._record("session.refused", {"node": node, "key": greeted.key, "reason": "removed", "peer": greeted.peer})

    def rekeyed(self, session: int, key: str, rekeys: int) -> None:
        """See buildnet.edge.bridge.Gate."""
        self._record("session.rekeyed", {"session": session, "key": key, "rekeys": rekeys})

    def ended(self, session: int, key: str, reason: str, rekeys: int) -> None:
        """See buildnet.edge.bridge.Gate."""
        self._record("session.closed", {"session": session, "key": key, "reason": reason, "rekeys": rekeys})

    # What the fleet asks.

    async def check_hello(self, node: str, caller: Caller) -> None:
        """Check that a node has the key that its session has proven, or that it joined by none.

        Raises:
            Forbidden: the id is another node's.
            BadSignature: the node has announced under another key.
        """
        if not caller.node:
            if self._members.key_of(node):
                raise Forbidden(
                    f"node {node} has joined by a key of its own; join it with a join line: buildnet fleet tokens new"
                )
            return
        if self._members.key_of(node) == caller.node:
            return
        async with self._joining:
            fresh = await asyncio.to_thread(self._members.check_id, caller.node, node)
            # Its announcements are signed by the same key.
            self._pins.pin(node, bytes.fromhex(caller.node))
            if fresh:
                await self._append("node.key_bound", {"node": node, "key": caller.node})
                await asyncio.to_thread(self._members.bind, caller.node, node)

    def key_of(self, node: str) -> str:
        """The key of a node that joined by sessions; "" for another."""
        return self._members.key_of(node)

    def put_out(self, node: str, error: BuildNetError) -> None:
        """End every session of a node, by its id or its key."""
        key = self._members.key_of(node) or node
        if self._ender is not None and len(key) == 64:
            self._ender.end_sessions(key, error)
