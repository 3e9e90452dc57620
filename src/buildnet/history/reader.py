"""Reads the history's database, a bounded number of rows at a time. It writes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from buildnet.history import files
from buildnet.history.files import COLUMNS, pack_digest, past_of
from buildnet.model.digest import Digest
from buildnet.model.history import Parts, PastOperation


class SqliteReader:
    """See ports.HistoryReader."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, where: str, values: Sequence[Any], count_max: int) -> list[PastOperation]:
        query = f"SELECT {COLUMNS} FROM operation WHERE {where} ORDER BY number DESC LIMIT ?"
        return [past_of(row) for row in self._connection.execute(query, (*values, count_max))]

    def find(self, operation: str) -> Sequence[PastOperation]:
        """See ports.HistoryReader."""
        if exact := self._rows("id = ?", (operation,), 1):
            return exact
        # Not LIKE, whose wildcards an id might hold: those that begin so lie between it and its next.
        return self._rows("id >= ? AND id < ?", (operation, operation + "\U0010ffff"), 2)

    def of_action(self, digest: Digest, count_max: int, *, before: int | None = None) -> Sequence[PastOperation]:
        """See ports.HistoryReader."""
        if before is None:
            return self._rows("action = ?", (pack_digest(digest),), count_max)
        return self._rows("action = ? AND number < ?", (pack_digest(digest), before), count_max)

    def of_target(self, target: str, count_max: int) -> Sequence[PastOperation]:
        """See ports.HistoryReader."""
        return self._rows("target = ? AND target <> ''", (target,), count_max)

    def candidates(
        self, past: PastOperation, parts: Parts, instances: Sequence[str], count_max: int
    ) -> Sequence[PastOperation]:
        """See ports.HistoryReader."""
        target, outputs, program = files.relations(past.key, past.requested, parts)
        command = None if past.command is None else pack_digest(past.command)
        among = ", ".join("?" * len(instances))
        found: dict[int, PastOperation] = {}
        for column, value in (
            ("related_target", target),
            ("related_outputs", outputs),
            ("command", command),
            ("related_program", program),
        ):
            if value is None:
                continue
            where = f"{column} = ? AND number < ? AND action <> ? AND instance IN ({among})"
            before = past.number or (1 << 62)
            for row in self._rows(where, (value, before, pack_digest(past.key.digest), *instances), count_max):
                found[row.number] = row
        return sorted(found.values(), key=lambda row: -row.number)

    def shared(self, past: PastOperation) -> bool:
        """See ports.HistoryReader."""
        if past.entry_index is None or past.cached:
            return False
        where = "entry = ? AND number < ? AND action = ? AND NOT cached"
        return bool(self._rows(where, (past.entry_index, past.number, pack_digest(past.key.digest)), 1))

    def message(self, digest: Digest) -> bytes | None:
        """See ports.HistoryReader."""
        query = "SELECT body FROM message WHERE digest = ?"
        row = self._connection.execute(query, (pack_digest(digest),)).fetchone()
        return None if row is None else files.unpack(bytes(row[0]))

    def since_unix_ms(self) -> int | None:
        """See ports.HistoryReader."""
        row = self._connection.execute("SELECT ended_at FROM operation ORDER BY number LIMIT 1").fetchone()
        return None if row is None else int(row[0])
