"""Entries that nobody waits for, written in order. What cannot be written is said in the log, never dropped quietly."""

from __future__ import annotations

import asyncio
import logging

from buildnet.errors import BuildNetError
from buildnet.ledger.log import LedgerLog
from buildnet.model.entry import Entry

log = logging.getLogger(__name__)

_WAITING_MAX = 100_000


class LedgerRecorder:
    """Collects entries and appends them in batches."""

    def __init__(self, ledger: LedgerLog) -> None:
        self._ledger = ledger
        self._waiting: list[Entry] = []
        self._writer: asyncio.Task[None] | None = None

    def record(self, entry: Entry) -> None:
        """Write an entry soon."""
        if len(self._waiting) >= _WAITING_MAX:
            log.error("the ledger cannot keep up: an entry of kind %s is lost", entry.kind)
            return
        self._waiting.append(entry)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._ledger.append(batch)
            except BuildNetError as error:
                log.error("%d ledger entries could not be written: %s", len(batch), error)

    async def close(self) -> None:
        """Write what waits."""
        if self._writer is not None:
            await self._writer
