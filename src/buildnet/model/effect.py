"""What a command does beside its inputs and outputs is an effect at a level; a level that means nothing is refused.

Levels by what they let through: none < declared | virtual < budgeted < ambient. `declared` is what the spec names,
`virtual` a stand-in that is the same every time, `budgeted:AMOUNT` the machine's own up to an amount in the effect's
unit, `ambient` the machine's own. What enforces them is `sandbox/policy.py`; here nothing is enforced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from buildnet.errors import InvalidRequest

EFFECT_PREFIX: Final = "effect:"
"""A platform property `effect:NAME` has a level as its value."""

LEVELS: Final[Mapping[str, int]] = {"none": 0, "declared": 1, "virtual": 1, "budgeted": 2, "ambient": 3}
"""Levels by rank: a higher one lets more through."""

EFFECTS: Final[Mapping[str, tuple[str, ...]]] = {
    # Bytes in and out together.
    "network": ("none", "declared", "budgeted", "ambient"),
    # Files beside the inputs, in bytes.
    "read": ("none", "declared", "budgeted", "ambient"),
    # Files beside the outputs, in bytes.
    "write": ("none", "declared", "budgeted", "ambient"),
    # A clock that stands still, one that is the same in every run, or the machine's.
    "clock": ("none", "virtual", "ambient"),
    # Random bytes, in bytes.
    "random": ("none", "virtual", "budgeted", "ambient"),
}
"""The levels at which each effect means something."""

_BUDGET: Final = re.compile(r"budgeted:([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True, order=True)
class Effect:
    """One effect at one level; `budget` is its amount in bytes when the level is `budgeted`, else 0."""

    name: str
    level: str
    budget: int = 0

    @classmethod
    def parse(cls, name: str, text: str) -> Effect:
        """An effect as it is written, with or without the prefix of its property.

        Raises:
            InvalidRequest: there is no such effect, or not at this level.
        """
        name = name.removeprefix(EFFECT_PREFIX)
        levels = EFFECTS.get(name)
        if levels is None:
            raise InvalidRequest(f"{name!r} is no effect; effects are {', '.join(EFFECTS)}", field="effects")
        match = _BUDGET.fullmatch(text)
        level = "budgeted" if match else text
        if level not in levels or (level == "budgeted" and match is None):
            shown = ", ".join("budgeted:BYTES" if known == "budgeted" else known for known in levels)
            raise InvalidRequest(f"effect {name} has no level {text[:64]!r}; its levels are {shown}", field="effects")
        return cls(name, level, int(match[1]) if match else 0)

    @property
    def text(self) -> str:
        """The level as it is written."""
        return f"{self.level}:{self.budget}" if self.level == "budgeted" else self.level

    def allows(self, other: Effect) -> bool:
        """Whether this lets through all that `other` does; what is `declared` and what is `virtual` differ."""
        if self.name != other.name:
            return False
        if self.level == other.level:
            return self.budget >= other.budget
        return LEVELS[self.level] > LEVELS[other.level]
