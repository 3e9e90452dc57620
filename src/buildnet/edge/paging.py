"""How many a page of a list holds. A size below zero is refused, and one of zero is ours to choose (AIP-158)."""

from __future__ import annotations

from buildnet.errors import InvalidRequest


def page_size_of(asked: int, default: int, most: int) -> int:
    """What a caller asked for, within bounds.

    Raises:
        InvalidRequest: it is below zero.
    """
    if asked < 0:
        raise InvalidRequest(f"a page of {asked} is none; ask for 1 to {most}, or 0 for {default}", field="page_size")
    return min(asked or default, most)
