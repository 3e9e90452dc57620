"""Which nodes have joined by their keys, and the tokens that let them: one token, one node, once. Of a token only its
SHA-256 is kept. Time and randomness are arguments.

All of it is in one SQLite file, and taking a token is the transaction that writes the node's key: of two nodes that
show one token, one joins, also over a crash.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from buildnet.database import connected, create, transaction
from buildnet.errors import Forbidden, InvalidRequest, NotFound, Overloaded, StateCorrupt, Unauthenticated
from buildnet.model.tier import Tier, tier_of

LIFETIME_S: Final = 3600
LIFETIME_S_MAX: Final = 30 * 86_400
NOTE_CHARACTERS_MAX: Final = 255
TOKENS_MAX: Final = 10_000
NODES_MAX: Final = 100_000
_KEPT_MS: Final = 7 * 86_400_000
_VERSION: Final = 2
_SCHEMA: Final = (
    """CREATE TABLE token (
  hash BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, made_at_unix_ms INTEGER NOT NULL, expires_at_unix_ms INTEGER NOT NULL,
  made_by TEXT NOT NULL, note TEXT NOT NULL, used_at_unix_ms INTEGER, used_by TEXT, revoked_at_unix_ms INTEGER,
  refusals_told TEXT NOT NULL DEFAULT '', tier TEXT NOT NULL DEFAULT 'trusted'
) STRICT""",
    """CREATE TABLE node (
  key TEXT PRIMARY KEY, node TEXT UNIQUE, joined_at_unix_ms INTEGER NOT NULL, token_id TEXT NOT NULL,
  is_ledgered INTEGER NOT NULL DEFAULT 0, tier TEXT NOT NULL DEFAULT 'trusted'
) STRICT""",
)

# Before tiers every node that was let in was trusted.
_SINCE_1: Final = tuple(
    f"ALTER TABLE {table} ADD COLUMN tier TEXT NOT NULL DEFAULT 'trusted'" for table in ("token", "node")
)

TokenState = Literal["valid", "used", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is kept of a token. `id` is the beginning of its hash. Times are Unix milliseconds, 0 for never."""

    id: str
    state: TokenState
    made_at_unix_ms: int
    expires_at_unix_ms: int
    made_by: str = ""
    note: str = ""
    used_by: str = ""
    used_at_unix_ms: int = 0
    tier: Tier = "trusted"


@dataclass(frozen=True, slots=True)
class Member:
    """A node that joined. `node` is the id that it said, "" when it has said none yet."""

    key: str
    node: str
    token_id: str
    is_ledgered: bool


class TokenRefused(Unauthenticated):
    """A join token that is of no use. `is_news`: whether it is the first such refusal of a token that is known."""

    def __init__(self, message: str, *, token_id: str = "", reason: str = "", is_news: bool = False) -> None:
        super().__init__(message)
        self.token_id, self.reason, self.is_news = token_id, reason, is_news


class Members:
    """The file, open. Every method *blocks* for a transaction; they may be called from several threads."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it with mode 0600.

        Raises:
            StateNewer: a newer version wrote it.
            StateCorrupt: it cannot be used.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database, version = connected(path, _VERSION)
            self._database.execute("PRAGMA journal_mode = WAL")
            # A token that was taken must not come back with the power.
            self._database.execute("PRAGMA synchronous = FULL")
            if version == 0:
                create(self._database, _SCHEMA, _VERSION)
            elif version == 1:
                create(self._database, _SINCE_1, _VERSION)
            # So that a list of nodes, or a publication, costs no look into the file.
            known = self._database.execute("SELECT node, key, tier FROM node WHERE node IS NOT NULL").fetchall()
            self._keys: dict[str, str] = {node: key for node, key, _ in known}
            self._tiers: dict[str, Tier] = {node: tier_of(tier, "tier") for node, _, tier in known}
        except (OSError, sqlite3.Error, InvalidRequest) as error:
            raise self._corrupt(error) from error

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._database.close()

    # Tokens.

    def make(
        self,
        secret: bytes,
        *,
        now_unix_ms: int,
        lifetime_s: int,
        by: str = "",
        note: str = "",
        tier: Tier = "trusted",
    ) -> JoinToken:
        """Keep a new token; the secret is the caller's to tell, once.

        Raises:
            InvalidRequest: the lifetime or the note is out of bounds.
            Overloaded: as many are kept as may be.
        """
        if not 1 <= lifetime_s <= LIFETIME_S_MAX:
            raise InvalidRequest("a join token lasts from 1 s to 30 d, as in 1h", field="lifetime")
        if len(note) > NOTE_CHARACTERS_MAX or not note.isprintable():
            raise InvalidRequest(
                f"a note is {NOTE_CHARACTERS_MAX} characters at most, without control characters", field="note"
            )
        digest = hashlib.sha256(secret).digest()
        with self._transaction() as database:
            # Those that are of no use are of interest for a while.
            database.execute(
                "DELETE FROM token WHERE max(expires_at_unix_ms, coalesce(used_at_unix_ms, 0)) < ?",
                (now_unix_ms - _KEPT_MS,),
            )
            if database.execute("SELECT count(*) FROM token").fetchone()[0] >= TOKENS_MAX:
                raise Overloaded(
                    f"{TOKENS_MAX} join tokens are kept already; wait until some have ended", limit=TOKENS_MAX
                )
            database.execute(
                "INSERT INTO token(hash, id, made_at_unix_ms, expires_at_unix_ms, made_by, note, tier)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (digest, _id_of(digest), now_unix_ms, now_unix_ms + lifetime_s * 1000, by, note, tier),
            )
        return JoinToken(_id_of(digest), "valid", now_unix_ms, now_unix_ms + lifetime_s * 1000, by, note, tier=tier)

    def tokens(self, now_unix_ms: int) -> list[JoinToken]:
        """Those that are kept, the newest first."""
        with self._transaction() as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM token ORDER BY made_at_unix_ms DESC, id").fetchall()
        return [_token_of(row, now_unix_ms) for row in rows]

    def revoke(self, token_id: str, now_unix_ms: int) -> tuple[JoinToken, bool]:
        """Let a token be of no use; returns it, and whether that is news.

        Raises:
            NotFound: there is no such token.
        """
        with self._transaction() as database:
            where = f"SELECT {_COLUMNS} FROM token WHERE id = ?"
            row = database.execute(where, (token_id,)).fetchone()
            if row is None:
                raise NotFound(
                    f"no join token is called {token_id[:32]!r}; `buildnet fleet tokens ls` lists them",
                    kind="join token",
                    name=token_id[:32],
                )
            fresh = _token_of(row, now_unix_ms).state == "valid"
            if fresh:
                database.execute("UPDATE token SET revoked_at_unix_ms = ? WHERE id = ?", (now_unix_ms, token_id))
                row = database.execute(where, (token_id,)).fetchone()
        return _token_of(row, now_unix_ms), fresh

    # Nodes.

    def admit(self, key: str, secret: bytes | None, now_unix_ms: int) -> Member:
        """The node with this key, which its session has proven: one that has joined, or that joins now with a token.

        Raises:
            TokenRefused: it has not joined, and shows no token or one that is of no use.
            Overloaded: as many nodes have joined as may.
        """
        with self._transaction() as database:
            known = _member(database, "key", key)
            if known is not None:
                # Also when it shows the token again: it did not hear that it had joined.
                return known
            if secret is None:
                raise TokenRefused(
                    "this node has not joined; ask for a join line: buildnet fleet tokens new", reason="unknown node"
                )
            digest = hashlib.sha256(secret).digest()
            row = database.execute(f"SELECT {_COLUMNS}, refusals_told FROM token WHERE hash = ?", (digest,)).fetchone()
            if row is None:
                raise TokenRefused("this join token is not known here; ask for a new join line", reason="unknown token")
            token = _token_of(row[:-1], now_unix_ms)
            if token.state == "valid":
                return _take(database, token, digest, key, now_unix_ms)
            told = set(row[-1].split())
            database.execute(
                "UPDATE token SET refusals_told = ? WHERE hash = ?", (" ".join(sorted({*told, token.state})), digest)
            )
        raise TokenRefused(
            f"this join token {_WHY[token.state]}; ask for a new join line",
            token_id=token.id,
            reason=token.state,
            is_news=token.state not in told,
        )

    def ledgered(self, key: str) -> None:
        """Remember that the ledger says how this node joined."""
        with self._transaction() as database:
            database.execute("UPDATE node SET is_ledgered = 1 WHERE key = ?", (key,))

    def check_id(self, key: str, node: str) -> bool:
        """Whether the node with this key is yet to be bound to this id, which it says is its own.

        Raises:
            Forbidden: it said another before, or another node has this one.
        """
        with self._transaction() as database:
            known, holder = _member(database, "key", key), _member(database, "node", node)
            if known is None or (holder is not None and holder.key != key):
                raise Forbidden(
                    f"node {node} has another key; if its state directory was copied, delete `id` and `keys` in "
                    "the copy and join it with a new line"
                )
            if known.node not in ("", node):
                raise Forbidden(f"this key is of node {known.node}, not of {node}; restore the file `id`")
        return not known.node

    def bind(self, key: str, node: str) -> None:
        """Bind a key to an id, both of which `check_id` has seen. Binding twice is binding once."""
        with self._transaction() as database:
            database.execute("UPDATE node SET node = ? WHERE key = ? AND node IS NULL", (node, key))
            (tier,) = database.execute("SELECT tier FROM node WHERE key = ?", (key,)).fetchone()
        self._keys[node] = key
        self._tiers[node] = tier_of(tier, "tier")

    def key_of(self, node: str) -> str:
        """The key of the node with this id, "" when it joined by none. It does not block."""
        return self._keys.get(node, "")

    def tier_of(self, node: str) -> Tier | None:
        """How far the node with this id is trusted, None when it joined by no key. It does not block."""
        return self._tiers.get(node)

    def set_tier(self, node: str, tier: Tier) -> None:
        """Trust a node that joined by its key so far from now on."""
        with self._transaction() as database:
            database.execute("UPDATE node SET tier = ? WHERE node = ?", (tier, node))
        self._tiers[node] = tier

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with transaction(self._database):
                    yield self._database
            except sqlite3.Error as error:
                raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> StateCorrupt:
        return StateCorrupt(
            f"cannot use {self._path}: {error}; restore it from a copy, or delete it and let every node join anew",
            path=str(self._path),
        )


_COLUMNS: Final = (
    "id, made_at_unix_ms, expires_at_unix_ms, made_by, note, used_by, used_at_unix_ms, revoked_at_unix_ms, tier"
)
_WHY: Final = {
    "used": "was used already, by another node",
    "expired": "has expired",
    "revoked": "was revoked",
}


def _id_of(digest: bytes) -> str:
    return digest.hex()[:16]


def _token_of(row: tuple[Any, ...], now_unix_ms: int) -> JoinToken:
    token_id, made_at, expires_at, made_by, note, used_by, used_at, revoked_at, tier = row
    state: TokenState = "valid"
    if used_at is not None:
        state = "used"
    elif revoked_at is not None:
        state = "revoked"
    elif now_unix_ms >= expires_at:
        state = "expired"
    return JoinToken(token_id, state, made_at, expires_at, made_by, note, used_by or "", used_at or 0, tier)


def _member(database: sqlite3.Connection, column: Literal["key", "node"], value: str) -> Member | None:
    row = database.execute(
        f"SELECT key, coalesce(node, ''), token_id, is_ledgered FROM node WHERE {column} = ?", (value,)
    ).fetchone()
    return None if row is None else Member(row[0], row[1], row[2], bool(row[3]))


def _take(database: sqlite3.Connection, token: JoinToken, digest: bytes, key: str, now_unix_ms: int) -> Member:
    if database.execute("SELECT count(*) FROM node").fetchone()[0] >= NODES_MAX:
        raise Overloaded(f"{NODES_MAX} nodes have joined already", limit=NODES_MAX)
    database.execute("UPDATE token SET used_at_unix_ms = ?, used_by = ? WHERE hash = ?", (now_unix_ms, key, digest))
    database.execute(
        "INSERT INTO node(key, joined_at_unix_ms, token_id, tier) VALUES (?, ?, ?, ?)",
        (key, now_unix_ms, token.id, token.tier),
    )
    return Member(key, "", token.id, False)
