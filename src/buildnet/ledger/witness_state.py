"""What a witness cosigned last, one row a log: written and synced before the cosignature leaves.

Comparing the old size, deciding and writing are one transaction, so that no two requests can fork a log's history.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from buildnet.database import connected, create, transaction
from buildnet.errors import StateCorrupt, StorageFull
from buildnet.ledger import note as notes
from buildnet.ledger.checkpoint import Verifier
from buildnet.ledger.cosignature import Cosigner
from buildnet.ledger.witness import AddCheckpoint, Recorded, Refused, decide, origin_of

DATABASE: Final = "witness.sqlite"
SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE latest (origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL)
"""


class Witness:
    """Decides, writes, cosigns. Its methods block on the disk and may be called from any thread."""

    def __init__(self, connection: sqlite3.Connection, cosigner: Cosigner, logs: Sequence[Verifier]) -> None:
        self._connection = connection
        self._cosigner = cosigner
        self._logs: dict[str, list[Verifier]] = {}
        for verifier in logs:
            self._logs.setdefault(verifier.name, []).append(verifier)
        self._by_hash = {hashlib.sha256(origin.encode()).hexdigest(): origin for origin in self._logs}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path, cosigner: Cosigner, logs: Sequence[Verifier]) -> Witness:
        """Open or create the state in `directory`, which nobody else has open.

        Raises:
            StateNewer: a newer version wrote it.
            StateCorrupt: it is not a database, or cannot be opened.
        """
        path = directory / DATABASE
        try:
            connection, found = connected(path, SCHEMA_VERSION)
            # A size that was cosigned and is forgotten would let a log fork: each one is on the disk first.
            connection.execute("PRAGMA synchronous = FULL")
            if found == 0:
                create(connection, [_SCHEMA], SCHEMA_VERSION)
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(
                f"{path}: {error}; restore it from a copy: a witness that forgets lets logs fork", path=str(path)
            ) from error
        return cls(connection, cosigner, logs)

    @property
    def origins(self) -> Mapping[str, str]:
        """The logs that are witnessed, by the SHA-256 of their origin in hex."""
        return self._by_hash

    def add_checkpoint(self, request: AddCheckpoint, at_unix_s: int) -> notes.Signature | Refused:
        """The cosignature of a request's checkpoint, once it is on the disk that it was given.

        Raises:
            StorageFull, StateCorrupt: it cannot be written; nothing is cosigned.
        """
        with self._lock:
            try:
                with transaction(self._connection):
                    answer = self._answer(request, at_unix_s)
            except sqlite3.OperationalError as error:
                if "full" in str(error):
                    raise StorageFull(f"the witness's state cannot be written: {error}; make room") from error
                raise StateCorrupt(f"the witness's state cannot be written: {error}", path=DATABASE) from error
        return answer

    def _answer(self, request: AddCheckpoint, at_unix_s: int) -> notes.Signature | Refused:
        origin = origin_of(request)
        query = "SELECT size, root FROM latest WHERE origin = ?"
        row = self._connection.execute(query, (origin,)).fetchone() if origin in self._logs else None
        recorded = Recorded() if row is None else Recorded(*row)
        agreed = decide(request, self._logs, recorded)
        if isinstance(agreed, Refused):
            return agreed
        cosignature = self._cosigner.cosign(agreed.text, at_unix_s)
        note = notes.join(agreed.text, [*agreed.signed, cosignature])
        self._connection.execute(
            "INSERT OR REPLACE INTO latest (origin, size, root, note) VALUES (?, ?, ?, ?)",
            (origin, agreed.head.size, agreed.head.root, note),
        )
        return cosignature

    def latest(self, origin: str) -> str | None:
        """The checkpoint that was cosigned last, with the log's and this witness's signatures."""
        with self._lock:
            row = self._connection.execute("SELECT note FROM latest WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()
