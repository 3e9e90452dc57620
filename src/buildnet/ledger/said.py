"""What an entry says, read by views of it: what it does not say, or not as it should, is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Fields = Mapping[str, Any]
Row = Sequence[Any]
"""A part of a view, as it is kept."""


def text_of(said: Fields, name: str) -> str:
    """The text under a name; "" where there is none."""
    value = said.get(name)
    return value if isinstance(value, str) else ""


def number_of(said: Fields, name: str) -> int | None:
    """The number under a name; None where there is none."""
    value = said.get(name)
    return value if isinstance(value, int) else None
