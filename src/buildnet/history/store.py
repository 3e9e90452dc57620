"""The history over one SQLite database: it follows in a thread of its own, and drops rather than hold anything up.

Whatever waits is written with one transaction. What it holds is bounded by count, by age and by bytes: the oldest go
first, and with them the messages that only they led to.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from buildnet.database import transaction
from buildnet.errors import StateCorrupt
from buildnet.history import files
from buildnet.history.files import pack_digest
from buildnet.history.reader import SqliteReader
from buildnet.model.digest import Digest
from buildnet.model.history import EndedOperation, Parts, Ran
from buildnet.ports import ActionMessages, Clock, HistoryReader

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITING_MAX: Final = 10_000
# Of results, which wait with what they are of.
WAITING_BYTES_MAX: Final = 64 << 20
# New directories of one action that are kept; of what is beyond, only the digest is.
DIRECTORIES_MAX: Final = 5_000
MESSAGE_BYTES_MAX: Final = 1 << 20
_BATCH_MAX: Final = 256
# What clients ran by themselves is recorded only while fewer wait: less than a batch, which is written after it has
# lingered, so that some 1,000 of them a second are, however many come. What ran here waits for itself already.
WAITING_OF_CLIENTS_MAX: Final = 250
# How long operations gather before they share a transaction, unless somebody waits to read.
_LINGER_S: Final = 0.25
_CLOSE_S: Final = 5.0
# Parameters of one statement.
_ASKED_MAX: Final = 500

_INSERT: Final = f"INSERT OR IGNORE INTO operation VALUES ({', '.join('?' * 30)})"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept at most: operations, for how long, and bytes of the whole database."""

    operations_max: int = 100_000
    kept_s: int = 30 * 86_400
    bytes_max: int = 512 << 20


class SqliteHistory:
    """See ports.History. Recording belongs to one event loop."""

    def __init__(
        self,
        directory: Path,
        connection: sqlite3.Connection,
        messages: ActionMessages,
        clock: Clock,
        bounds: Bounds,
    ) -> None:
        self._path = directory / files.DATABASE
        self._connection = connection
        self._messages = messages
        self._clock = clock
        self._bounds = bounds
        self._count: int = connection.execute("SELECT count(*) FROM operation").fetchone()[0]
        self._waiting: list[EndedOperation] = []
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._writing = ThreadPoolExecutor(1, "buildnet-history")
        self._reading = ThreadPoolExecutor(1, "buildnet-history-read")
        self._reader: sqlite3.Connection | None = None
        # Commands that this operation is the first to bring, so that they are not read back.
        self._fresh: dict[Digest, bytes] = {}
        self._accepted = 0
        self._recorded = 0
        self._dropped = 0
        self._lost = 0
        self._grown = asyncio.Event()
        self._hurry = asyncio.Event()

    @classmethod
    def open(
        cls,
        directory: Path,
        messages: ActionMessages,
        clock: Clock,
        bounds: Bounds = Bounds(),
    ) -> SqliteHistory:
        """Open or create the history in `directory`.

        Raises:
            StateNewer: a newer version wrote it.
            StateCorrupt: it can be neither read nor begun anew.
        """
        return cls(directory, files.open_database(directory), messages, clock, bounds)

    def statistics(self) -> dict[str, int]:
        """See ports.History."""
        return {
            "history_recorded": self._recorded,
            "history_dropped": self._dropped + self._lost,
            "history_waiting": len(self._waiting),
        }

    # Writing.

    def record(self, ended: EndedOperation) -> None:
        """See ports.History."""
        size_bytes = len(ended.result or b"")
        count_max = WAITING_OF_CLIENTS_MAX if ended.by_client else WAITING_MAX
        if len(self._waiting) >= count_max or self._waiting_bytes + size_bytes > WAITING_BYTES_MAX:
            self._dropped += 1
            return
        self._waiting.append(ended)
        self._waiting_bytes += size_bytes
        self._accepted += 1
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._waiting) < _BATCH_MAX:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), _LINGER_S)
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            self._waiting_bytes -= sum(len(ended.result or b"") for ended in batch)
            try:
                await loop.run_in_executor(self._writing, self._commit, batch)
            except Exception:
                # It follows: whatever cannot be kept is lost to it, and nothing else waits for that.
                log.exception("%d operations could not be written to the history", len(batch))
                self._lost += len(batch)
            else:
                self._recorded += len(batch)
            self._grown.set()
            self._grown = asyncio.Event()

    def _commit(self, batch: Sequence[EndedOperation]) -> None:
        with transaction(self._connection):
            for ended in batch:
                self._keep(ended)
        self._count += len(batch)
        self._make_room()

    def _keep(self, ended: EndedOperation) -> None:
        action = self._keep_message("action", ended.key.digest)
        refers = dict(self._messages.refers("action", action[1])) if action is not None else {}
        command, root = refers.get("command"), refers.get("directory")
        parts = self._parts_of(action[1] if action else None, command)
        ran = self._messages.ran(ended.result) if ended.result is not None else Ran()
        started = ended.submitted_at_unix_ms if ran.worker_started_at_unix_ms is None else ran.worker_started_at_unix_ms
        self._connection.execute(
            _INSERT,
            (
                None,
                *(ended.operation, ended.key.instance, pack_digest(ended.key.digest)),
                *(ended.submitted_at_unix_ms, ended.ended_at_unix_ms, ended.code),
                ended.exit_code if ended.result is None else ran.exit_code,
                *(ended.cached, ended.kept, ended.lookup_skipped, ended.entry_index, ended.worker, ended.caller),
                *(ended.requested.tool, ended.requested.invocation, ended.requested.target, ended.requested.mnemonic),
                *(command and pack_digest(command), root and pack_digest(root)),
                # What a cached result says of its run is of another run, and what no worker ran waited for none.
                None
                if ended.cached or ended.by_client or ended.result is None
                else max(0, started - ended.submitted_at_unix_ms),
                *((None, None, None) if ended.cached else (ran.staged_ms, ran.ran_ms, ran.uploaded_ms)),
                *(files.pack_outputs(ran.outputs), ran.output_count, action and action[0]),
                *files.relations(ended.key, ended.requested, parts),
            ),
        )

    def _parts_of(self, action: bytes | None, command: Digest | None) -> Parts | None:
        if action is None or command is None:
            return None
        body = self._fresh.get(command)
        if body is None:
            query = "SELECT body FROM message WHERE digest = ?"
            row = self._connection.execute(query, (pack_digest(command),)).fetchone()
            body = files.unpack(bytes(row[0])) if row is not None else self._messages.fetch(command)
        return None if body is None else self._messages.parts(action, body)

    def _keep_message(self, kind: str, digest: Digest) -> tuple[int, bytes] | None:
        """Keep a message with all that it leads to, and return its number and body; None when it cannot be kept.

        What is kept already has been kept with all below it.
        """
        known = self._connection.execute(
            "SELECT number, body FROM message WHERE digest = ?", (pack_digest(digest),)
        ).fetchone()
        if known is not None:
            body = files.unpack(bytes(known[1]))
            return None if body is None else (known[0], body)
        self._fresh.clear()
        top: tuple[int, bytes] | None = None
        left = DIRECTORIES_MAX
        links: list[tuple[int, int]] = []
        waiting: list[tuple[int | None, str, Digest]] = [(None, kind, digest)]
        while waiting and left:
            parent, kind, digest = waiting.pop()
            number, fresh = self._insert(digest)
            if number is None:
                continue
            if parent is not None:
                links.append((parent, number))
            if fresh is None:
                continue
            if top is None:
                top = number, fresh
            left -= kind == "directory"
            if kind == "command":
                self._fresh[digest] = fresh
            children = self._messages.refers(kind, fresh)
            known = self._known_of([child for _, child in children])
            links += ((number, there) for there in known.values())
            # The Command comes before the directories, of which there may be too many.
            waiting += ((number, *child) for child in reversed(children) if child[1] not in known)
        self._connection.executemany("INSERT OR IGNORE INTO refers VALUES (?, ?)", links)
        return top

    def _known_of(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """The numbers of those messages that are kept already."""
        found: dict[Digest, int] = {}
        for start in range(0, len(digests), _ASKED_MAX):
            asked = {pack_digest(digest): digest for digest in digests[start : start + _ASKED_MAX]}
            query = f"SELECT digest, number FROM message WHERE digest IN ({', '.join('?' * len(asked))})"
            found |= {asked[bytes(packed)]: number for packed, number in self._connection.execute(query, list(asked))}
        return found

    def _insert(self, digest: Digest) -> tuple[int | None, bytes | None]:
        """The number of a message, and its body when it is new here."""
        packed = pack_digest(digest)
        known = self._connection.execute("SELECT number FROM message WHERE digest = ?", (packed,)).fetchone()
        if known is not None:
            return known[0], None
        body = self._messages.fetch(digest) if digest.size_bytes <= MESSAGE_BYTES_MAX else None
        if body is None:
            return None, None
        cursor = self._connection.execute(
            "INSERT INTO message (digest, body) VALUES (?, ?)", (packed, files.pack(body))
        )
        return cursor.lastrowid, body

    def _make_room(self) -> None:
        bounds = self._bounds
        before = self._clock.now_unix_ms() - bounds.kept_s * 1000
        oldest = self._connection.execute("SELECT ended_at FROM operation ORDER BY number LIMIT 1").fetchone()
        over = self._count > bounds.operations_max or files.used_bytes(self._connection) > bounds.bytes_max
        # A day beyond, so that this happens once a day and not with every one that comes of age.
        aged = oldest is not None and oldest[0] < before - 86_400_000
        if not over and not aged:
            return
        with transaction(self._connection):
            files.remove_oldest(self._connection, max(1, self._count // 10) if over else 0, before)
        self._count = self._connection.execute("SELECT count(*) FROM operation").fetchone()[0]

    # Reading.

    async def look(self, work: Callable[[HistoryReader], T]) -> T:
        """See ports.History."""
        accepted = self._accepted
        while self._recorded + self._lost < accepted:
            self._hurry.set()
            await self._grown.wait()
        self._hurry.clear()
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._look, work)

    def _look(self, work: Callable[[HistoryReader], T]) -> T:
        if self._reader is None:
            self._reader = sqlite3.connect(
                f"file:{self._path}?mode=ro", uri=True, check_same_thread=False, timeout=10, isolation_level=None
            )
        # One moment for all that `work` reads.
        try:
            self._reader.execute("BEGIN")
            try:
                return work(SqliteReader(self._reader))
            finally:
                self._reader.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(
                f"{self._path}: {error}; stop the controller and move it aside to begin a new history",
                path=str(self._path),
            ) from error

    async def close(self) -> None:
        """Write what waits, for as long as that takes at most five seconds; what is left is dropped and said."""
        self._hurry.set()
        if self._writer is not None and not self._writer.done():
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await asyncio.shield(self._writer)
            except TimeoutError:
                log.warning("%d operations were not written to the history before the end", len(self._waiting))
                self._lost += len(self._waiting)
                self._waiting.clear()
                await self._writer
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        if self._reader is not None:
            self._reader.close()
        self._connection.close()
