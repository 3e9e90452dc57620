"""Entries that nobody waits for, written in order and before what is appended after them.

What cannot be written is said in the log, never dropped quietly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from buildnet.errors import BuildNetError
from buildnet.model.entry import Entry
from buildnet.ports import Ledger

log = logging.getLogger(__name__)

_WAITING_MAX: Final = 100_000
# How long an entry waits for others to be written with: a write costs more than what is written.
_LINGER_S: Final = 0.002
# What the queue keeps too, so that the next start makes good what a killed process had not written (app/unsaid.py).
# Under load such an entry is written with the publication of another action.
KEPT_ELSEWHERE: Final = frozenset({"action.submitted", "action.assigned"})
_PATIENT_LINGER_S: Final = 0.05
# Written in one piece; others have their turn between two pieces of a long queue.
_TOGETHER_MAX: Final = 256


class LedgerRecorder:
    """A ledger whose appends take along what was recorded before them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Entry] = []
        self._due: asyncio.TimerHandle | None = None
        self._is_patient = False
        self._writer: asyncio.Task[None] | None = None

    def record(self, entry: Entry) -> None:
        """Write an entry soon."""
        if len(self._waiting) >= _WAITING_MAX:
            log.error("the ledger cannot keep up: an entry of kind %s is lost", entry.kind)
            return
        self._waiting.append(entry)
        is_patient = entry.kind in KEPT_ELSEWHERE
        is_many = len(self._waiting) >= _TOGETHER_MAX
        if self._due is not None:
            if not self._is_patient or (is_patient and not is_many):
                return
            self._due.cancel()
        self._is_patient = is_patient and not is_many
        linger_s = _PATIENT_LINGER_S if self._is_patient else _LINGER_S
        self._due = asyncio.get_running_loop().call_later(linger_s, self._begin)

    async def append(self, entries: Sequence[Entry]) -> int:
        """See ports.Ledger."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return await self._ledger.append(entries)
        try:
            return await self._ledger.append([*waiting, *entries]) + len(waiting)
        except BuildNetError:
            # Which of them it refused is not known: those that wait are not to be lost with these.
            await self._append_now(waiting)
            return await self._ledger.append(entries)

    async def recorded(self) -> None:
        """Return once the ledger has all that was recorded by now, or the log says what it has not."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            await self._append_now(waiting)

    def _begin(self) -> None:
        self._due = None
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_TOGETHER_MAX], self._waiting[_TOGETHER_MAX:]
            await self._append_now(batch)
            await asyncio.sleep(0)

    async def _append_now(self, batch: list[Entry]) -> None:
        try:
            await self._ledger.append(batch)
        except BuildNetError as error:
            log.error("%d ledger entries could not be written: %s", len(batch), error)

    async def close(self) -> None:
        """Write what waits."""
        if self._due is not None:
            self._due.cancel()
        if self._writer is not None:
            await self._writer
        await self._write()
