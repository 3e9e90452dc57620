"""How the history lies on disk: one database of operations and of the messages that their actions are made of.

It is derived (docs/design/history.md): one that is damaged is set aside, and a new one begun.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from buildnet.database import connected, create
from buildnet.errors import StateCorrupt
from buildnet.model.action import ActionKey
from buildnet.model.caller import public_instance
from buildnet.model.digest import Digest
from buildnet.model.history import OutputFact, Parts, PastOperation, Ran, Requested

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
DATABASE: Final = "history.sqlite"

# Of one row, packed; a run with more keeps their number only.
OUTPUTS_BYTES_MAX: Final = 64 << 10
_UNPACKED_BYTES_MAX: Final = 64 << 20
_PACKED_BYTES_MIN: Final = 512
_PLAIN: Final = b"\x00"
_ZLIB: Final = b"\x01"

_SCHEMA: Final = (
    # `related_*` are hashes by which relatives are found, NULL for what cannot be one.
    """CREATE TABLE operation (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, instance TEXT NOT NULL, action BLOB NOT NULL,
        submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, code TEXT NOT NULL, exit_code INTEGER NOT NULL,
        cached INTEGER NOT NULL, kept INTEGER NOT NULL, lookup_skipped INTEGER NOT NULL, entry INTEGER,
        worker TEXT NOT NULL, caller TEXT NOT NULL, tool TEXT NOT NULL, invocation TEXT NOT NULL, target TEXT NOT NULL,
        mnemonic TEXT NOT NULL, command BLOB, root BLOB, queued_ms INTEGER, staged_ms INTEGER, ran_ms INTEGER,
        uploaded_ms INTEGER, outputs BLOB, output_count INTEGER NOT NULL, message INTEGER,
        related_target INTEGER, related_outputs INTEGER, related_program INTEGER)""",
    "CREATE INDEX by_action ON operation (action, number)",
    "CREATE INDEX by_target ON operation (target, number) WHERE target <> ''",
    "CREATE INDEX by_entry ON operation (entry) WHERE entry IS NOT NULL",
    "CREATE INDEX by_command ON operation (command, number) WHERE command IS NOT NULL",
    "CREATE INDEX by_related_target ON operation (related_target, number) WHERE related_target IS NOT NULL",
    "CREATE INDEX by_related_outputs ON operation (related_outputs, number) WHERE related_outputs IS NOT NULL",
    "CREATE INDEX by_related_program ON operation (related_program, number) WHERE related_program IS NOT NULL",
    "CREATE TABLE message (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, body BLOB NOT NULL)",
    "CREATE TABLE refers (parent INTEGER NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)) WITHOUT ROWID",
)

COLUMNS: Final = (
    "number, id, instance, action, submitted_at, ended_at, code, exit_code, cached, kept, lookup_skipped, entry, "
    "worker, caller, tool, invocation, target, mnemonic, command, root, queued_ms, staged_ms, ran_ms, uploaded_ms, "
    "outputs, output_count"
)

# What no operation leads to any more.
_MARK: Final = """INSERT INTO live WITH RECURSIVE reached (number) AS (
    SELECT DISTINCT message FROM operation WHERE message IS NOT NULL
    UNION SELECT child FROM refers JOIN reached ON parent = reached.number) SELECT number FROM reached"""


def open_database(directory: Path) -> sqlite3.Connection:
    """Open or create the database for its one writer; one that cannot be read is renamed and a new one begun.

    Raises:
        StateNewer: a newer version wrote it.
        StateCorrupt: none can be made there.
    """
    path = directory / DATABASE
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return _opened(path)
        except sqlite3.OperationalError:
            # The disk is full, or refuses: what is there may be whole.
            raise
        except sqlite3.DatabaseError as error:
            log.warning("%s: %s; it is set aside as %s.damaged, and a new history begins", path, error, path.name)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.replace(path.with_name(path.name + ".damaged"))
            return _opened(path)
    except (sqlite3.DatabaseError, OSError) as error:
        raise StateCorrupt(f"{path}: {error}; move it aside to begin a new history", path=str(path)) from error


def _opened(path: Path) -> sqlite3.Connection:
    connection, found = connected(path, SCHEMA_VERSION)
    # Readers never wait for the writer. What the last moments before a loss of power recorded may be lost: it follows.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA temp_store = MEMORY")
    if not found:
        create(connection, _SCHEMA, SCHEMA_VERSION)
    connection.execute("SELECT count(*) FROM (SELECT 1 FROM operation LIMIT 1)").fetchone()
    return connection


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the database takes, without pages that are free for new rows."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def remove_oldest(connection: sqlite3.Connection, count: int, before_unix_ms: int) -> None:
    """Remove the oldest `count` operations and all that ended before a time, and the messages that only they led to.

    Within a transaction of the caller's.
    """
    connection.execute(
        "DELETE FROM operation WHERE number IN (SELECT number FROM operation ORDER BY number LIMIT ?) OR ended_at < ?",
        (count, before_unix_ms),
    )
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS live (number INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM live")
    connection.execute(_MARK)
    connection.execute("DELETE FROM message WHERE number NOT IN (SELECT number FROM live)")
    connection.execute("DELETE FROM refers WHERE parent NOT IN (SELECT number FROM live)")
    connection.execute("DELETE FROM live")


def pack_digest(digest: Digest) -> bytes:
    """A digest as 40 bytes: the hash, then the size."""
    return bytes.fromhex(digest.hash) + digest.size_bytes.to_bytes(8, "big")


def unpack_digest(packed: bytes | None) -> Digest | None:
    """The digest of 40 bytes."""
    return None if packed is None else Digest(packed[:32].hex(), int.from_bytes(packed[32:], "big"))


def pack(body: bytes) -> bytes:
    """A body as it is stored: behind a byte that says whether it is packed. What is small costs more than it saves."""
    return _PLAIN + body if len(body) < _PACKED_BYTES_MIN else _ZLIB + zlib.compress(body, 1)


def unpack(packed: bytes) -> bytes | None:
    """A stored body, None when it is none."""
    if packed[:1] == _PLAIN:
        return packed[1:]
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed[1:], _UNPACKED_BYTES_MAX)
    except zlib.error:
        return None
    return body if unpacker.eof else None


def pack_outputs(outputs: Iterable[OutputFact]) -> bytes | None:
    """Outputs as they are stored, None when they are too many."""
    packed = pack(json.dumps([[fact.path, fact.kind, fact.text] for fact in outputs]).encode())
    return packed if len(packed) <= OUTPUTS_BYTES_MAX else None


def related(*words: str) -> int:
    """A number by which rows that share these words are found; who finds one compares the words themselves."""
    text = "\x00".join(words).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


def relations(key: ActionKey, requested: Requested, parts: Parts | None) -> tuple[int | None, int | None, int | None]:
    """Numbers of the target, the outputs and the program; None for what an operation does not have."""
    instance = public_instance(key.instance)
    target = related("target", instance, requested.target, requested.mnemonic) if requested.target else None
    if parts is None:
        return target, None, None
    outputs = related("outputs", instance, *sorted(parts.outputs)) if parts.outputs else None
    program = related("program", instance, *parts.arguments[:1], parts.working_directory) if parts.arguments else None
    return target, outputs, program


def past_of(row: tuple[Any, ...]) -> PastOperation:
    """The operation in a row of COLUMNS."""
    (number, operation, instance, action, submitted, ended, code, exit_code, cached, kept, skipped, entry) = row[:12]
    worker, caller, tool, invocation, target, mnemonic, command, root, queued, staged, ran, uploaded = row[12:24]
    outputs, output_count = row[24:]
    digest = unpack_digest(action)
    assert digest is not None
    packed = unpack(outputs) if outputs is not None else None
    return PastOperation(
        number=number,
        operation=operation,
        key=ActionKey(instance, digest),
        submitted_at_unix_ms=submitted,
        ended_at_unix_ms=ended,
        code=code,
        exit_code=exit_code,
        cached=bool(cached),
        kept=bool(kept),
        lookup_skipped=bool(skipped),
        entry_index=entry,
        worker=worker,
        caller=caller,
        requested=Requested(tool, invocation, target, mnemonic),
        command=unpack_digest(command),
        root=unpack_digest(root),
        queued_ms=queued,
        ran=Ran(
            staged_ms=staged,
            ran_ms=ran,
            uploaded_ms=uploaded,
            outputs=tuple(OutputFact(*fact) for fact in json.loads(packed)) if packed else (),
            output_count=output_count,
        ),
    )
