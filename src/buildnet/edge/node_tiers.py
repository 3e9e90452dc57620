"""How far each node is trusted, and what that asks of it. A node that joined by no key of its own is given no other
tier than its way in: anybody with such a token could come under its id.

What an administrator says is kept and in the ledger before a session is of another tier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Final, Protocol

from buildnet.edge.bridge import Call
from buildnet.errors import BuildNetError, InvalidRequest, NotFound
from buildnet.model.caller import LOCAL_WORKER, Caller
from buildnet.model.effect import EFFECT_PREFIX
from buildnet.model.entry import Value
from buildnet.model.node import WorkerOffer
from buildnet.model.tier import Tier

# What a worker offers only if it can keep commands from all else.
_KEPT: Final = frozenset(
    (EFFECT_PREFIX + name, level) for name, level in (("network", "none"), ("read", "declared"), ("write", "declared"))
)
_LOOSE: Final = frozenset({(EFFECT_PREFIX + "write", "ambient")})


class Trusted(Protocol):
    """Who joined by a key, and how far each is trusted; `buildnet.access.members.Members` is one."""

    def tier_of(self, node: str) -> Tier | None:
        """The tier of a node, None for one that joined by no key. It does not block."""
        ...

    def set_tier(self, node: str, tier: Tier) -> None:
        """Keep another tier of a node that has one. Blocks."""
        ...


class NodeTiers:
    """Tiers by node, over the keys that have joined."""

    def __init__(
        self,
        members: Trusted,
        append: Callable[[str, Mapping[str, Value]], Awaitable[None]],
        strict: Collection[str] = (),
    ) -> None:
        """`strict` are the tiers on which an action writes nothing but what it declares."""
        self._members = members
        self._append = append
        self._strict = frozenset(strict)
        # One at a time: what is kept and what is written must not pass each other.
        self._setting = asyncio.Lock()

    def tier_of(self, node: str) -> Tier | None:
        """How far a node that joined by its key is trusted, None for another. It does not block."""
        return self._members.tier_of(node)

    def publishes(self, node: str) -> bool:
        """Whether what this node made may be everybody's. It does not block."""
        return self._members.tier_of(node) != "untrusted"

    def offer_of(self, offer: WorkerOffer, caller: Caller) -> tuple[WorkerOffer, bool]:
        """What a node offers with the tier that it has here, and whether it is to be strict.

        Raises:
            InvalidRequest: it is to be strict and cannot be.
        """
        tier: Tier = "local" if caller.subject == LOCAL_WORKER and not caller.node else "trusted"
        tier = self._members.tier_of(offer.node) or tier
        if tier not in self._strict:
            return replace(offer, tier=tier), False
        if missing := sorted(_KEPT - offer.properties):
            lacks = ", ".join(f"{name}={level}" for name, level in missing)
            raise InvalidRequest(
                f"nodes of the tier {tier} are strict here, and this one cannot enforce {lacks}; `buildnet doctor` "
                "there says why, or leave the tier out of --strict-tier",
                field="hello.properties",
            )
        return replace(offer, tier=tier, properties=offer.properties - _LOOSE), True

    async def set(self, node: str, tier: Tier, call: Call) -> bool:
        """Trust a node so far from now on; whether that is news.

        Raises:
            NotFound: no node with a key of its own has this id.
            BuildNetError: it could not be kept or written; nothing was changed.
        """
        async with self._setting:
            was = self._members.tier_of(node)
            if was is None:
                raise NotFound(
                    f"no node {node} has joined by a key of its own, and trust is given to keys; join it by a line: "
                    "buildnet fleet tokens new --tier untrusted",
                    kind="node",
                    name=node,
                )
            if was == tier:
                return False
            await asyncio.to_thread(self._members.set_tier, node, tier)
            facts: dict[str, Value] = {"node": node, "tier": tier, "was": was, "by": call.caller.subject}
            try:
                await self._append("node.tier_set", {**facts, "peer": call.peer})
            except BuildNetError:
                await asyncio.to_thread(self._members.set_tier, node, was)
                raise
            return True
