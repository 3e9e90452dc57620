"""How a ledger entry says what it accounts for: lines of text with one spelling each. Pure; it moves nothing.

    DEBIT CREDIT UNIT AMOUNT [UNIT AMOUNT]...      amounts move from DEBIT to CREDIT
    hold TIMEOUT_MS DEBIT CREDIT UNIT AMOUNT       the amount is set aside; TIMEOUT_MS of 0 for as long as it takes
    post INDEX.PLACE AMOUNT                        so much of a hold moves, the rest goes back
    void INDEX.PLACE                               all of a hold goes back

A hold is named by the entry that holds it and its place in that entry's `transfers`. An entry's `accounts` opens
accounts that have a limit: `NAME UNIT LIMIT`. Others are opened by the first line that names them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from buildnet.errors import InvalidRequest

UNITS: Final = ("cpu_ms", "gpu_ms", "bytes", "byte_hours", "actions", "credit_micro")
_UNITS: Final = frozenset(UNITS)
AMOUNT_MAX: Final = (1 << 128) - 1
LINES_MAX: Final = 64
NAME_BYTES_MAX: Final = 128
DEBIT_LIMIT: Final = "debits_must_not_exceed_credits"
CREDIT_LIMIT: Final = "credits_must_not_exceed_debits"

_INDEX_MAX: Final = (1 << 57) - 1
_TIMEOUT_MS_MAX: Final = 10 * 365 * 86_400_000
# A kind, and what tells one of the kind: visible ASCII, so that no reader's screen or column is disturbed.
_NAME: Final = re.compile(r"[a-z]{1,16}:[!-~]{1,111}")
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+/=-]{0,63}")
_DIGITS_MAX: Final = 39
_HOLD: Final = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]?)")
_ANONYMOUS: Final = "anonymous"


class Move(NamedTuple):
    """Amounts, each with its unit, from one account to another."""

    debit: str
    credit: str
    amounts: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """Its line."""
        return f"{self.debit} {self.credit} {' '.join(f'{unit} {amount}' for unit, amount in self.amounts)}"


@dataclass(frozen=True, slots=True)
class Hold:
    """An amount set aside until it is posted, voided, or `timeout_ms` have passed (0: never)."""

    timeout_ms: int
    debit: str
    credit: str
    unit: str
    amount: int

    @property
    def text(self) -> str:
        """Its line."""
        return f"hold {self.timeout_ms} {self.debit} {self.credit} {self.unit} {self.amount}"


@dataclass(frozen=True, slots=True)
class Resolve:
    """The end of the hold at `place` of entry `index`: so much of it moves, or none when `amount` is None."""

    index: int
    place: int
    amount: int | None

    @property
    def text(self) -> str:
        """Its line."""
        hold = f"{self.index}.{self.place}"
        return f"void {hold}" if self.amount is None else f"post {hold} {self.amount}"


@dataclass(frozen=True, slots=True)
class Opening:
    """An account with a limit."""

    name: str
    unit: str
    limit: str

    @property
    def text(self) -> str:
        """Its line."""
        return f"{self.name} {self.unit} {self.limit}"


Line = Move | Hold | Resolve


def node_account(node: str) -> str:
    """The account of a node."""
    return f"node:{_told(node)}"


def caller_account(subject: str) -> str:
    """The account of a caller by the subject of its token; of all who show none, when it is empty."""
    return f"caller:{_told(subject)}" if subject else f"caller:{_ANONYMOUS}"


def worker_account(subject: str) -> str:
    """The account of workers by the subject of their token, for what they read and write of the cache."""
    return f"worker:{_told(subject)}" if subject else f"worker:{_ANONYMOUS}"


def _told(text: str) -> str:
    # What is long, holds blanks or control characters, or would pass for another is told by its hash.
    if _PLAIN_ID.fullmatch(text) and text != _ANONYMOUS:
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def is_account(name: str) -> bool:
    """Whether this can be the name of an account."""
    return _NAME.fullmatch(name) is not None


def parse_line(text: str) -> Line:
    """One line of an entry's `transfers`.

    Raises:
        InvalidRequest: it is none, or not in its one spelling.
    """
    usual = _USUAL.fullmatch(text)
    if usual is not None:
        debit, credit, unit, amount, other, more = usual.groups()
        if other is None:
            return Move(debit, credit, ((unit, int(amount)),))
        if other != unit:
            return Move(debit, credit, ((unit, int(amount)), (other, int(more))))
    words = text.split(" ")
    if ":" in words[0]:
        return _move(words)
    match words[0], len(words):
        case "hold", 6:
            timeout_ms = _number(words[1], _TIMEOUT_MS_MAX)
            return Hold(timeout_ms, _name(words[2]), _name(words[3]), _unit(words[4]), _number(words[5], AMOUNT_MAX))
        case "post", 3:
            return Resolve(*_hold(words[1]), _number(words[2], AMOUNT_MAX))
        case "void", 2:
            return Resolve(*_hold(words[1]), None)
        case _:
            raise _wrong("is not one of the four forms")


# Of a thousand lines all but a few: one or two amounts that fit 18 digits.
_USUAL: Final = re.compile(
    rf"({_NAME.pattern}) ({_NAME.pattern}) ({'|'.join(UNITS)}) (0|[1-9][0-9]{{0,17}})"
    rf"(?: ({'|'.join(UNITS)}) (0|[1-9][0-9]{{0,17}}))?"
)


def _move(words: list[str]) -> Move:
    count = len(words)
    if count < 4 or count % 2:
        raise _wrong("is not DEBIT CREDIT UNIT AMOUNT [UNIT AMOUNT]...")
    amounts = []
    for at in range(2, count, 2):
        if words[at] not in _UNITS:
            raise _wrong(f"names no unit: {words[at]!r}; units are {', '.join(UNITS)}")
        amounts.append((words[at], _number(words[at + 1], AMOUNT_MAX)))
    if count > 4 and len(dict(amounts)) != len(amounts):
        raise _wrong("names a unit twice")
    return Move(_name(words[0]), _name(words[1]), tuple(amounts))


def parse_opening(text: str) -> Opening:
    """One line of an entry's `accounts`.

    Raises:
        InvalidRequest: it is none.
    """
    words = text.split(" ")
    if len(words) != 3 or words[2] not in (DEBIT_LIMIT, CREDIT_LIMIT):
        raise _wrong("is not NAME UNIT LIMIT")
    return Opening(_name(words[0]), _unit(words[1]), words[2])


# The same few names come again and again.
@lru_cache(10_000)
def _name(word: str) -> str:
    if not _NAME.fullmatch(word):
        raise _wrong(f"names no account: {word!r}")
    return word


def _unit(word: str) -> str:
    if word not in UNITS:
        raise _wrong(f"names no unit: {word!r}; units are {', '.join(UNITS)}")
    return word


def _number(word: str, largest: int) -> int:
    if word.isdecimal() and word.isascii() and (word[0] != "0" or word == "0") and len(word) <= _DIGITS_MAX:
        number = int(word)
        if number <= largest:
            return number
    raise _wrong(f"holds no whole number from 0 to {largest}: {word!r}")


def _hold(word: str) -> tuple[int, int]:
    found = _HOLD.fullmatch(word)
    if found is None or int(found[1]) > _INDEX_MAX or int(found[2]) >= LINES_MAX:
        raise _wrong(f"names no hold as INDEX.PLACE: {word!r}")
    return int(found[1]), int(found[2])


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(f"a line of an entry's accounting {why}", field="transfers")
