"""Double-entry accounts after TigerBeetle's model (docs.tigerbeetle.com, data model): nothing is made or lost. Pure.

Every transfer debits one account and credits another of the same unit, so that in each unit the sum of debits is the
sum of credits. A chain of linked transfers is applied whole or not at all. Results are TigerBeetle's words.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from buildnet.model.posting import AMOUNT_MAX, CREDIT_LIMIT, DEBIT_LIMIT, UNITS

Status = Literal["pending", "posted", "voided", "expired"]
STATUSES: Final[tuple[Status, ...]] = ("pending", "posted", "voided", "expired")

LINKED, PENDING, POST_PENDING, VOID_PENDING = 1, 2, 4, 8
_KINDS: Final = PENDING | POST_PENDING | VOID_PENDING
OK: Final = "ok"

Key = tuple[str, str]
# debits_pending, debits_posted, credits_pending, credits_posted
Sums = tuple[int, int, int, int]


class Account:
    """Sums of one name in one unit. `number` counts accounts from 1 in the order in which they were opened."""

    __slots__ = ("code", "limit", "name", "number", "sums", "unit")

    def __init__(self, number: int, name: str, unit: str, limit: str = "", code: int = 1) -> None:
        self.number = number
        self.name = name
        self.unit = unit
        self.limit = limit
        self.code = code
        self.sums: Sums = (0, 0, 0, 0)

    @property
    def debits_pending(self) -> int:
        """What is set aside to leave it."""
        return self.sums[0]

    @property
    def debits_posted(self) -> int:
        """What left it."""
        return self.sums[1]

    @property
    def credits_pending(self) -> int:
        """What is set aside to come to it."""
        return self.sums[2]

    @property
    def credits_posted(self) -> int:
        """What came to it."""
        return self.sums[3]

    def __repr__(self) -> str:
        return f"Account({self.number}, {self.name!r}, {self.unit!r}, {self.limit!r}, {self.sums})"


class Transfer(NamedTuple):
    """One transfer. `pending_id` names the pending one that a post or void ends.

    `amount` of None posts or voids all that is pending. `timeout_ms` is of pending transfers, 0 for never.
    """

    id: int
    debit: str
    credit: str
    unit: str
    amount: int | None
    flags: int = 0
    pending_id: int = 0
    timeout_ms: int = 0
    code: int = 1


class Pending:
    """A pending transfer and what became of it; `deadline_ms` is 0 when it has none."""

    __slots__ = ("amount", "credit", "deadline_ms", "debit", "id", "status")

    def __init__(self, number: int, debit: Account, credit: Account, amount: int, deadline_ms: int) -> None:
        self.id = number
        self.debit = debit
        self.credit = credit
        self.amount = amount
        self.deadline_ms = deadline_ms
        self.status: Status = "pending"


# A moment to come back to: how many were touched, ended, remembered.
Mark = tuple[int, int, int]


class Accounts:
    """All accounts and the transfers between them.

    Args:
        accounts_max: how many accounts there may be.
        remember: keep every transfer, so that the same id is answered `exists`. Without, only pending ones are kept:
            for a caller whose ids cannot come twice.
    """

    def __init__(self, *, accounts_max: int = 200_000, remember: bool = True) -> None:
        self._accounts_max = accounts_max
        self._remember = remember
        self._accounts: dict[Key, Account] = {}
        self._transfers: dict[int, Transfer] = {}
        self._pending: dict[int, Pending] = {}
        self._deadlines: list[tuple[int, int]] = []
        # What was done since the last `settle`, each as it was before (None: it was not there), oldest first.
        self._touched: list[tuple[Account, Sums | None]] = []
        self._ended: list[tuple[Pending, Status | None]] = []
        self._remembered: list[int] = []

    # Reading.

    def find(self, name: str, unit: str) -> Account | None:
        """One account."""
        return self._accounts.get((name, unit))

    def all(self) -> Iterable[Account]:
        """Every account in the order in which they were opened."""
        return self._accounts.values()

    def pendings(self) -> Iterable[Pending]:
        """Every pending transfer that is known, ended ones too, in the order in which they came."""
        return self._pending.values()

    # Changing, so that it can be undone.

    def mark(self) -> Mark:
        """The present moment, for `rollback`."""
        return len(self._touched), len(self._ended), len(self._remembered)

    def tell_changed(self, accounts: dict[Account, Sums], pendings: dict[Pending, Status]) -> None:
        """Put what changed since the last `settle`, as it is now, in the place of what stood there."""
        for account, _ in self._touched:
            accounts[account] = account.sums
        for pending, _ in self._ended:
            pendings[pending] = pending.status

    def settle(self, *, forget_ended: bool = False) -> None:
        """What was done stays: earlier marks are void."""
        if forget_ended:
            for pending, _ in self._ended:
                if pending.status != "pending":
                    self._pending.pop(pending.id, None)
        self._touched.clear()
        self._ended.clear()
        self._remembered.clear()

    def rollback(self, mark: Mark) -> None:
        """Undo what was done since a moment."""
        touched, ended, remembered = mark
        while len(self._touched) > touched:
            account, sums = self._touched.pop()
            if sums is None:
                del self._accounts[account.name, account.unit]
            else:
                account.sums = sums
        while len(self._ended) > ended:
            pending, status = self._ended.pop()
            if status is None:
                del self._pending[pending.id]
            else:
                pending.status = status
                if pending.deadline_ms:
                    heapq.heappush(self._deadlines, (pending.deadline_ms, pending.id))
        while len(self._remembered) > remembered:
            del self._transfers[self._remembered.pop()]

    def restore(self, name: str, unit: str, limit: str, sums: Sums) -> Account:
        """Put back an account as it was kept, after those before it."""
        account = Account(len(self._accounts) + 1, name, unit, limit)
        account.sums = sums
        self._accounts[name, unit] = account
        return account

    def restore_pending(self, pending: Pending) -> None:
        """Put back a pending transfer as it was kept."""
        self._pending[pending.id] = pending
        if pending.deadline_ms:
            heapq.heappush(self._deadlines, (pending.deadline_ms, pending.id))

    def open(self, name: str, unit: str, limit: str = "", code: int = 1) -> str:
        """Open an account; `ok`, or why not."""
        known = self._accounts.get((name, unit))
        if known is not None:
            if known.limit != limit:
                return "exists_with_different_flags"
            return "exists" if known.code == code else "exists_with_different_code"
        if unit not in UNITS:
            return "ledger_must_not_be_zero"
        if limit not in ("", DEBIT_LIMIT, CREDIT_LIMIT):
            return "flags_are_mutually_exclusive"
        if len(self._accounts) >= self._accounts_max:
            return "too_many_accounts"
        account = Account(len(self._accounts) + 1, name, unit, limit, code)
        self._accounts[name, unit] = account
        self._touched.append((account, None))
        return OK

    def move(self, debit_name: str, credit_name: str, unit: str, amount: int) -> str:
        """A transfer of one phase whose id cannot come twice, between accounts that it opens; `ok`, or why not."""
        if debit_name == credit_name:
            return "accounts_must_be_different"
        debit = self._accounts.get((debit_name, unit))
        if debit is None:
            if (result := self.open(debit_name, unit)) != OK:
                return result
            debit = self._accounts[debit_name, unit]
        credit = self._accounts.get((credit_name, unit))
        if credit is None:
            if (result := self.open(credit_name, unit)) != OK:
                return result
            credit = self._accounts[credit_name, unit]
        if (refusal := _refusal(debit, credit, amount)) != OK:
            return refusal
        # As `_add`, without the call.
        (a, posted, b, c), (d, e, f, taken) = before, other = debit.sums, credit.sums
        self._touched += ((debit, before), (credit, other))
        debit.sums = (a, posted + amount, b, c)
        credit.sums = (d, e, f, taken + amount)
        return OK

    def _add(self, debit: Account, credit: Account, pending: int, posted: int) -> None:
        before, other = debit.sums, credit.sums
        self._touched += ((debit, before), (credit, other))
        debit.sums = (before[0] + pending, before[1] + posted, before[2], before[3])
        # Never the same account: see `accounts_must_be_different`.
        credit.sums = (other[0], other[1], other[2] + pending, other[3] + posted)

    def transfer(self, transfers: Sequence[Transfer], now_ms: int) -> list[str]:
        """Apply transfers in order at a time; a result for each.

        A transfer with LINKED shares its fate with the next: of a chain all are applied or none is.
        """
        self.expire(now_ms)
        results: list[str] = []
        start, mark, broken = 0, self.mark(), False
        for place, wanted in enumerate(transfers):
            linked = wanted.flags & LINKED
            if broken:
                results.append("linked_event_failed")
            elif linked and place == len(transfers) - 1:
                results.append("linked_event_chain_open")
                broken = True
            else:
                result = self._transfer(wanted, now_ms)
                results.append(result)
                broken = result != OK and (bool(linked) or place > start)
            if not linked or place == len(transfers) - 1:
                if broken:
                    self.rollback(mark)
                    results[start:] = [r if r != OK else "linked_event_failed" for r in results[start:]]
                start, mark, broken = place + 1, self.mark(), False
        return results

    def expire(self, now_ms: int) -> None:
        """Give back what has been pending for too long."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            _, number = heapq.heappop(self._deadlines)
            pending = self._pending.get(number)
            # What was undone left its deadline here, and its id may be another's by now.
            if pending is not None and pending.status == "pending" and 0 < pending.deadline_ms <= now_ms:
                self._end(pending, "expired", 0)

    def _transfer(self, wanted: Transfer, now_ms: int) -> str:
        known = self._transfers.get(wanted.id)
        if known is not None:
            return self._exists(wanted, known)
        if not 0 < wanted.id < AMOUNT_MAX:
            return "id_must_not_be_zero" if wanted.id <= 0 else "id_must_not_be_int_max"
        kind = wanted.flags & _KINDS
        if kind & (kind - 1):
            return "flags_are_mutually_exclusive"
        result = self._resolve(wanted) if kind & (POST_PENDING | VOID_PENDING) else self._move(wanted, now_ms)
        if result == OK and self._remember:
            self._transfers[wanted.id] = wanted
            self._remembered.append(wanted.id)
        return result

    def _exists(self, wanted: Transfer, known: Transfer) -> str:
        for field, word in (
            ("flags", "flags"),
            ("pending_id", "pending_id"),
            ("timeout_ms", "timeout"),
            ("debit", "debit_account_id"),
            ("credit", "credit_account_id"),
            ("amount", "amount"),
            ("unit", "ledger"),
            ("code", "code"),
        ):
            if getattr(wanted, field) != getattr(known, field):
                return f"exists_with_different_{word}"
        return "exists"

    def _move(self, wanted: Transfer, now_ms: int) -> str:
        """A transfer of one phase, or the first phase of two."""
        amount = wanted.amount
        pending = bool(wanted.flags & PENDING)
        if wanted.pending_id:
            return "pending_id_must_be_zero"
        if wanted.timeout_ms and not pending:
            return "timeout_reserved_for_pending_transfer"
        if wanted.debit == wanted.credit:
            return "accounts_must_be_different"
        if amount is None or not 0 <= amount <= AMOUNT_MAX:
            return "overflows_debits"
        debit = self._accounts.get((wanted.debit, wanted.unit))
        if debit is None:
            return "debit_account_not_found"
        credit = self._accounts.get((wanted.credit, wanted.unit))
        if credit is None:
            return "credit_account_not_found"
        if (refusal := _refusal(debit, credit, amount)) != OK:
            return refusal
        if not pending:
            self._add(debit, credit, 0, amount)
            return OK
        self._add(debit, credit, amount, 0)
        deadline_ms = now_ms + wanted.timeout_ms if wanted.timeout_ms else 0
        held = Pending(wanted.id, debit, credit, amount, deadline_ms)
        self._ended.append((held, None))
        self.restore_pending(held)
        return OK

    def _resolve(self, wanted: Transfer) -> str:
        """The second phase."""
        if wanted.timeout_ms:
            return "timeout_reserved_for_pending_transfer"
        if wanted.pending_id in (0, wanted.id):
            return "pending_id_must_not_be_zero" if not wanted.pending_id else "pending_id_must_be_different"
        pending = self._pending.get(wanted.pending_id)
        if pending is None:
            known = wanted.pending_id in self._transfers
            return "pending_transfer_not_pending" if known else "pending_transfer_not_found"
        for given, held, word in (
            (wanted.debit, pending.debit.name, "debit_account_id"),
            (wanted.credit, pending.credit.name, "credit_account_id"),
            (wanted.unit, pending.debit.unit, "ledger"),
        ):
            # What a second phase leaves empty is as in the first.
            if given and given != held:
                return f"pending_transfer_has_different_{word}"
        amount = pending.amount if wanted.amount is None else wanted.amount
        if not 0 <= amount <= pending.amount:
            return "exceeds_pending_transfer_amount"
        voids = bool(wanted.flags & VOID_PENDING)
        if voids and amount != pending.amount:
            return "pending_transfer_has_different_amount"
        if pending.status != "pending":
            return (
                "pending_transfer_expired"
                if pending.status == "expired"
                else f"pending_transfer_already_{pending.status}"
            )
        self._end(pending, "voided" if voids else "posted", 0 if voids else amount)
        return OK

    def _end(self, pending: Pending, status: Status, amount: int) -> None:
        self._ended.append((pending, pending.status))
        pending.status = status
        self._add(pending.debit, pending.credit, -pending.amount, amount)


def _refusal(debit: Account, credit: Account, amount: int) -> str:
    """Why an amount cannot be debited here and credited there; `ok` when it can."""
    sums, other = debit.sums, credit.sums
    debited = sums[0] + sums[1] + amount
    credited = other[2] + other[3] + amount
    if debited > AMOUNT_MAX:
        return "overflows_debits"
    if credited > AMOUNT_MAX:
        return "overflows_credits"
    if debit.limit and debit.limit == DEBIT_LIMIT and debited > sums[3]:
        return "exceeds_credits"
    if credit.limit and credit.limit == CREDIT_LIMIT and credited > other[1]:
        return "exceeds_debits"
    return OK
