"""Which entries post to which account: a view beside the ledger, made from its entries, and no authority over them.

It follows when it is asked, so that no append pays for it; what it has read stays read. Where it is damaged, or of
another ledger, it is made anew. Every call is in the reader's one thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buildnet import database
from buildnet.errors import StateCorrupt, StorageFull
from buildnet.ledger import queries
from buildnet.model.posting import Hold, Line, Move, Resolve, parse_line

log = logging.getLogger(__name__)

FILE: Final = "statements.sqlite"
_VERSION: Final = 1
_TABLES: Final = (
    "CREATE TABLE account (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE posting (account INTEGER NOT NULL, entry INTEGER NOT NULL, PRIMARY KEY (account, entry)) "
    "WITHOUT ROWID",
    # How far it has read, and the SHA-256 of the last entry that it read.
    "CREATE TABLE followed (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, last BLOB NOT NULL)",
    "INSERT INTO followed VALUES (1, 0, x'')",
)


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a statement: `status` is posted, pending or voided, of the amount that it tells of."""

    index: int
    at_unix_ms: int
    kind: str
    debit: str
    credit: str
    unit: str
    amount: int
    status: str


class Statements:
    """The view, opened when it is first asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._view: sqlite3.Connection | None = None

    def follow(self, size: int) -> Callable[[sqlite3.Connection], bool]:
        """Read on towards the first `size` entries, at most `queries.ROWS_MAX`; whether there are others still.

        Raises, when it is called:
            StorageFull, StateCorrupt: it cannot be written.
        """

        def read(ledger: sqlite3.Connection) -> bool:
            try:
                view = self._opened(ledger)
                start: int = view.execute("SELECT size FROM followed").fetchone()[0]
                end = min(start + queries.ROWS_MAX, size)
                if end > start:
                    with database.transaction(view):
                        self._read(view, ledger, start, end)
            except sqlite3.DatabaseError as error:
                self.close()
                path = self._directory / FILE
                if "full" in str(error):
                    raise StorageFull(f"{path} cannot be written: {error}; make room") from error
                raise StateCorrupt(f"{path}: {error}; remove it, and it is made anew", path=str(path)) from error
            return end < size

        return read

    def _opened(self, ledger: sqlite3.Connection) -> sqlite3.Connection:
        if self._view is not None:
            return self._view
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / FILE
        view, found = database.connected(path, _VERSION)
        # It may lose its last moments, which it reads again, and is not damaged by it.
        view.execute("PRAGMA journal_mode = WAL")
        view.execute("PRAGMA synchronous = NORMAL")
        if found and not _is_of(view, ledger):
            log.warning("%s is of another ledger, or of one that lost entries: it is made anew", path)
            view.execute("DROP TABLE account")
            view.execute("DROP TABLE posting")
            view.execute("DROP TABLE followed")
            found = 0
        if not found:
            database.create(view, _TABLES, _VERSION)
        self._view = view
        return view

    def _read(self, view: sqlite3.Connection, ledger: sqlite3.Connection, start: int, end: int) -> None:
        query = "SELECT seq, body FROM leaf WHERE seq >= ? AND seq < ? AND instr(body, ?) ORDER BY seq"
        numbers: dict[str, int] = {}
        rows = []
        for seq, body in ledger.execute(query, (start, end, b'"transfers"')):
            names = {name for posting in _postings(ledger, seq, body) for name in (posting.debit, posting.credit)}
            rows += [(numbers.get(name) or _number(view, name, numbers), seq) for name in names]
        view.executemany("INSERT OR IGNORE INTO posting VALUES (?, ?)", rows)
        view.execute("UPDATE followed SET size = ?, last = ?", (end, _last(ledger, end)))

    def entries(self, account: str, after: int, count: int) -> Callable[[sqlite3.Connection], list[int]]:
        """Indices above `after` of entries that post to or from an account, at most `count`, as far as it has read."""

        def read(ledger: sqlite3.Connection) -> list[int]:
            query = (
                "SELECT entry FROM posting WHERE account = (SELECT number FROM account WHERE name = ?) AND entry > ? "
                "ORDER BY entry LIMIT ?"
            )
            return [row[0] for row in self._opened(ledger).execute(query, (account, after, count))]

        return read

    def close(self) -> None:
        """Close it; it is opened again when it is asked again."""
        if self._view is not None:
            self._view.close()
            self._view = None


def _number(view: sqlite3.Connection, name: str, numbers: dict[str, int]) -> int:
    view.execute("INSERT OR IGNORE INTO account (name) VALUES (?)", (name,))
    numbers[name] = view.execute("SELECT number FROM account WHERE name = ?", (name,)).fetchone()[0]
    return numbers[name]


def _is_of(view: sqlite3.Connection, ledger: sqlite3.Connection) -> bool:
    size, last = view.execute("SELECT size, last FROM followed").fetchone()
    return size == 0 or bytes(last) == _last(ledger, size)


def _last(ledger: sqlite3.Connection, size: int) -> bytes:
    row = ledger.execute("SELECT body FROM leaf WHERE seq = ?", (size - 1,)).fetchone()
    return b"" if row is None else hashlib.sha256(row[0]).digest()


def postings(account: str, entries: list[int]) -> Callable[[sqlite3.Connection], list[Posting]]:
    """What these entries, at most 1,000, post to or from an account."""

    def read(connection: sqlite3.Connection) -> list[Posting]:
        query = f"SELECT seq, body FROM leaf WHERE seq IN ({','.join('?' * len(entries))}) ORDER BY seq"
        rows = connection.execute(query, entries)
        return [
            posting
            for seq, body in rows
            for posting in _postings(connection, seq, body)
            if account in (posting.debit, posting.credit)
        ]

    return read


def _postings(connection: sqlite3.Connection, index: int, body: bytes) -> Iterator[Posting]:
    fields = json.loads(body)
    for text in fields.get("transfers", ()):
        for line in _amounts(connection, parse_line(text)):
            yield Posting(index, fields["at_unix_ms"], fields["kind"], *line)


def _amounts(connection: sqlite3.Connection, line: Line) -> list[tuple[str, str, str, int, str]]:
    """Debit, credit, unit, amount and status of each transfer of a line."""
    if isinstance(line, Move):
        return [(line.debit, line.credit, unit, amount, "posted") for unit, amount in line.amounts]
    if isinstance(line, Hold):
        return [(line.debit, line.credit, line.unit, line.amount, "pending")]
    held = _held(connection, line)
    if line.amount is None:
        return [(held.debit, held.credit, held.unit, held.amount, "voided")]
    return [(held.debit, held.credit, held.unit, line.amount, "posted")]


def _held(connection: sqlite3.Connection, line: Resolve) -> Hold:
    body = connection.execute("SELECT body FROM leaf WHERE seq = ?", (line.index,)).fetchone()[0]
    held = parse_line(json.loads(body)["transfers"][line.place])
    assert isinstance(held, Hold), "the ledger takes no end of what is no hold"
    return held
