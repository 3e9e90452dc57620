"""Follows the ledger's tail and keeps what it makes of it beside the ledger: a view, and no authority over entries.

It takes what was committed a moment ago as it is handed on, reads what went before, and has nothing committed for its
own sake, unless somebody waits for what it knows. What is kept is kept by one file, replaced whole; where that is
damaged, or of another ledger, all is read anew, and said.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from buildnet.errors import BuildNetError, StateCorrupt
from buildnet.files import replace_file
from buildnet.ledger.log import LedgerLog
from buildnet.ledger.views import Views

log = logging.getLogger(__name__)

FILE: Final = "entries.view"
# What whoever asks waits for; of more it is told how much there is to go.
AT_ONCE_MAX: Final = 5_000
# Of one look: the loop has its turn in between.
_PIECE: Final = 500
# Entries in memory that it has not come to; those beyond are read from the database.
_HANDED_MAX: Final = 8_192
# Of a long way; what it has made of it is kept meanwhile.
_MUCH: Final = 100_000
_EVERY_S: Final = 1.0
# A start after a kill reads again what came since the last time.
_KEPT_EVERY_S: Final = 30.0
# Of all time at most this part goes into keeping it.
_KEEPING_MAX: Final = 0.01


class Follower:
    """One view of one ledger. It belongs to one event loop."""

    def __init__(self, ledger: LedgerLog, directory: Path, monotonic_s: Callable[[], float]) -> None:
        self.views = Views()
        self._ledger = ledger
        self._path = directory / FILE
        self._monotonic_s = monotonic_s
        self._handed: deque[tuple[int, Sequence[bytes]]] = deque()
        self._handed_count = 0
        self._reading = asyncio.Lock()
        self._grown = asyncio.Event()
        self._is_loaded = False
        self._kept_size = 0
        self._keep_next_s = 0.0
        ledger.hand_on(self._take)

    @property
    def behind(self) -> int:
        """How many entries there are that it has not read."""
        return self._ledger.size - self.views.size

    async def catch_up(self) -> None:
        """Read on to all that is acknowledged by now, unless that is more than a moment's work: see `behind`.

        Raises:
            StorageFull, StateCorrupt: the ledger cannot be written, or read.
        """
        await self._load()
        if self.behind <= AT_ONCE_MAX:
            await self._read_to(await self._ledger.signed_size())

    async def reached(self, size: int) -> None:
        """Return once it has read the first `size` entries; it hurries nothing."""
        while self.views.size < size:
            await self._grown.wait()

    def _tell_grown(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def run(self) -> None:
        """Follow what is committed, until cancelled."""
        while True:
            try:
                await self._load()
                while (left := self._ledger.committed - self.views.size) > 0:
                    await self._read_to(self.views.size + min(left, _MUCH))
                    if self._monotonic_s() >= self._keep_next_s:
                        await self.keep()
            except (BuildNetError, OSError, sqlite3.DatabaseError) as error:
                log.error("the view %s does not follow: %s", self._path, error)
            await asyncio.sleep(_EVERY_S)

    def _take(self, first: int, bodies: Sequence[bytes]) -> None:
        if self._handed_count + len(bodies) <= _HANDED_MAX:
            self._handed.append((first, bodies))
            self._handed_count += len(bodies)

    async def _bodies(self, start: int, count: int) -> Sequence[bytes]:
        while self._handed:
            first, bodies = self._handed[0]
            if start < first:
                count = min(count, first - start)
                break
            if start < first + len(bodies):
                return bodies[start - first : start - first + count]
            self._handed.popleft()
            self._handed_count -= len(bodies)
        return await self._ledger.read(start, count)

    async def _read_to(self, size: int) -> None:
        while self.views.size < size:
            async with self._reading:
                start = self.views.size
                bodies = await self._bodies(start, min(_PIECE, size - start))
                try:
                    self.views.apply(bodies)
                except (ValueError, LookupError, TypeError) as error:
                    at = self.views.size
                    raise StateCorrupt(
                        f"entry {at} is none: {error}; buildnet ledger verify says more", path=str(self._path)
                    ) from error
                self._tell_grown()
                if not bodies:
                    return

    async def _load(self) -> None:
        async with self._reading:
            if self._is_loaded:
                return
            views = await asyncio.to_thread(self._kept)
            if views is not None and await self._is_of(views):
                self.views = views
            self._is_loaded, self._kept_size = True, self.views.size
            self._tell_grown()
            self._keep_next_s = self._monotonic_s() + _KEPT_EVERY_S

    def _kept(self) -> Views | None:
        try:
            return Views.load(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s is made anew from the ledger's entries: %s", self._path, error)
            return None

    async def _is_of(self, views: Views) -> bool:
        bodies = await self._ledger.read(views.size - 1, 1) if views.size else []
        if views.size == 0 or [hashlib.sha256(body).digest() for body in bodies] == [views.last]:
            return True
        log.warning("%s is of another ledger, or of one that lost entries: it is made anew", self._path)
        return False

    async def keep(self) -> None:
        """Write down what it has read, if that is more than what is written.

        Raises:
            OSError: it cannot be written.
        """
        if not self._is_loaded or self.views.size == self._kept_size:
            return
        began_s = self._monotonic_s()
        async with self._reading:
            pieces = []
            for piece in self.views.dump():
                pieces.append(piece)
                # Of a long queue it is long, and others have their turn.
                await asyncio.sleep(0)
            self._kept_size = self.views.size
        text = b"".join(pieces).decode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(replace_file, self._path, text)
        now_s = self._monotonic_s()
        self._keep_next_s = now_s + max(_KEPT_EVERY_S, (now_s - began_s) / _KEEPING_MAX)

    async def close(self) -> None:
        """Keep what it has read."""
        try:
            await self.keep()
        except OSError as error:
            log.warning("%s is not kept, and made anew at the next start: %s", self._path, error)
