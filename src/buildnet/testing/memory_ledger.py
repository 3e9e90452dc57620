"""A ledger in memory for tests of other rooms; it passes the same contract suite as the real one."""

from __future__ import annotations

from collections.abc import Sequence

from buildnet.model.entry import Entry


class MemoryLedger:
    """See ports.Ledger."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def append(self, entries: Sequence[Entry]) -> int:
        """Keep the entries for as long as this object lives."""
        first = len(self.bodies)
        self.bodies.extend(entry.encode() for entry in entries)
        return first
