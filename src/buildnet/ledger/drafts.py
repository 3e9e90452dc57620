"""Entries on their way from the caller to the database, with what they do to accounts. Pure; it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from buildnet.ledger import leaf
from buildnet.ledger.accounts import Account, Pending, Status, Sums
from buildnet.ledger.book import Book, Postings, account_row, pending_row, postings_of

UPSERT: Final = (
    "INSERT INTO {} (number, record) VALUES (?, ?) ON CONFLICT (number) DO UPDATE SET record = excluded.record"
)

Row = tuple[int, bytes]


class Draft(NamedTuple):
    """An entry that is to be appended."""

    body: bytes
    at_unix_ms: int
    postings: Postings | None


class Kept:
    """Entries that the tail holds and the database does not yet, and what they changed as it is after the last one."""

    __slots__ = ("accounts", "bodies", "pendings", "size_bytes")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.size_bytes = 0
        self.accounts: dict[Account, Sums] = {}
        self.pendings: dict[Pending, Status] = {}

    def add(self, bodies: Sequence[bytes], book: Book) -> None:
        """More entries, which follow those before, and what they changed in the book; that is settled with it."""
        self.bodies += bodies
        self.size_bytes += sum(map(len, bodies))
        book.tell_changed(self.accounts, self.pendings)
        book.settle()

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Rows of `balance` and of `pending` as they are after the last entry, in order."""
        return (
            sorted(account_row(account, sums) for account, sums in self.accounts.items()),
            sorted(pending_row(pending, status) for pending, status in self.pendings.items()),
        )


def draft_of(body: bytes) -> Draft:
    """The draft that an entry's bytes came from.

    Raises:
        ValueError, KeyError: they are no entry's.
        InvalidRequest: its accounting is malformed.
    """
    fields = leaf.decode(body)
    return Draft(body, fields["at_unix_ms"], postings_of(fields))
