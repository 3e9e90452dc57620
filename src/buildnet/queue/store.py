"""Operations and leases: kept as soon as the journal has them, and in SQLite within moments, many with one transaction.

What cannot be written waits for the next write: nothing is dropped, and whoever waits is told.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from buildnet.database import connected, create, transaction
from buildnet.errors import BuildNetError, InvariantBroken, Overloaded, StateCorrupt, StorageFull
from buildnet.model.action import ActionKey, Lease
from buildnet.model.digest import Digest
from buildnet.model.operation import Intended, Stored, StoredGraph, StoredLease, StoredOperation
from buildnet.queue import journal
from buildnet.queue.journal import Journal, Row
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
# How long rows gather before they share a transaction: most leases are given and released within it, and need none.
_LINGER_S: Final = 0.5
_LINGER_ROWS_MAX: Final = 20_000
# Rows that nobody waits for reach the journal after this, or with the next that somebody waits for.
_UNASKED_S: Final = 0.02
# After a transaction that failed.
_RETRY_S: Final = 1.0

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


class SqliteOperations:
    """See ports.OperationStore. Belongs to one event loop."""

    def __init__(self, directory: Path, connection: sqlite3.Connection, *, syncs: bool) -> None:
        self._directory = directory
        self._connection = connection
        self._syncs = syncs
        self._thread = ThreadPoolExecutor(1, "buildnet-queue")
        self._writing = ThreadPoolExecutor(1, "buildnet-queue-journal")
        self._journal = Journal(directory, syncs=syncs)
        # Not in the journal yet; in it, and not in the database; where those are.
        self._waiting: list[Row] = []
        self._kept: list[Row] = []
        self._graph_waits = False
        self._unasked: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._committer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._closing = False
        self._failure: BuildNetError | None = None

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
            kept = journal.read(directory)
            with transaction(connection):
                _execute(connection, kept)
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(
                f"{path}: {error}; restore it from a copy, or move it aside: what was queued is then asked for again",
                path=str(path),
            ) from error
        opened = cls(directory, connection, syncs=durability == "power")
        journal.remove(opened._journal.turn())
        return opened

    # Writing.

    def begin(self, operation: StoredOperation) -> None:
        """See ports.OperationStore.

        Raises:
            Overloaded: the disk cannot keep up; nothing was begun.
        """
        self._check_room()
        self._write("begin", _operation_row(operation))

    def _check_room(self) -> None:
        if len(self._waiting) + len(self._kept) >= ROWS_WAITING_MAX:
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
        self._graph_waits = True

    def conclude(self, operation: StoredOperation) -> None:
        """See ports.OperationStore."""
        self._write("conclude", (*_operation_row(operation), *_end_of(operation)))

    def forget_graph(self, numbers: range) -> None:
        """See ports.OperationStore."""
        self._write("forget_members", (numbers.start, numbers.stop))
        self._write("forget_graph", (numbers.start,))

    def keep(self) -> bool:
        """See ports.OperationStore."""
        if self._syncs or self._graph_waits or self._is_writing:
            return False
        if self._waiting:
            # Into the page cache: quicker than a hop to another thread.
            rows, self._waiting = self._waiting, []
            self._settle(rows, self._append(rows))
        return True

    @property
    def _is_writing(self) -> bool:
        """Whether a thread writes the journal."""
        return self._writer is not None and not self._writer.done()

    async def kept(self) -> None:
        """See ports.OperationStore."""
        if self.keep():
            return
        # What could not be written is tried again.
        if self._waiting or self._waiter is not None or self._is_writing:
            await asyncio.shield(self._next())

    def _write(self, kind: str, row: tuple[Any, ...]) -> None:
        self._waiting.append((kind, row))
        if self._unasked is None:
            self._unasked = asyncio.get_running_loop().call_later(_UNASKED_S, self._write_unasked)

    def _write_unasked(self) -> None:
        self._unasked = None
        with suppress(BuildNetError):
            if not self.keep() and self._waiting:
                self._next()

    def _append(self, rows: list[Row]) -> BuildNetError | None:
        """Have the journal hold them; what kept it from that. What is packed here is packed among the rows too."""
        for place, (kind, row) in enumerate(rows):
            if kind == "begin_graph" and isinstance(row[0], StoredGraph):
                # In a thread: one of thousands takes a while.
                rows[place] = (kind, graph_row(row[0]))
        try:
            self._journal.append(rows)
        except OSError as error:
            path = str(self._directory)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return StorageFull(f"the journal in {path} cannot be written: {error}; make room")
            return StateCorrupt(f"the journal in {path} cannot be written: {error}", path=path)
        except TypeError as error:
            # It would keep all others from the disk for ever.
            log.exception("%d rows are not kept", len(rows))
            return InvariantBroken(f"the state store failed: {error!r}")
        return None

    def _settle(self, rows: list[Row], failure: BuildNetError | None) -> None:
        """They are in the journal, or wait for the next write.

        Raises:
            BuildNetError: they wait.
        """
        if failure is None:
            self._kept += rows
            if self._committer is None or self._committer.done():
                self._committer = asyncio.get_running_loop().create_task(self._commit_kept())
            elif len(self._kept) >= _LINGER_ROWS_MAX:
                self._hurry.set()
            return
        log.error("the state store cannot be written: %s", failure)
        if not isinstance(failure, InvariantBroken):
            self._waiting = rows + self._waiting
        raise failure

    def _next(self) -> asyncio.Future[None]:
        """The end of the write that is to come, by a thread."""
        if self._waiter is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            # Nobody may be waiting; a failure is in the log all the same.
            self._waiter.add_done_callback(lambda done: done.exception())
            if not self._is_writing:
                self._writer = loop.create_task(self._flush())
        return self._waiter

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiter is not None:
            written, self._waiter = self._waiter, None
            rows, self._waiting, self._graph_waits = self._waiting, [], False
            failure = await loop.run_in_executor(self._writing, self._append, rows) if rows else None
            try:
                self._settle(rows, failure)
            except BuildNetError as error:
                written.set_exception(error)
            else:
                written.set_result(None)

    async def _commit_kept(self) -> None:
        loop = asyncio.get_running_loop()
        while self._kept:
            pause_s = _LINGER_S if self._failure is None else _RETRY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), 0 if self._closing else pause_s)
            self._hurry.clear()
            rows, self._kept = self._kept, []
            # One thread writes the journal: a file is closed between two writes.
            files = (
                await loop.run_in_executor(self._writing, self._journal.turn) if self._syncs else self._journal.turn()
            )
            try:
                await loop.run_in_executor(self._thread, self._commit, rows)
            except BuildNetError as error:
                log.error("%d rows wait in the journal: %s", len(rows) + len(self._kept), error)
                self._failure, self._kept = error, rows + self._kept
                if self._closing:
                    return
            else:
                self._failure = None
                journal.remove(files)

    async def _turned(self) -> list[Path]:
        if not self._syncs and not self._is_writing:
            return self._journal.turn()
        # In the thread that writes: all that the file holds has been told to this loop before it is closed.
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._journal.turn)

    def _commit(self, rows: list[Row]) -> None:
        try:
            with transaction(self._connection):
                _execute(self._connection, rows)
        except sqlite3.OperationalError as error:
            path = str(self._directory / DATABASE)
            if "full" in str(error):
                raise StorageFull(f"{path} cannot be written: {error}; make room") from error
            raise StateCorrupt(f"{path} cannot be written: {error}", path=path) from error

    # Reading.

    async def load(self) -> Stored:
        """See ports.OperationStore."""
        await self.kept()
        while self._committer is not None and not self._committer.done() and self._failure is None:
            self._hurry.set()
            await self._committer
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
        self._closing = True
        if self._unasked is not None:
            self._unasked.cancel()
        with suppress(BuildNetError):
            await self.kept()
        if self._committer is not None:
            self._hurry.set()
            await self._committer
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._thread.shutdown()
        self._journal.close()
        self._connection.close()


def _execute(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Do what rows say; to do it again changes nothing. Leases given and released among them leave no trace."""
    batch: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in _WRITES}
    for kind, row in rows:
        batch[kind].append(row)
    released = {fence for (fence,) in batch["release"]}
    batch["lease"] = [row for row in batch["lease"] if row[0] not in released]
    batch["intend"] = [row for row in batch["intend"] if row[-1] not in released]
    for kind, statement in _WRITES.items():
        if batch[kind]:
            connection.executemany(statement, batch[kind])


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
