"""What the ledger says, as objects; amounts are integers, times Unix milliseconds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from buildnet.ledger.receipt import Receipt
from buildnet.wire._gen.buildnet.v1 import ledger_pb2


@dataclass(frozen=True, slots=True)
class Account:
    """Sums of one name in one unit."""

    name: str
    unit: str
    limit: str
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of a statement; the sums are what the account had come to by then, in this unit."""

    index: int
    at_unix_ms: int
    kind: str
    debit: str
    credit: str
    unit: str
    amount: int
    status: str
    debits_posted: int
    credits_posted: int


def account_of(message: ledger_pb2.Account) -> Account:
    """An account from its message."""
    return Account(
        message.name,
        message.unit,
        message.limit,
        int(message.debits_posted),
        int(message.credits_posted),
        int(message.debits_pending),
        int(message.credits_pending),
    )


def posting_of(message: ledger_pb2.Posting) -> Posting:
    """A line of a statement from its message."""
    return Posting(
        message.index,
        message.at.ToMilliseconds(),
        message.kind,
        message.debit,
        message.credit,
        message.unit,
        int(message.amount),
        message.status,
        int(message.debits_posted),
        int(message.credits_posted),
    )


def tail_request(
    start: int,
    *,
    follow: bool,
    kinds: Collection[str] = (),
    instances: Collection[str] = (),
    since_unix_ms: int | None = None,
) -> ledger_pb2.TailRequest:
    """Ask for entries."""
    request = ledger_pb2.TailRequest(from_index=start, follow=follow, kinds=sorted(kinds), instances=sorted(instances))
    if since_unix_ms is not None:
        request.since.FromMilliseconds(since_unix_ms)
    return request


def receipt_of(proof: ledger_pb2.ProveInclusionResponse) -> Receipt:
    """A receipt from a proof; nothing is checked yet."""
    return Receipt(
        proof.entry.index,
        proof.entry.body,
        tuple(proof.hashes),
        proof.checkpoint.note,
        proof.checkpoint.verifier_key,
    )
