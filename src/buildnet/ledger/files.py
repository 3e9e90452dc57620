"""How the ledger lies on disk (docs/design/ledger.md): one database whose every byte has a meaning, and two notes.

Every table is keyed by an ever-growing rowid and never updated, so that pages fill in order and hold no remains.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from buildnet.errors import StateCorrupt, StateNewer

SCHEMA_VERSION = 1
PAGE_BYTES = 16384
# A body fits its page: no overflow chains, whose tails would be bytes without a meaning.
BODY_BYTES_MAX = 8192

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


def open_database(directory: Path, durability: str) -> sqlite3.Connection:
    """Open or create the database for its one writer.

    Raises:
        StateNewer: a newer version wrote it.
        StateCorrupt: it is not a database, or cannot be opened.
    """
    path = directory / DATABASE
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            connection.close()
            raise StateNewer(
                f"{path} was written by a newer version (schema {found}, this one reads up to {SCHEMA_VERSION}); "
                "upgrade",
                path=str(path),
                found=found,
                supported=SCHEMA_VERSION,
            )
        configure(connection, durability)
        if found == 0:
            create(connection)
        return connection
    except sqlite3.DatabaseError as error:
        raise StateCorrupt(
            f"{path}: {error}; restore the directory from a copy, or move it aside to begin a new ledger",
            path=str(path),
        ) from error


def configure(connection: sqlite3.Connection, durability: str) -> None:
    """Set what is not remembered in the file, and the page size before there is one."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA secure_delete = ON")
    # Not a write-ahead log: pages of the database that it supersedes would be bytes without a meaning.
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA busy_timeout = 10000")
    # NORMAL loses nothing when a process dies; FULL nothing that was acknowledged when power is lost.
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")


def create(connection: sqlite3.Connection) -> None:
    """Make the tables and what guards them."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in (*TABLES.values(), *GUARDS.values()):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
