"""Operations and leases in SQLite: writes gather while one transaction is on its way, and share the next.

None of it runs on the event loop. What cannot be written waits for the next write: nothing is dropped, and whoever
waits is told.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from buildnet.database import connected, create, transaction
from buildnet.errors import BuildNetError, InvariantBroken, Overloaded, StateCorrupt, StorageFull
from buildnet.model.action import ActionKey, Lease
from buildnet.model.digest import Digest
from buildnet.model.operation import Intended, Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.queue.records import (
    RESULT_BYTES_MAX,
    WantedReader,
    graph_of,
    graph_row,
    lease_of,
    lease_text,
    outcome_of,
    outcome_text,
    wanted_text,
)

log = logging.getLogger(__name__)

DATABASE: Final = "operations.sqlite"
SCHEMA_VERSION: Final = 2
ROWS_WAITING_MAX: Final = 1_000_000

_SCHEMA: Final = (
    """CREATE TABLE operation (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL, instance TEXT NOT NULL, hash TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, wanted TEXT NOT NULL, submitted_at_unix_ms INTEGER NOT NULL,
        client_id TEXT NOT NULL, outcome TEXT, completed_at_unix_ms INTEGER)""",
    """CREATE TABLE lease (
        fence INTEGER PRIMARY KEY, number INTEGER NOT NULL, alone INTEGER NOT NULL, instance TEXT NOT NULL,
        hash TEXT NOT NULL, size_bytes INTEGER NOT NULL, lease TEXT NOT NULL, intended TEXT, cacheable INTEGER,
        ledger_size INTEGER)""",
)
# Since version 2: what version 1 left is read as it is.
_SCHEMA_2: Final = (
    """CREATE TABLE graph (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL, count INTEGER NOT NULL, terms TEXT NOT NULL,
        submitted_at_unix_ms INTEGER NOT NULL, members BLOB NOT NULL, actions BLOB NOT NULL)""",
)
# In the order in which a batch does them: an operation begins before it ends, a lease is given before it is released.
_WRITES: Final = {
    "begin_graph": "INSERT OR REPLACE INTO graph VALUES (?, ?, ?, ?, ?, ?, ?)",
    "begin": "INSERT OR REPLACE INTO operation VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
    "lease": "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)",
    "intend": "UPDATE lease SET intended = ?, cacheable = ?, ledger_size = ? WHERE fence = ?",
    "end": "UPDATE operation SET outcome = ?, completed_at_unix_ms = ? WHERE number = ?",
    "conclude": "INSERT OR REPLACE INTO operation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "release": "DELETE FROM lease WHERE fence = ?",
    "forget": "DELETE FROM operation WHERE number = ?",
    "forget_members": "DELETE FROM operation WHERE number >= ? AND number < ?",
    "forget_graph": "DELETE FROM graph WHERE number = ?",
}
Rows = dict[str, list[tuple[Any, ...]]]


class SqliteOperations:
    """See ports.OperationStore. Belongs to one event loop."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self._directory = directory
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, "buildnet-queue")
        self._rows = _empty()
        self._count = 0
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._written: asyncio.Future[None] | None = None

    @classmethod
    def open(cls, directory: Path, durability: str) -> SqliteOperations:
        """Open or create the store in `directory`.

        Raises:
            StateNewer: a newer version wrote it.
            StateCorrupt: it is not a database, or cannot be opened.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / DATABASE
        try:
            connection, found = connected(path, SCHEMA_VERSION)
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL loses nothing when a process dies; FULL nothing that was kept when power is lost.
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
            if found < SCHEMA_VERSION:
                create(connection, _SCHEMA_2 if found else (*_SCHEMA, *_SCHEMA_2), SCHEMA_VERSION)
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(
                f"{path}: {error}; restore it from a copy, or move it aside: what was queued is then asked for again",
                path=str(path),
            ) from error
        return cls(directory, connection)

    # Writing.

    def begin(self, operation: StoredOperation) -> None:
        """See ports.OperationStore.

        Raises:
            Overloaded: the disk cannot keep up; nothing was begun.
        """
        self._check_room()
        self._write("begin", _operation_row(operation))

    def _check_room(self) -> None:
        if self._count >= ROWS_WAITING_MAX:
            raise Overloaded("the state store cannot keep up; try again later", limit=ROWS_WAITING_MAX)

    def lease(self, lease: Lease, number: int, *, alone: bool) -> None:
        """See ports.OperationStore."""
        key = lease.key
        action = (key.instance, key.digest.hash, key.digest.size_bytes)
        self._write("lease", (lease.fence, number, alone, *action, lease_text(lease)))

    def intend(self, fence: int, intended: Intended) -> None:
        """See ports.OperationStore."""
        text = outcome_text(intended.outcome, with_result=True)
        self._write("intend", (text, intended.cacheable, intended.ledger_size, fence))

    def end(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        self._write("end", (*_end_of(operation), operation.number))

    def release(self, fence: int) -> None:
        """See ports.OperationStore."""
        self._write("release", (fence,))

    def forget(self, numbers: Sequence[int]) -> None:
        """See ports.OperationStore."""
        for number in numbers:
            self._write("forget", (number,))

    def begin_graph(self, graph: StoredGraph) -> None:
        """See ports.OperationStore."""
        self._check_room()
        self._write("begin_graph", (graph,))

    def conclude(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        self._write("conclude", (*_operation_row(operation), *_end_of(operation)))

    def forget_graph(self, numbers: range) -> None:
        """See ports.OperationStore."""
        self._write("forget_members", (numbers.start, numbers.stop))
        self._write("forget_graph", (numbers.start,))

    async def kept(self) -> None:
        """See ports.OperationStore."""
        if self._count:
            # What could not be written is tried again.
            await asyncio.shield(self._next())
        elif self._written is not None:
            await asyncio.shield(self._written)

    def _write(self, kind: str, row: tuple[Any, ...]) -> None:
        self._rows[kind].append(row)
        self._count += 1
        self._next()

    def _next(self) -> asyncio.Future[None]:
        """The end of the transaction that is to come."""
        if self._waiter is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            # Nobody may be waiting; a failure is in the log all the same.
            self._waiter.add_done_callback(lambda done: done.exception())
            if self._writer is None or self._writer.done():
                self._writer = loop.create_task(self._flush())
        return self._waiter

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiter is not None:
            self._written, self._waiter = self._waiter, None
            rows, self._rows, self._count = self._rows, _empty(), 0
            try:
                await loop.run_in_executor(self._thread, self._commit, rows)
            except BuildNetError as error:
                log.error("the state store cannot be written: %s", error)
                self._return(rows)
                self._written.set_exception(error)
            except Exception as error:
                # A row that SQLite has no form for would keep all others from the disk for ever.
                log.exception("%d rows are not kept", sum(map(len, rows.values())))
                self._written.set_exception(InvariantBroken(f"the state store failed: {error!r}"))
            else:
                self._written.set_result(None)
            self._written = None

    def _return(self, rows: Rows) -> None:
        """Have the next transaction do what this one did not; its waiters are told as of now."""
        for kind, later in self._rows.items():
            rows[kind] += later
        self._rows, self._count = rows, sum(map(len, rows.values()))

    def _commit(self, rows: Rows) -> None:
        # Packed here: a graph of thousands takes a while, and this is a thread.
        graphs = [graph_row(graph) for (graph,) in rows["begin_graph"]]
        try:
            with transaction(self._connection):
                for kind, statement in _WRITES.items():
                    if rows[kind]:
                        self._connection.executemany(statement, graphs if kind == "begin_graph" else rows[kind])
        except sqlite3.OperationalError as error:
            path = str(self._directory / DATABASE)
            if "full" in str(error):
                raise StorageFull(f"{path} cannot be written: {error}; make room") from error
            raise StateCorrupt(f"{path} cannot be written: {error}", path=path) from error

    # Reading.

    async def load(self) -> Stored:
        """See ports.OperationStore."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def _load(self) -> Stored:
        graphs = [graph_of(row) for row in self._connection.execute("SELECT * FROM graph ORDER BY number")]
        return Stored(list(self._operations()), list(self._leases()), graphs)

    def _operations(self) -> Iterator[StoredOperation]:
        reader = WantedReader()
        rows = self._connection.execute("SELECT * FROM operation ORDER BY number")
        for number, name, instance, digest_hash, size_bytes, rest, submitted, client, outcome, completed in rows:
            wanted = reader.read(instance, digest_hash, size_bytes, rest)
            ended = None if outcome is None else outcome_of(outcome)
            yield StoredOperation(number, name, wanted, submitted, client, ended, completed)

    def _leases(self) -> Iterator[StoredLease]:
        for row in self._connection.execute("SELECT * FROM lease ORDER BY fence"):
            fence, number, alone, instance, digest_hash, size_bytes, text, intended, cacheable, ledger_size = row
            lease = lease_of(fence, ActionKey(instance, Digest(digest_hash, size_bytes)), text)
            about = None if intended is None else Intended(outcome_of(intended), bool(cacheable), ledger_size)
            yield StoredLease(lease, number, bool(alone), about)

    async def close(self) -> None:
        """Write what waits. What cannot be written is said in the log: a start will run it again."""
        while self._writer is not None and not self._writer.done():
            await self._writer
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


def _empty() -> Rows:
    return {kind: [] for kind in _WRITES}


def _operation_row(operation: StoredOperation) -> tuple[Any, ...]:
    """An operation as it begins."""
    wanted, digest = operation.wanted, operation.wanted.key.digest
    identity = (operation.number, operation.id, wanted.key.instance, digest.hash, digest.size_bytes)
    return (*identity, wanted_text(wanted), operation.submitted_at_unix_ms, operation.client_id)


def _end_of(operation: StoredOperation) -> tuple[Any, ...]:
    assert operation.outcome is not None
    return outcome_text(operation.outcome, with_result=_keeps_result(operation)), operation.completed_at_unix_ms


def _keeps_result(operation: StoredOperation) -> bool:
    outcome = operation.outcome
    if outcome is None or outcome.result is None or len(outcome.result) <= RESULT_BYTES_MAX:
        return True
    cached = outcome.exit_code == 0 and not operation.wanted.do_not_cache
    return not (outcome.code == "ok" and cached)
