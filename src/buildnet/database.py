"""The one place that opens a database: it refuses a newer one. What is in it, and how it is kept, is its owner's."""

from __future__ import annotations

import sqlite3
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
