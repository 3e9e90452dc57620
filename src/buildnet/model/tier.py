"""How far a controller trusts a node, in order. Its controller says it of a node; no node says it of itself.

A result of an untrusted node belongs to callers in a namespace alone: what such callers bring about is kept apart from
what everybody builds on (`model/caller.py`). So an action whose result is everybody's runs on a trusted node at least,
whatever it asks for.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from buildnet.errors import InvalidRequest
from buildnet.model.action import TIER, Properties

Tier = Literal["untrusted", "trusted", "local"]

TIERS: Final[tuple[Tier, ...]] = get_args(Tier)
"""The least trusted first. `local` is the worker that the controller itself started."""

GIVEN: Final[tuple[Tier, ...]] = ("untrusted", "trusted")
"""Those that a person may give."""

_RANK: Final[dict[str, int]] = {tier: rank for rank, tier in enumerate(TIERS)}
_UNTRUSTED: Final = (TIER, "untrusted")


def tier_of(text: str, field: str, among: tuple[Tier, ...] = TIERS) -> Tier:
    """The tier with this name.

    Raises:
        InvalidRequest: there is none.
    """
    for tier in among:
        if tier == text:
            return tier
    raise InvalidRequest(f"{text[:32]!a} is no tier; there are {', '.join(among)}", field=field)


def may_take(tier: str, required: str) -> bool:
    """Whether a node of this tier may take what requires that one: another that is trusted more may too."""
    return _RANK[tier] >= _RANK.get(required, len(TIERS))


def tiered(requirements: Properties, *, apart: bool) -> Properties:
    """What an action requires, as `requires` reads it: only one whose result is `apart` may do with an untrusted node,
    and does unless it asks for more.

    Raises:
        InvalidRequest: a tier that it asks for is none.
    """
    asked = [value for name, value in requirements if name == TIER]
    for value in asked:
        tier_of(value, TIER)
    if apart:
        return requirements if asked else requirements | {_UNTRUSTED}
    return requirements - {_UNTRUSTED} if asked else requirements


def requires(requirements: Properties) -> str:
    """The least tier that may take what requires this: `trusted` unless a tier is named."""
    asked = [value for name, value in requirements if name == TIER]
    return max(asked, key=lambda value: _RANK.get(value, len(TIERS))) if asked else "trusted"
