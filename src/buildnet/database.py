"""The one place that opens a database and begins a transaction: it refuses a newer one, and leaves nothing half done.

What is in it, and how it is kept, is its owner's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from buildnet.errors import StateNewer


def connected(path: Path, supported: int) -> tuple[sqlite3.Connection, int]:
    """A database, made if it is not there, and the version of what it holds; 0 for nothing yet.

    Raises:
        StateNewer: it is beyond `supported`.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > supported:
        connection.close()
        raise StateNewer(
            f"{path} was written by a newer version (schema {found}, this one reads up to {supported}); upgrade",
            path=str(path),
            found=found,
            supported=supported,
        )
    return connection, found


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the body writes, or none of it.

    Raises:
        sqlite3.OperationalError: it cannot be written; nothing of it is.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has ended the transaction already, and another error here would hide that.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def create(connection: sqlite3.Connection, statements: Iterable[str], version: int) -> None:
    """Make tables and what else there is, whole or not at all, and say that this is the version."""
    with transaction(connection):
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
