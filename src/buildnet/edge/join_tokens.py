"""Join tokens as administrators make, list and revoke them. A token is told once, to who made it, and is in the ledger
by its id before that.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from buildnet.access.members import LIFETIME_S, JoinToken, Members
from buildnet.edge.bridge import Call, Method
from buildnet.model.entry import Value
from buildnet.model.join_line import TOKEN_BYTES, JoinLine
from buildnet.model.tier import GIVEN, Tier, tier_of
from buildnet.ports import Clock
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.nodes import JOIN_TOKEN_STATES

_FLEET: Final = "/buildnet.v1.FleetService/"
_STATES: Final = {word: state for state, word in JOIN_TOKEN_STATES.items()}


@dataclass(frozen=True, slots=True)
class Self:
    """What a join line says of this controller."""

    organisation: str
    key: str
    term: int


class JoinTokens:
    """Three calls of FleetService, and the line that a controller prints at its start."""

    def __init__(
        self,
        members: Members,
        clock: Clock,
        me: Self,
        append: Callable[[str, Mapping[str, Value]], Awaitable[None]],
    ) -> None:
        self._members = members
        self._clock = clock
        self._me = me
        self._append = append

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = fleet_pb2
        return {
            _FLEET + "CreateJoinToken": Method(
                "unary", self.create, pb.CreateJoinTokenRequest, pb.CreateJoinTokenResponse
            ),
            _FLEET + "ListJoinTokens": Method("unary", self.ls, pb.ListJoinTokensRequest, pb.ListJoinTokensResponse),
            _FLEET + "RevokeJoinToken": Method("unary", self.revoke, pb.RevokeJoinTokenRequest, pb.JoinToken),
        }

    async def line(self, target: str) -> JoinLine:
        """A line with a new token, for who can read what this process prints."""
        _, secret = await self._make(LIFETIME_S, "", "printed at start", "", "trusted")
        return JoinLine(target, self._me.organisation, self._me.key, self._me.term, secret)

    async def create(self, request: fleet_pb2.CreateJoinTokenRequest, call: Call) -> fleet_pb2.CreateJoinTokenResponse:
        """Make a token.

        Raises:
            InvalidRequest: the lifetime or the note is out of bounds, or the tier is none that may be given.
            Overloaded: as many are kept as may be.
        """
        tier = tier_of(request.tier or "trusted", "tier", GIVEN)
        lifetime_s = int(times.seconds(request.lifetime)) if request.HasField("lifetime") else LIFETIME_S
        token, secret = await self._make(lifetime_s, call.caller.subject, request.note, call.peer, tier)
        return fleet_pb2.CreateJoinTokenResponse(
            token=_message(token),
            secret=secret,
            organisation=self._me.organisation,
            controller_key=self._me.key,
            term=self._me.term,
        )

    async def _make(self, lifetime_s: int, by: str, note: str, peer: str, tier: Tier) -> tuple[JoinToken, str]:
        secret = secrets.token_bytes(TOKEN_BYTES)

        def make() -> JoinToken:
            now_unix_ms = self._clock.now_unix_ms()
            return self._members.make(
                secret, now_unix_ms=now_unix_ms, lifetime_s=lifetime_s, by=by, note=note, tier=tier
            )

        token = await asyncio.to_thread(make)
        facts: dict[str, Value] = {"token": token.id, "expires_at_unix_ms": token.expires_at_unix_ms}
        await self._append("join_token.created", {**facts, "note": note, "by": by, "peer": peer, "tier": tier})
        return token, base64.b32encode(secret).decode()

    async def ls(self, request: fleet_pb2.ListJoinTokensRequest, call: Call) -> fleet_pb2.ListJoinTokensResponse:
        """Those that are kept, the newest first."""
        tokens = await asyncio.to_thread(self._members.tokens, self._clock.now_unix_ms())
        return fleet_pb2.ListJoinTokensResponse(tokens=map(_message, tokens))

    async def revoke(self, request: fleet_pb2.RevokeJoinTokenRequest, call: Call) -> fleet_pb2.JoinToken:
        """Let a token be of no use. Repeat: safe.

        Raises:
            NotFound: there is no such token.
        """
        token, fresh = await asyncio.to_thread(self._members.revoke, request.id, self._clock.now_unix_ms())
        if fresh:
            await self._append("join_token.revoked", {"token": token.id, "by": call.caller.subject, "peer": call.peer})
        return _message(token)


def _message(token: JoinToken) -> fleet_pb2.JoinToken:
    message = fleet_pb2.JoinToken(
        id=token.id,
        state=_STATES[token.state],
        made_by=token.made_by,
        note=token.note,
        used_by=token.used_by,
        tier=token.tier,
    )
    message.made_at.FromMilliseconds(token.made_at_unix_ms)
    message.expires_at.FromMilliseconds(token.expires_at_unix_ms)
    if token.used_at_unix_ms:
        message.used_at.FromMilliseconds(token.used_at_unix_ms)
    return message
