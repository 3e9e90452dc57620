"""Entries become transfers, accounts become rows: it follows from the entries alone, so anybody can redo it. Pure.

An entry's lines are one linked chain: all of them hold or the entry is refused. Rows keep their length for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Final, NamedTuple

from buildnet.errors import InvalidRequest, LedgerCorrupt, TransferRefused
from buildnet.ledger import accounts as core
from buildnet.ledger.accounts import Account, Accounts, Mark, Pending, Status, Sums, Transfer
from buildnet.model.posting import (
    CREDIT_LIMIT,
    DEBIT_LIMIT,
    LINES_MAX,
    UNITS,
    Hold,
    Line,
    Move,
    Opening,
    is_account,
    parse_line,
    parse_opening,
)

ACCOUNTS_MAX: Final = 200_000
_LIMITS: Final = ("", DEBIT_LIMIT, CREDIT_LIMIT)
_SUM_BYTES: Final = 16
_SUMS_END: Final = 1 + 4 * _SUM_BYTES
# Status, numbers of the two accounts, deadline in Unix milliseconds, amount.
_PENDING: Final = Struct(">BQQQ16s")


class Postings(NamedTuple):
    """What one entry accounts for."""

    openings: tuple[Opening, ...]
    lines: tuple[Line, ...]


def postings_of(fields: Mapping[str, object]) -> Postings | None:
    """The accounting of an entry, None when it has none.

    Raises:
        InvalidRequest: its `transfers` or `accounts` are not what they must be.
    """
    transfers, openings = fields.get("transfers"), fields.get("accounts")
    if transfers is None and openings is None:
        return None
    if openings is None and type(transfers) is list and len(transfers) == 1 and type(transfers[0]) is str:
        return Postings((), (parse_line(transfers[0]),))
    lines = tuple([parse_line(text) for text in _texts(transfers, "transfers")])
    opened = () if openings is None else tuple([parse_opening(text) for text in _texts(openings, "accounts")])
    return Postings(opened, lines)


def _texts(value: object, field: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not 1 <= len(value) <= LINES_MAX or set(map(type, value)) != {str}:
        raise InvalidRequest(f"{field} of an entry is a list of 1 to {LINES_MAX} lines", field=field)
    return value


class Book:
    """All balances as the entries up to now make them.

    Args:
        keep_ended: also remember holds that have ended, so that every row can be compared.
    """

    def __init__(self, *, keep_ended: bool = False) -> None:
        self.accounts = Accounts(accounts_max=ACCOUNTS_MAX, remember=False)
        self._keep_ended = keep_ended

    def apply(self, index: int, at_ms: int, postings: Postings) -> None:
        """Do what the entry `index` says, whole or not at all.

        Raises:
            TransferRefused: it cannot be; nothing is changed.
        """
        mark = self.accounts.mark()
        try:
            self.accounts.expire(at_ms)
            for opening in postings.openings:
                _must(self.accounts.open(opening.name, opening.unit, opening.limit), opening.text)
            if not self._move(postings.lines):
                self._transfer(index, at_ms, postings.lines)
        except TransferRefused:
            self.accounts.rollback(mark)
            raise

    def _move(self, lines: tuple[Line, ...]) -> bool:
        """The usual entry, one line of amounts: the same as a chain of transfers, without making one."""
        if len(lines) != 1 or not isinstance(lines[0], Move):
            return False
        debit, credit, amounts = lines[0]
        for unit, amount in amounts:
            result = self.accounts.move(debit, credit, unit, amount)
            if result != "ok":
                _must(result, lines[0].text)
        return True

    def _transfer(self, index: int, at_ms: int, lines: tuple[Line, ...]) -> None:
        transfers: list[Transfer] = []
        for place, line in enumerate(lines):
            number = _number(index, place)
            if isinstance(line, Move):
                for unit, amount in line.amounts:
                    self._open(line.debit, line.credit, unit)
                    transfers.append(Transfer(number, line.debit, line.credit, unit, amount, core.LINKED))
            elif isinstance(line, Hold):
                self._open(line.debit, line.credit, line.unit)
                flags = core.LINKED | core.PENDING
                held = (number, line.debit, line.credit, line.unit, line.amount)
                transfers.append(Transfer(*held, flags, timeout_ms=line.timeout_ms))
            else:
                kind = core.VOID_PENDING if line.amount is None else core.POST_PENDING
                hold = _number(line.index, line.place)
                transfers.append(Transfer(number, "", "", "", line.amount, core.LINKED | kind, hold))
        if not transfers:
            return
        transfers[-1] = transfers[-1]._replace(flags=transfers[-1].flags & ~core.LINKED)
        for transfer, result in zip(transfers, self.accounts.transfer(transfers, at_ms), strict=True):
            if result != "linked_event_failed":
                _must(result, f"{transfer.debit} {transfer.credit} {transfer.unit} {transfer.amount}")

    def _open(self, debit: str, credit: str, unit: str) -> None:
        for name in (debit, credit):
            if self.accounts.find(name, unit) is None:
                _must(self.accounts.open(name, unit), name)

    def mark(self) -> Mark:
        """See Accounts.mark."""
        return self.accounts.mark()

    def rollback(self, mark: Mark) -> None:
        """See Accounts.rollback."""
        self.accounts.rollback(mark)

    def tell_changed(self, accounts: dict[Account, Sums], pendings: dict[Pending, Status]) -> None:
        """See Accounts.tell_changed."""
        self.accounts.tell_changed(accounts, pendings)

    def settle(self) -> None:
        """What was applied stays."""
        self.accounts.settle(forget_ended=not self._keep_ended)

    # Rows.

    def load(self, number: int, record: bytes) -> None:
        """Take up a row of the table `balance`.

        Raises:
            LedgerCorrupt: it is none, or not the next.
        """
        account = decode_account(number, record)
        if account is None or self.accounts.find(account.name, account.unit) is not None:
            raise LedgerCorrupt(f"balance {number} is damaged; `ledger verify` says more", where=f"balance {number}")
        kept = self.accounts.restore(account.name, account.unit, account.limit, account.sums)
        if kept.number != number:
            raise LedgerCorrupt(f"balance {kept.number} is absent", where=f"balance {kept.number}")

    def load_pendings(self, rows: Iterator[tuple[int, bytes]]) -> None:
        """Take up rows of the table `pending`, after all of `balance`.

        Raises:
            LedgerCorrupt: one is damaged.
        """
        by_number = {account.number: account for account in self.accounts.all()}
        for number, record in rows:
            where = f"pending {number}"
            if len(record) != _PENDING.size:
                raise LedgerCorrupt(f"{where} is damaged; `ledger verify` says more", where=where)
            _, debit, credit, deadline_ms, amount = _PENDING.unpack(record)
            if debit not in by_number or credit not in by_number:
                raise LedgerCorrupt(f"{where} is of no account; `ledger verify` says more", where=where)
            held = Pending(number + 1, by_number[debit], by_number[credit], int.from_bytes(amount, "big"), deadline_ms)
            self.accounts.restore_pending(held)


def _must(result: str, what: str) -> None:
    if result not in ("ok", "exists"):
        raise TransferRefused(f"the ledger refuses {what.strip()!r}: {result}", result=result)


def _number(index: int, place: int) -> int:
    # Never 0, which names no transfer.
    return (index * LINES_MAX + place) + 1


def account_row(account: Account, sums: Sums) -> tuple[int, bytes]:
    """The row of `balance` for an account that holds `sums`."""
    parts = [bytes([_LIMITS.index(account.limit)])]
    parts += [part.to_bytes(_SUM_BYTES, "big") for part in sums]
    parts.append(f"{account.name} {account.unit}".encode())
    return account.number, b"".join(parts)


def decode_account(number: int, record: bytes) -> Account | None:
    """The account of a row, None when it is no such row."""
    try:
        name, unit = record[_SUMS_END:].decode("ascii").split(" ")
        limit = _LIMITS[record[0]]
    except (ValueError, IndexError):
        return None
    if unit not in UNITS or not is_account(name):
        return None
    account = Account(number, name, unit, limit)
    starts = range(1, _SUMS_END, _SUM_BYTES)
    first, second, third, fourth = [int.from_bytes(record[at : at + _SUM_BYTES], "big") for at in starts]
    account.sums = first, second, third, fourth
    return account


def pending_row(pending: Pending, status: Status) -> tuple[int, bytes]:
    """The row of `pending` for a hold that stands at `status`; its number names the entry and the place."""
    amount = pending.amount.to_bytes(_SUM_BYTES, "big")
    numbers = (pending.debit.number, pending.credit.number, pending.deadline_ms)
    return pending.id - 1, _PENDING.pack(core.STATUSES.index(status), *numbers, amount)
