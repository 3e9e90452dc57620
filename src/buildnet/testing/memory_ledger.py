"""A ledger in memory for tests of other rooms; it passes the same contract suite as the real one."""

from __future__ import annotations

from collections.abc import Sequence

from buildnet.model.entry import Entry


class MemoryLedger:
    """See ports.Ledger."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    @property
    def bodies(self) -> list[bytes]:
        """What the leaves would be."""
        return [entry.encode() for entry in self._entries]

    async def append(self, entries: Sequence[Entry]) -> int:
        """Keep the entries for as long as this object lives."""
        first = len(self._entries)
        self._entries.extend(entries)
        return first
