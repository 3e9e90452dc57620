"""How the ledger lies on disk (docs/design/ledger.md): one database whose every byte has a meaning, and two notes.

Every table is keyed by an ever-growing rowid, and a row that is updated keeps its length, so that pages fill in order
and hold no remains.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from buildnet import database
from buildnet.errors import StateCorrupt
from buildnet.ledger.tree import HASH_BYTES

# 2: accounts. A ledger of 1 is opened as one of 2 without any account; one of 2 is not opened by what knows only 1.
SCHEMA_VERSION = 2
PAGE_BYTES = 16384
# A body fits its page: no overflow chains, whose tails would be bytes without a meaning.
BODY_BYTES_MAX = 8192

_ROWS_AT_ONCE: Final = 64
_NODES: Final = f"""
WITH RECURSIVE number (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i < ?1)
INSERT INTO node SELECT ?2 + i, substr(?3, 1 + {HASH_BYTES} * i, {HASH_BYTES}) FROM number
"""

DATABASE = "ledger.sqlite"
CHECKPOINT = "checkpoint"
VERIFIER_KEY = "key.pub"

TABLES = {
    "leaf": "CREATE TABLE leaf (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "node": "CREATE TABLE node (position INTEGER PRIMARY KEY, hash BLOB NOT NULL)",
    "checkpoint": "CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, note BLOB NOT NULL)",
    "writer": "CREATE TABLE writer (number INTEGER PRIMARY KEY, sqlite_version BLOB NOT NULL)",
}
GUARDS = {
    f"{table}_{verb.lower()}": f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for table in TABLES
    for verb in ("UPDATE", "DELETE")
}
# What the leaves say of accounts, summed up (ledger/book.py): the one thing here that changes.
SUMS = {
    "balance": "CREATE TABLE balance (number INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    "pending": "CREATE TABLE pending (number INTEGER PRIMARY KEY, record BLOB NOT NULL)",
}
SUMS_GUARDS = {
    name: f"CREATE TRIGGER {name} BEFORE {event} ON {table} {when}"
    f"BEGIN SELECT RAISE(ABORT, 'an account stays, and keeps its place and length'); END"
    for table in SUMS
    for name, event, when in (
        (
            f"{table}_update",
            "UPDATE",
            "WHEN old.number <> new.number OR length(old.record) <> length(new.record) ",
        ),
        (f"{table}_delete", "DELETE", ""),
    )
}
_FIRST = (*TABLES.values(), *GUARDS.values())
_SECOND = (*SUMS.values(), *SUMS_GUARDS.values())
STATEMENTS = {1: _FIRST, 2: (*_FIRST, *_SECOND)}


def open_database(directory: Path, durability: str) -> sqlite3.Connection:
    """Open or create the database for its one writer.

    Raises:
        StateNewer: a newer version wrote it.
        StateCorrupt: it is not a database, or cannot be opened.
    """
    path = directory / DATABASE
    try:
        connection, found = database.connected(path, SCHEMA_VERSION)
        configure(connection, durability)
        if found < SCHEMA_VERSION:
            create(connection, found)
        return connection
    except sqlite3.DatabaseError as error:
        raise StateCorrupt(
            f"{path}: {error}; restore the directory from a copy, or move it aside to begin a new ledger",
            path=str(path),
        ) from error


def insert_leaves(connection: sqlite3.Connection, first: int, bodies: Sequence[bytes]) -> None:
    """Add rows to `leaf`, numbered from `first` on.

    Many with one statement: for each statement the interpreter lock is given away and asked for again.
    """
    whole = len(bodies) - len(bodies) % _ROWS_AT_ONCE
    if whole:
        query = f"INSERT INTO leaf VALUES {', '.join(['(?, ?)'] * _ROWS_AT_ONCE)}"
        numbered = chain.from_iterable(enumerate(bodies[:whole], first))
        connection.executemany(query, zip(*[numbered] * (2 * _ROWS_AT_ONCE), strict=True))
    connection.executemany("INSERT INTO leaf VALUES (?, ?)", enumerate(bodies[whole:], first + whole))


def insert_nodes(connection: sqlite3.Connection, place: int, hashes: bytes) -> None:
    """Add rows to `node` from `place` on: hashes that stand one behind the other."""
    count = len(hashes) // HASH_BYTES
    if count:
        connection.execute(_NODES, (count - 1, place, hashes))


def configure(connection: sqlite3.Connection, durability: str) -> None:
    """Set what is not remembered in the file, and the page size before there is one."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA secure_delete = ON")
    # Not a write-ahead log: pages of the database that it supersedes would be bytes without a meaning.
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA busy_timeout = 10000")
    # NORMAL loses nothing when a process dies; FULL nothing that was acknowledged when power is lost.
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")


def create(connection: sqlite3.Connection, found: int = 0, version: int = SCHEMA_VERSION) -> None:
    """Make the tables and what guards them; of a database of version `found`, only those that it lacks."""
    database.create(connection, STATEMENTS[version][len(STATEMENTS.get(found, ())) :], version)
