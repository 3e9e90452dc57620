"""An entry on its way from the caller to the database, with what it does to accounts. Pure; it decides nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from buildnet.ledger.book import Changes, Postings, account_row, pending_row, postings_of

UPSERT: Final = (
    "INSERT INTO {} (number, record) VALUES (?, ?) ON CONFLICT (number) DO UPDATE SET record = excluded.record"
)

Row = tuple[int, bytes]


class Draft(NamedTuple):
    """An entry that is to be appended."""

    body: bytes
    at_unix_ms: int
    postings: Postings | None


class Kept(NamedTuple):
    """An entry that the tail holds and the database does not yet."""

    body: bytes
    changes: Changes | None


def draft_of(body: bytes) -> Draft:
    """The draft that an entry's bytes came from.

    Raises:
        ValueError, KeyError, TypeError: they are no entry's.
        InvalidRequest: its accounting is malformed.
    """
    fields = json.loads(body)
    return Draft(body, fields["at_unix_ms"], postings_of(fields))


def rows_of(kept: Sequence[Kept]) -> tuple[list[Row], list[Row]]:
    """Rows of `balance` and `pending` as they are after the last of these entries, each once, in order."""
    balances: dict[int, Row] = {}
    pendings: dict[int, Row] = {}
    for _, changes in reversed(kept):
        if changes is None:
            continue
        for account, sums in changes.accounts:
            if account.number not in balances:
                balances[account.number] = account_row(account, sums)
        for pending, status in changes.pendings:
            if pending.id not in pendings:
                pendings[pending.id] = pending_row(pending, status)
    return sorted(balances.values()), sorted(pendings.values())
