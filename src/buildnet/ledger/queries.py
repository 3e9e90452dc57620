"""What readers ask of the ledger's database, a bounded piece at a time. It writes nothing.

Time is the controller's clock as each entry has it; a clock that was set back makes a search by time inexact.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from buildnet.ledger.accounts import Account
from buildnet.ledger.book import decode_account

# Bodies are looked at in the reader's one thread: others wait for no longer than this many take.
ROWS_MAX: Final = 20_000
# What is not written with an entry of that age or a younger one was never to be (app/recorder.py waits 50 ms).
LAST_WORDS_MS: Final = 5_000


def size(connection: sqlite3.Connection) -> int:
    """How many entries there are."""
    last = connection.execute("SELECT max(seq) FROM leaf").fetchone()[0]
    return 0 if last is None else int(last) + 1


def accounts(connection: sqlite3.Connection) -> list[Account]:
    """Every account, by name and unit."""
    rows = connection.execute("SELECT number, record FROM balance")
    found = [account for number, record in rows if (account := decode_account(number, bytes(record))) is not None]
    return sorted(found, key=lambda account: (account.name, account.unit))


class AccountIndex:
    """Accounts by name and unit, read a page at a time. Every call is in the reader's one thread.

    A row's account never changes and rows are only added, so names are decoded once; balances are read when asked for.
    """

    def __init__(self) -> None:
        self._known: list[tuple[str, str, int]] = []
        self._names: set[str] = set()
        self._last = -1

    def _learn(self, connection: sqlite3.Connection) -> None:
        fresh = []
        rows = connection.execute("SELECT number, record FROM balance WHERE number > ? ORDER BY number", (self._last,))
        for number, record in rows:
            self._last = number
            if (account := decode_account(number, bytes(record))) is not None:
                fresh.append((account.name, account.unit, number))
        if fresh:
            self._names.update(name for name, _, _ in fresh)
            self._known.extend(fresh)
            # Nearly sorted already: that is what the sort is fast at.
            self._known.sort()

    def page(self, prefix: str, after: tuple[str, str], count: int) -> Callable[[sqlite3.Connection], list[Account]]:
        """At most `count` accounts whose names begin so and that come after `after`, by name and unit."""

        def read(connection: sqlite3.Connection) -> list[Account]:
            self._learn(connection)
            start = max(bisect_right(self._known, (*after, sys.maxsize)), bisect_left(self._known, (prefix, "", -1)))
            found: list[Account] = []
            for name, _, number in islice(self._known, start, start + count):
                if not name.startswith(prefix):
                    break
                record = connection.execute("SELECT record FROM balance WHERE number = ?", (number,)).fetchone()[0]
                account = decode_account(number, bytes(record))
                assert account is not None, "its row was decoded before, and keeps its account"
                found.append(account)
            return found

        return read

    def has(self, name: str) -> Callable[[sqlite3.Connection], bool]:
        """Whether there is an account of this name in any unit."""

        def read(connection: sqlite3.Connection) -> bool:
            self._learn(connection)
            return name in self._names

        return read


def first_since(connection: sqlite3.Connection, at_unix_ms: int) -> int:
    """Index of the first entry at or after a time; the number of entries when there is none."""
    low, high = 0, size(connection)
    while low < high:
        middle = (low + high) // 2
        if _at(connection, middle) < at_unix_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _at(connection: sqlite3.Connection, index: int) -> int:
    body = connection.execute("SELECT body FROM leaf WHERE seq = ?", (index,)).fetchone()[0]
    return int(json.loads(body)["at_unix_ms"])


def result_entry(action: str, instance: str, start: int, end: int) -> Callable[[sqlite3.Connection], int | None]:
    """Index of the newest entry from `start` up to `end` that tells of an action's result in an instance."""

    def read(connection: sqlite3.Connection) -> int | None:
        query = "SELECT seq, body FROM leaf WHERE seq >= ? AND seq < ? AND instr(body, ?) ORDER BY seq DESC"
        for seq, body in connection.execute(query, (start, end, action.encode())):
            if tells_result(json.loads(body), action, instance):
                return int(seq)
        return None

    return read


def publications(start: int) -> Callable[[sqlite3.Connection], dict[int, int]]:
    """Fences that were published by the entries from `start` on, each with the index of its entry."""

    def read(connection: sqlite3.Connection) -> dict[int, int]:
        found: dict[int, int] = {}
        query = "SELECT seq, body FROM leaf WHERE seq >= ? AND instr(body, ?) ORDER BY seq"
        for seq, body in connection.execute(query, (start, b'"action.published"')):
            fields = json.loads(body)
            if fields["kind"] == "action.published":
                found[fields["fence"]] = seq
        return found

    return read


@dataclass(frozen=True, slots=True)
class LastWords:
    """What the entries say that came before the newest start of a controller.

    `submitted` counts, by instance and action, those from `since_unix_ms` on; there is no such time when there was no
    controller before. `fence` is the highest that was assigned, 0 for none, None when it is too far back.
    """

    since_unix_ms: int | None = None
    submitted: Counter[tuple[str, str]] = field(default_factory=Counter)
    fence: int | None = 0


def last_words(connection: sqlite3.Connection) -> LastWords:
    """Of the last entries before the newest `controller.started`; of ROWS_MAX at most."""
    since: int | None = None
    started, read = False, 0
    submitted: Counter[tuple[str, str]] = Counter()
    for (body,) in connection.execute("SELECT body FROM leaf ORDER BY seq DESC LIMIT ?", (ROWS_MAX,)):
        fields = json.loads(body)
        read += 1
        if not started:
            started = fields["kind"] == "controller.started"
            continue
        since = fields["at_unix_ms"] - LAST_WORDS_MS if since is None else since
        if fields["at_unix_ms"] < since:
            break
        if fields["kind"] == "action.submitted":
            submitted[fields["instance"], fields["action"]] += 1
        if read == ROWS_MAX:
            since = fields["at_unix_ms"]
    return LastWords(since, submitted, _last_fence(connection))


def _last_fence(connection: sqlite3.Connection) -> int | None:
    start = max(size(connection) - 10 * ROWS_MAX, 0)
    query = "SELECT body FROM leaf WHERE seq >= ? AND instr(body, ?) ORDER BY seq DESC LIMIT 1"
    row = connection.execute(query, (start, b'"action.assigned"')).fetchone()
    if row is None:
        return 0 if start == 0 else None
    return int(json.loads(row[0])["fence"])


def tells_result(fields: dict[str, Any], action: str, instance: str) -> bool:
    """Whether an entry says that a result of this action became visible there."""
    if fields["kind"] == "action.published":
        return bool(fields["action"] == action and fields["instance"] == instance)
    if fields["kind"] == "results.updated":
        return any(row.rsplit(" ", 1)[0] == f"{instance} {action}" for row in fields["results"])
    return False
