"""Accounts after TigerBeetle's model: each refusal by its word, and random histories against a naive model."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildnet.ledger.accounts import (
    LINKED,
    OK,
    PENDING,
    POST_PENDING,
    VOID_PENDING,
    Accounts,
    Transfer,
)
from buildnet.model.posting import AMOUNT_MAX, CREDIT_LIMIT, DEBIT_LIMIT

UNIT = "cpu_ms"


def opened(**limits: str) -> Accounts:
    accounts = Accounts()
    for name in ("a", "b", "c"):
        assert accounts.open(name, UNIT, limits.get(name, "")) == OK
    return accounts


def move(number: int, amount: int | None, debit: str = "a", credit: str = "b", **more: int) -> Transfer:
    return Transfer(number, debit, credit, UNIT, amount, **more)


def do(accounts: Accounts, *transfers: Transfer, now_ms: int = 0) -> list[str]:
    return accounts.transfer(transfers, now_ms)


def sums(accounts: Accounts, name: str) -> tuple[int, int, int, int]:
    found = accounts.find(name, UNIT)
    assert found is not None
    return found.sums


def test_an_amount_is_debited_here_and_credited_there() -> None:
    accounts = opened()
    assert do(accounts, move(1, 7)) == [OK]
    assert (sums(accounts, "a"), sums(accounts, "b")) == ((0, 7, 0, 0), (0, 0, 0, 7))


@pytest.mark.parametrize(
    ("again", "word"),
    [
        (move(1, 7), "exists"),
        (move(1, 8), "exists_with_different_amount"),
        (move(1, 7, debit="c"), "exists_with_different_debit_account_id"),
        (move(1, 7, credit="c"), "exists_with_different_credit_account_id"),
        (move(1, 7, flags=PENDING), "exists_with_different_flags"),
        (move(1, 7, code=2), "exists_with_different_code"),
        (move(1, 7)._replace(unit="bytes"), "exists_with_different_ledger"),
        (move(1, 7, timeout_ms=1), "exists_with_different_timeout"),
        (move(1, 7, pending_id=9), "exists_with_different_pending_id"),
    ],
)
def test_an_id_is_used_once(again: Transfer, word: str) -> None:
    accounts = opened()
    assert do(accounts, move(1, 7)) == [OK]
    assert do(accounts, again) == [word]
    assert sums(accounts, "a") == (0, 7, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (move(0, 1), "id_must_not_be_zero"),
        (move(AMOUNT_MAX, 1), "id_must_not_be_int_max"),
        (move(2, 1, flags=PENDING | VOID_PENDING), "flags_are_mutually_exclusive"),
        (move(2, 1, credit="a"), "accounts_must_be_different"),
        (move(2, 1, debit="z"), "debit_account_not_found"),
        (move(2, 1, credit="z"), "credit_account_not_found"),
        (move(2, 1, pending_id=1), "pending_id_must_be_zero"),
        (move(2, 1, timeout_ms=1), "timeout_reserved_for_pending_transfer"),
        (move(2, AMOUNT_MAX), "overflows_debits"),
        (move(2, -1), "overflows_debits"),
        (move(2, AMOUNT_MAX, debit="c"), "overflows_credits"),
        (move(2, 1, flags=POST_PENDING), "pending_id_must_not_be_zero"),
        (move(2, 1, flags=POST_PENDING, pending_id=2), "pending_id_must_be_different"),
        (move(2, 1, flags=POST_PENDING, pending_id=3), "pending_transfer_not_found"),
        (move(2, 1, flags=POST_PENDING, pending_id=1), "pending_transfer_not_pending"),
        (move(2, 1, flags=LINKED), "linked_event_chain_open"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(wrong: Transfer, word: str) -> None:
    accounts = opened()
    do(accounts, move(1, 5))
    before = [account.sums for account in accounts.all()]
    assert do(accounts, wrong) == [word]
    assert [account.sums for account in accounts.all()] == before


def held(accounts: Accounts, amount: int = 10, timeout_ms: int = 0) -> None:
    assert do(accounts, move(1, amount, flags=PENDING, timeout_ms=timeout_ms)) == [OK]


def ended(number: int, flags: int, amount: int | None = None) -> Transfer:
    return Transfer(number, "", "", "", amount, flags, pending_id=1)


def test_part_of_a_hold_is_posted_and_the_rest_goes_back() -> None:
    accounts = opened()
    held(accounts)
    assert sums(accounts, "a") == (10, 0, 0, 0)
    assert do(accounts, ended(2, POST_PENDING, 11)) == ["exceeds_pending_transfer_amount"]
    assert do(accounts, ended(2, POST_PENDING, 4)) == [OK]
    assert (sums(accounts, "a"), sums(accounts, "b")) == ((0, 4, 0, 0), (0, 0, 0, 4))


@pytest.mark.parametrize(
    ("first", "word"),
    [(POST_PENDING, "pending_transfer_already_posted"), (VOID_PENDING, "pending_transfer_already_voided")],
)
def test_a_hold_ends_once(first: int, word: str) -> None:
    accounts = opened()
    held(accounts)
    assert do(accounts, ended(2, first)) == [OK]
    assert do(accounts, ended(3, POST_PENDING), ended(4, VOID_PENDING)) == [word, word]
    assert sums(accounts, "a") == ((0, 10, 0, 0) if first == POST_PENDING else (0, 0, 0, 0))


def test_a_void_takes_back_all_or_nothing() -> None:
    accounts = opened()
    held(accounts)
    assert do(accounts, ended(2, VOID_PENDING, 9)) == ["pending_transfer_has_different_amount"]
    other = ended(2, VOID_PENDING)._replace(debit="c")
    assert do(accounts, other) == ["pending_transfer_has_different_debit_account_id"]


def test_a_hold_runs_out() -> None:
    accounts = opened()
    held(accounts, timeout_ms=100)
    accounts.expire(99)
    assert sums(accounts, "a") == (10, 0, 0, 0)
    assert do(accounts, ended(2, POST_PENDING), now_ms=100) == ["pending_transfer_expired"]
    assert sums(accounts, "a") == sums(accounts, "b") == (0, 0, 0, 0)


def test_what_was_undone_does_not_end_what_has_its_id() -> None:
    accounts = opened()
    mark = accounts.mark()
    held(accounts, timeout_ms=5)
    accounts.rollback(mark)
    held(accounts, timeout_ms=50)
    accounts.expire(49)
    assert sums(accounts, "a") == (10, 0, 0, 0)
    accounts.expire(50)
    assert sums(accounts, "a") == (0, 0, 0, 0)


def test_limits_count_what_is_pending() -> None:
    accounts = opened(a=DEBIT_LIMIT, c=CREDIT_LIMIT)
    assert do(accounts, move(1, 1)) == ["exceeds_credits"]
    assert do(accounts, move(2, 1, debit="b", credit="c")) == ["exceeds_debits"]
    do(accounts, move(3, 10, debit="b", credit="a"))
    assert do(accounts, move(4, 6, flags=PENDING), move(5, 5), move(6, 4)) == [OK, "exceeds_credits", OK]


def test_a_chain_holds_or_none_of_it() -> None:
    accounts = opened()
    chain = (move(1, 1, flags=LINKED), move(2, 1, debit="z", flags=LINKED), move(3, 1))
    assert do(accounts, move(9, 5), *chain, move(8, 2)) == [
        OK,
        "linked_event_failed",
        "debit_account_not_found",
        "linked_event_failed",
        OK,
    ]
    assert sums(accounts, "a") == (0, 7, 0, 0)
    # What failed with its chain was never there: its id is free.
    assert do(accounts, move(1, 1, flags=LINKED), move(2, 1)) == [OK, OK]


def test_accounts_are_opened_once_and_not_without_end() -> None:
    accounts = Accounts(accounts_max=2)
    assert accounts.open("a", UNIT) == OK
    assert accounts.open("a", UNIT) == "exists"
    assert accounts.open("a", UNIT, DEBIT_LIMIT) == "exists_with_different_flags"
    assert accounts.open("a", UNIT, code=2) == "exists_with_different_code"
    assert accounts.open("a", "miles") == "ledger_must_not_be_zero"
    assert accounts.open("a", "bytes", "both") == "flags_are_mutually_exclusive"
    assert accounts.open("a", "bytes") == OK
    assert accounts.open("b", "bytes") == "too_many_accounts"


class Naive:
    """The same by remembering every transfer that held and adding all of them up each time."""

    LIMITS: ClassVar = {"a": DEBIT_LIMIT, "c": CREDIT_LIMIT}

    def __init__(self) -> None:
        self.done: list[Transfer] = []
        self.ends: dict[int, tuple[str, int]] = {}
        self.deadlines: dict[int, int] = {}

    def sums(self, unit: str) -> dict[str, list[int]]:
        total: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for transfer in self.done:
            assert transfer.amount is not None
            status, amount = "posted", transfer.amount
            if transfer.flags & PENDING:
                status, amount = self.ends.get(transfer.id, ("pending", transfer.amount))
            place = 0 if status == "pending" else 1
            if transfer.unit == unit and status in ("pending", "posted"):
                total[transfer.debit][place] += amount
                total[transfer.credit][2 + place] += amount
        return total

    def _within(self, transfer: Transfer) -> bool:
        assert transfer.amount is not None
        total = self.sums(transfer.unit)
        debit, credit = total[transfer.debit], total[transfer.credit]
        poor = self.LIMITS.get(transfer.debit) == DEBIT_LIMIT and debit[0] + debit[1] + transfer.amount > debit[3]
        full = self.LIMITS.get(transfer.credit) == CREDIT_LIMIT and credit[2] + credit[3] + transfer.amount > credit[1]
        return not (poor or full or transfer.debit == transfer.credit)

    def holds(self, transfer: Transfer, now_ms: int) -> bool:
        """Whether it holds, and if so it is done."""
        for number, deadline_ms in self.deadlines.items():
            if deadline_ms <= now_ms:
                self.ends.setdefault(number, ("expired", 0))
        if transfer.id in {t.id for t in self.done} | {-n for n in self.ends if n < 0}:
            return False
        if transfer.flags & (POST_PENDING | VOID_PENDING):
            first = next((t for t in self.done if t.id == transfer.pending_id and t.flags & PENDING), None)
            if first is None or first.id in self.ends:
                return False
            assert first.amount is not None
            amount = first.amount if transfer.amount is None else transfer.amount
            voids = bool(transfer.flags & VOID_PENDING)
            if amount > first.amount or (voids and amount != first.amount):
                return False
            self.ends[first.id] = ("voided", 0) if voids else ("posted", amount)
            # Its own id is used up too.
            self.ends[-transfer.id] = ("used", 0)
            return True
        if not self._within(transfer):
            return False
        self.done.append(transfer)
        if transfer.flags & PENDING and transfer.timeout_ms:
            self.deadlines[transfer.id] = now_ms + transfer.timeout_ms
        return True


NAMES = st.sampled_from("abcd")
IDS = st.integers(1, 12)
AMOUNTS = st.integers(0, 20)
UNITS = st.sampled_from(["cpu_ms", "bytes"])
TRANSFERS = st.one_of(
    st.builds(lambda i, d, c, u, a: Transfer(i, d, c, u, a), IDS, NAMES, NAMES, UNITS, AMOUNTS),
    st.builds(
        lambda i, d, c, u, a, t: Transfer(i, d, c, u, a, PENDING, timeout_ms=t),
        IDS, NAMES, NAMES, UNITS, AMOUNTS, st.sampled_from([0, 3, 10]),
    ),
    st.builds(
        lambda i, p, a, f: Transfer(i, "", "", "", a, f, pending_id=p),
        IDS, IDS, st.none() | AMOUNTS, st.sampled_from([POST_PENDING, VOID_PENDING]),
    ),
)  # fmt: skip
STEPS = st.lists(st.tuples(st.integers(0, 4), TRANSFERS, st.booleans()), max_size=25)


@settings(max_examples=60)
@given(STEPS)
def test_random_histories_are_as_a_naive_model_says(steps: list[tuple[int, Transfer, bool]]) -> None:
    accounts, naive, now_ms = Accounts(), Naive(), 0
    for name in "abcd":
        for unit in ("cpu_ms", "bytes"):
            accounts.open(name, unit, Naive.LIMITS.get(name, ""))
    for later_ms, transfer, undone in steps:
        now_ms += later_ms
        accounts.expire(now_ms)
        mark = accounts.mark()
        if undone:
            # As when the tail could not be written: as if it had never been.
            before = [account.sums for account in accounts.all()]
            accounts.transfer([transfer], now_ms)
            accounts.rollback(mark)
            assert [account.sums for account in accounts.all()] == before
        if transfer.pending_id == transfer.id:
            continue
        held = accounts.transfer([transfer], now_ms) == [OK]
        assert held == naive.holds(transfer, now_ms)
        for unit in ("cpu_ms", "bytes"):
            total = naive.sums(unit)
            mine = {account.name: account.sums for account in accounts.all() if account.unit == unit}
            assert mine == {name: tuple(total[name]) for name in "abcd"}
            assert sum(s[0] for s in mine.values()) == sum(s[2] for s in mine.values())
            assert sum(s[1] for s in mine.values()) == sum(s[3] for s in mine.values())
        assert all(part >= 0 for account in accounts.all() for part in account.sums)


@settings(max_examples=40)
@given(st.lists(st.tuples(TRANSFERS, st.booleans()), min_size=1, max_size=12))
def test_chains_are_whole_or_nothing(wanted: list[tuple[Transfer, bool]]) -> None:
    chained, single = Accounts(), Accounts()
    for name in "abcd":
        for unit in ("cpu_ms", "bytes"):
            chained.open(name, unit)
            single.open(name, unit)
    transfers = [t._replace(flags=t.flags | (LINKED if linked else 0)) for t, linked in wanted]
    results = chained.transfer(transfers, 0)
    # Those that held, each by itself, come to the same.
    kept = [t for t, result in zip(transfers, results, strict=True) if result == OK]
    assert single.transfer([t._replace(flags=t.flags & ~LINKED) for t in kept], 0) == [OK] * len(kept)
    assert [a.sums for a in chained.all()] == [a.sums for a in single.all()]
    starts = [0, *(i + 1 for i, t in enumerate(transfers) if not t.flags & LINKED)]
    for start, end in zip(starts, [*starts[1:], len(transfers)], strict=True):
        assert len({result == OK for result in results[start:end]}) <= 1
