"""The ledger's one writer: entries, tree nodes, balances and a signed checkpoint in one transaction, or none of them.

An append is acknowledged once the tail holds it; the database follows within moments, many appends with one
transaction. Whoever reads, reads from the database, and has it catch up first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from buildnet.database import transaction
from buildnet.errors import (
    BadSignature,
    BuildNetError,
    InvalidRequest,
    LedgerCorrupt,
    NotFound,
    OutOfRange,
    Overloaded,
    StateCorrupt,
    StorageFull,
    TooLarge,
    TransferRefused,
)
from buildnet.files import replace_file
from buildnet.ledger import files, keys, leaf, queries, stored_tree, tree
from buildnet.ledger import tail as tails
from buildnet.ledger.book import Book, postings_of
from buildnet.ledger.checkpoint import Checkpoint, Signer, Verifier
from buildnet.ledger.drafts import UPSERT, Draft, Kept, draft_of
from buildnet.model.entry import Entry

T = TypeVar("T")

log = logging.getLogger(__name__)

WAITING_MAX = 100_000
# What the tail may hold when the database cannot be written.
WAITING_BYTES_MAX = 64 << 20
_BATCH_MAX = 4096
# A batch of this size gathers no more: at tens of thousands of cache writes a second it would cost tens of MiB.
_BATCH_BYTES = 256 << 10
_READ_AT_ONCE = 500
# How long entries gather before they share a transaction: nobody waits for it, since who reads has it done at once.
_LINGER_S = 3.0
# While somebody follows, by durability: a transaction that syncs holds up the tail's own syncs.
_FOLLOWED_LINGER_S = {"process": 0.2, "power": 0.5}
# After a transaction that failed.
_RETRY_S = 1.0


def load_or_create_key(path: Path) -> Signer:
    """The key at `path`, made at first use with mode 0600. It is never logged.

    Raises:
        StateCorrupt: the file does not hold a key.
    """
    key = keys.load_or_create(path)
    origin = f"buildnet.local/ledger/{key.public.hex()[:16]}"
    return Signer(origin, key)


class LedgerLog:
    """An open ledger. Appending belongs to one event loop; reading runs in threads."""

    def __init__(self, directory: Path, signer: Signer, connection: sqlite3.Connection, durability: str) -> None:
        self._directory = directory
        self._signer = signer
        self._connection = connection
        self._power = durability == "power"
        self._followed_linger_s = _FOLLOWED_LINGER_S[durability]
        self._followers = 0
        self._thread = ThreadPoolExecutor(1, "buildnet-ledger")
        self._writers = ThreadPoolExecutor(1, "buildnet-ledger-tail")
        self._closing = False
        self._readers = ThreadPoolExecutor(1, "buildnet-ledger-read")
        self._reader: sqlite3.Connection | None = None
        self._waiting: list[tuple[list[Draft], asyncio.Future[int]]] = []
        self._flusher: asyncio.Task[None] | None = None
        # Acknowledged, and not in the database; the first may be on its way there.
        self._accepted: list[Kept] = []
        self._committing: Kept | None = None
        self._accepted_count = 0
        self._accepted_bytes = 0
        self._committer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._failure: BuildNetError | None = None
        self._gathered: Callable[[], Awaitable[None]] | None = None
        self._handed_on: Callable[[int, Sequence[bytes]], None] | None = None
        self._grown = asyncio.Event()
        self._book = Book()
        self._frontier = self._load()
        self.size = self._frontier.size
        self._tail = tails.Tail(directory, power=self._power)

    @classmethod
    def open(cls, directory: Path, signer: Signer, durability: str) -> LedgerLog:
        """Open or create the ledger in `directory`.

        Raises:
            StateNewer, StateCorrupt: it cannot be opened.
            LedgerCorrupt: it is not what its own checkpoint says; `ledger verify` says more.
        """
        directory.mkdir(parents=True, exist_ok=True)
        ledger = cls(directory, signer, files.open_database(directory, durability), durability)
        ledger._note_writer()
        ledger._take_up()
        return ledger

    @property
    def verifier(self) -> Verifier:
        """The key that checkpoints are verified with."""
        return self._signer.verifier

    def _load(self) -> tree.Frontier:
        size = queries.size(self._connection)
        frontier = stored_tree.read(self._connection, lambda node: tree.Frontier.load(size, node))
        path = self._directory / files.CHECKPOINT
        if path.exists():
            known = self._written(path)
            if known.size > size:
                raise LedgerCorrupt(
                    f"the ledger in {self._directory} holds {size} entries, its checkpoint says {known.size}: "
                    "it lost its tail; restore it from a copy, or move the directory aside to begin a new ledger",
                    where="checkpoint",
                )
        for number, record in self._connection.execute("SELECT number, record FROM balance ORDER BY number"):
            self._book.load(number, record)
        # Status 0: what is still held.
        query = "SELECT number, record FROM pending WHERE substr(record, 1, 1) = x'00' ORDER BY number"
        self._book.load_pendings(self._connection.execute(query))
        return frontier

    def _written(self, path: Path) -> Checkpoint:
        try:
            return self.verifier.open(path.read_text())
        except (BadSignature, UnicodeDecodeError) as error:
            raise LedgerCorrupt(
                f"{path}: {error}; it or keys/ledger.key is not what it was: restore both from a copy, or move the "
                "ledger's directory aside to begin a new ledger",
                where=files.CHECKPOINT,
            ) from error

    def _note_writer(self) -> None:
        version = sqlite3.sqlite_version.encode()
        last = self._connection.execute("SELECT sqlite_version FROM writer ORDER BY number DESC LIMIT 1").fetchone()
        if last is None or last[0] != version:
            self._connection.execute("INSERT INTO writer (sqlite_version) VALUES (?)", (version,))
        path, text = self._directory / files.VERIFIER_KEY, self.verifier.text + "\n"
        if not path.exists() or path.read_text(errors="replace") != text:
            replace_file(path, text, synced=True)

    def _take_up(self) -> None:
        """Commit what a process acknowledged and was killed before it committed."""
        if not self._frontier.size:
            # A ledger that is killed before its first transaction is one too.
            self._write_note(self._sign(self._frontier))
        bodies = tails.read(self._directory, self.size)
        if bodies:
            try:
                self._post(self.size, [draft_of(body) for body in bodies])
                kept = Kept()
                kept.add(bodies, self._book)
                self._commit(kept)
            except (ValueError, KeyError, TypeError, InvalidRequest, TransferRefused) as error:
                message = f"the ledger's tail holds what was never acknowledged: {error}; restore it from a copy"
                raise LedgerCorrupt(message, where="tail") from error
            self.size = self._frontier.size
        self._tail.empty()

    async def append(self, entries: Sequence[Entry]) -> int:
        """See ports.Ledger.

        Raises:
            TooLarge: an entry is over BODY_BYTES_MAX; none is written.
            InvalidRequest: an entry's accounting is malformed; none is written.
            TransferRefused: the accounts do not allow it; none is written.
            Overloaded: the database cannot keep up, or cannot be written.
            StorageFull: the disk is full; none is written.
        """
        if not entries:
            # There would be nothing to sign: a checkpoint of the same size is there already.
            return self.size
        drafts = [Draft(leaf.encode(entry), entry.at_unix_ms, postings_of(entry.fields)) for entry in entries]
        for body, _, _ in drafts:
            if len(body) > files.BODY_BYTES_MAX:
                raise TooLarge(
                    f"a ledger entry of {len(body)} bytes is over the limit", limit_bytes=files.BODY_BYTES_MAX
                )
        if len(self._waiting) + self._accepted_count >= WAITING_MAX or self._accepted_bytes >= WAITING_BYTES_MAX:
            if self._failure is not None:
                raise self._failure
            raise Overloaded("the ledger cannot keep up; try again later", limit=WAITING_MAX)
        if not self._power:
            # Into the page cache: quicker than a hop to another thread.
            return self._write_now(drafts)
        loop = asyncio.get_running_loop()
        first: asyncio.Future[int] = loop.create_future()
        self._waiting.append((drafts, first))
        if self._flusher is None or self._flusher.done():
            self._flusher = loop.create_task(self._flush())
        return await asyncio.shield(first)

    def _post(self, first: int, drafts: Sequence[Draft]) -> None:
        """Do in the accounts what entries from index `first` on say: all of it or none."""
        mark = self._book.mark()
        try:
            for index, (_, at_unix_ms, postings) in enumerate(drafts, first):
                if postings is not None:
                    self._book.apply(index, at_unix_ms, postings)
        except TransferRefused:
            self._book.rollback(mark)
            raise

    def _write_now(self, drafts: list[Draft]) -> int:
        mark = self._book.mark()
        self._post(self.size, drafts)
        bodies = [draft.body for draft in drafts]
        try:
            first = self._write_tail(bodies)
        except BuildNetError:
            self._book.rollback(mark)
            raise
        return self._accept(first, bodies)

    def _write_tail(self, bodies: list[bytes]) -> int:
        try:
            self._tail.append(self.size, bodies)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"the ledger cannot be written: {error}; make room") from error
            raise StateCorrupt(f"the ledger cannot be written: {error}", path=str(self._directory)) from error
        return self.size

    def _accept(self, first: int, bodies: list[bytes]) -> int:
        self.size = first + len(bodies)
        last = self._accepted[-1] if self._accepted else None
        if (
            last is None
            or last is self._committing
            or len(last.bodies) >= _BATCH_MAX
            or last.size_bytes >= _BATCH_BYTES
        ):
            if last is not None and last is not self._committing:
                # A full batch gathers no more: who appends without pause is not to outrun the database.
                self._hurry.set()
            last = Kept()
            self._accepted.append(last)
        last.add(bodies, self._book)
        self._accepted_count += len(bodies)
        self._accepted_bytes += sum(map(len, bodies))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.get_running_loop().create_task(self._commit_accepted())
        return first

    async def _flush(self) -> None:
        """Appends that must be on the disk: whoever comes meanwhile shares the next sync."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            mark = self._book.mark()
            bodies: list[bytes] = []
            written: list[tuple[int, asyncio.Future[int]]] = []
            for drafts, waiter in batch:
                first = self.size + len(bodies)
                try:
                    self._post(first, drafts)
                except TransferRefused as error:
                    _fail(waiter, error)
                    continue
                written.append((first, waiter))
                bodies += [draft.body for draft in drafts]
            if not bodies:
                continue
            try:
                await loop.run_in_executor(self._writers, self._write_tail, bodies)
            except Exception as error:  # noqa: BLE001 - every waiter is told what happened to its append
                self._book.rollback(mark)
                for _, waiter in written:
                    _fail(waiter, error)
                continue
            self._accept(self.size, bodies)
            for first, waiter in written:
                if not waiter.done():
                    waiter.set_result(first)

    async def _commit_accepted(self) -> None:
        loop = asyncio.get_running_loop()
        while self._accepted:
            if len(self._accepted) == 1 or self._failure is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._pause_s())
            self._hurry.clear()
            kept = self._committing = self._accepted[0]
            self._tail.turn()
            try:
                first = await loop.run_in_executor(self._thread, self._commit, kept)
            except BuildNetError as error:
                log.error("%d ledger entries wait in the tail: %s", self._accepted_count, error)
                self._failure = error
            else:
                self._failure = None
                del self._accepted[0]
                self._accepted_count -= len(kept.bodies)
                self._accepted_bytes -= kept.size_bytes
                self._tail.clear(self._frontier.size)
                if self._handed_on is not None:
                    self._handed_on(first, kept.bodies)
            self._grown.set()
            self._grown = asyncio.Event()
            if self._failure is not None and self._closing:
                return

    def _pause_s(self) -> float:
        if self._failure is not None:
            return _RETRY_S
        return self._followed_linger_s if self._followers else _LINGER_S

    def gather(self, gathered: Callable[[], Awaitable[None]]) -> None:
        """Have `gathered` append what waits elsewhere to be appended, before anybody reads."""
        self._gathered = gathered

    def hand_on(self, taken: Callable[[int, Sequence[bytes]], None]) -> None:
        """Have `taken` given the entries of each transaction that is done, after the index of the first."""
        self._handed_on = taken

    async def _settle(self) -> None:
        """Have the database hold all that is acknowledged by now, or gathered.

        Raises:
            StorageFull, StateCorrupt: it cannot be written.
        """
        if self._gathered is not None:
            await self._gathered()
        size = self.size
        while self._frontier.size < size:
            if self._failure is not None:
                raise self._failure
            grown = self._grown
            self._hurry.set()
            await grown.wait()

    def _commit(self, kept: Kept) -> int:
        first = self._frontier.size
        frontier = self._frontier.copy()
        place = 2 * first - first.bit_count()
        nodes = frontier.extend(kept.bodies)
        balances, pendings = kept.rows()
        note = self._sign(frontier)
        try:
            with transaction(self._connection):
                files.insert_leaves(self._connection, first, kept.bodies)
                files.insert_nodes(self._connection, place, nodes)
                self._connection.executemany(UPSERT.format("balance"), balances)
                self._connection.executemany(UPSERT.format("pending"), pendings)
                self._connection.execute(
                    "INSERT INTO checkpoint (size, note) VALUES (?, ?)", (frontier.size, note.encode())
                )
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise StorageFull(f"the ledger cannot be written: {error}; make room") from error
            raise StateCorrupt(f"the ledger cannot be written: {error}", path=str(self._directory)) from error
        self._frontier = frontier
        self._write_note(note)
        return first

    def _sign(self, frontier: tree.Frontier) -> str:
        return self._signer.sign(Checkpoint(self._signer.verifier.name, frontier.size, frontier.root()))

    def _write_note(self, note: str) -> None:
        replace_file(self._directory / files.CHECKPOINT, note, synced=self._power)

    # Reading.

    @property
    def committed(self) -> int:
        """How many entries can be read without waiting for a transaction."""
        return self._frontier.size

    async def signed_size(self) -> int:
        """How many entries the newest checkpoint is of; all that are acknowledged by now are among them."""
        await self._settle()
        return self._frontier.size

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Let `work` read the database (ledger/queries.py), once it holds all that is acknowledged by now."""
        await self._settle()
        return await self._read(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_now, work)

    def _read_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            path = self._directory / files.DATABASE
            self._reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False, timeout=10)
        return work(self._reader)

    async def get(self, index: int) -> bytes:
        """The body of one entry.

        Raises:
            NotFound: there is none.
        """
        await self._settle()
        bodies = await self.read(index, 1) if 0 <= index < self._frontier.size else []
        if not bodies:
            raise NotFound(f"the ledger has no entry {index}; it has {self.size}", kind="entry", name=str(index))
        return bodies[0]

    async def read(self, start: int, count: int) -> list[bytes]:
        """Bodies from `start` on, at most `count` of them."""

        def rows(connection: sqlite3.Connection) -> list[bytes]:
            query = "SELECT body FROM leaf WHERE seq >= ? ORDER BY seq LIMIT ?"
            return [bytes(row[0]) for row in connection.execute(query, (start, count))]

        return await self._read(rows)

    async def nodes(self, level: int, start: int, count: int) -> list[bytes]:
        """Hashes of the complete subtrees `start` to `start + count` of a level, as far as there are; at most 256."""
        return await self._read(lambda c: stored_tree.nodes(c, level, start, count))

    async def tail(self, start: int, *, follow: bool) -> AsyncIterator[tuple[int, bytes]]:
        """Entries with their indices from `start` on; with `follow`, also those to come."""
        self._followers += follow
        try:
            await self._settle()
            while True:
                grown = self._grown
                while start < self._frontier.size:
                    for body in await self.read(start, _READ_AT_ONCE):
                        yield start, body
                        start += 1
                if not follow:
                    return
                await grown.wait()
        finally:
            self._followers -= follow

    async def checkpoint(self, size: int = 0) -> str:
        """The signed note of the newest checkpoint, or of the one of `size` entries.

        Raises:
            NotFound: no checkpoint has that size.
        """

        def note(connection: sqlite3.Connection) -> str | None:
            query = "SELECT note FROM checkpoint WHERE size = ? OR ? = 0 ORDER BY size DESC LIMIT 1"
            row = connection.execute(query, (size, size)).fetchone()
            return None if row is None else bytes(row[0]).decode()

        await self._settle()
        # A number beyond 63 bits is none to the database.
        found = await self._read(note) if size <= self._frontier.size else None
        if found is None:
            raise NotFound(f"the ledger has no checkpoint of size {size}", kind="checkpoint", name=str(size))
        return found

    async def prove_inclusion(self, index: int, size: int) -> list[bytes]:
        """The audit path of an entry in the tree of `size` entries.

        Raises:
            OutOfRange: there is no such entry or size.
        """
        await self._settle()
        if not 0 <= index < size <= self._frontier.size:
            raise OutOfRange(f"there is no entry {index} among {size}; the ledger has {self.size}", offset=index)
        return await self._read(lambda c: stored_tree.read(c, lambda node: tree.prove_inclusion(index, size, node)))

    async def prove_consistency(self, older: int, newer: int) -> list[bytes]:
        """That the first `older` entries begin the first `newer`.

        Raises:
            OutOfRange: unless 1 <= older <= newer <= size.
        """
        await self._settle()
        if not 1 <= older <= newer <= self._frontier.size:
            raise OutOfRange(f"no proof leads from {older} to {newer}; the ledger has {self.size}", offset=older)
        return await self._read(lambda c: stored_tree.read(c, lambda node: tree.prove_consistency(older, newer, node)))

    async def close(self) -> None:
        """Finish what waits; what cannot be committed stays in the tail for the next start."""
        self._closing = True
        if self._flusher is not None:
            await self._flusher
        if self._committer is not None:
            self._hurry.set()
            await self._committer
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        self._writers.shutdown()
        self._readers.shutdown()
        if self._reader is not None:
            self._reader.close()
        self._connection.close()
        self._tail.close()


def _fail(waiter: asyncio.Future[int], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
