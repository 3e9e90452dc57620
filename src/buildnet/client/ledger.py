"""What the ledger says, as objects; amounts are integers, times Unix milliseconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

from buildnet.client.patience import OnBreak, Patience, watched
from buildnet.errors import LedgerCorrupt, NotFound
from buildnet.ledger.receipt import Receipt
from buildnet.wire._gen.buildnet.v1 import ledger_pb2

Entries = Callable[[ledger_pb2.TailRequest], AsyncGenerator[ledger_pb2.LedgerEntry, None]]
"""Entries for a request, over a connection of their own."""


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


async def followed(
    entries: Entries,
    entry: Callable[[int], Awaitable[bytes]],
    request: ledger_pb2.TailRequest,
    patience: Patience,
    on_break: OnBreak | None = None,
) -> AsyncIterator[tuple[int, bytes]]:
    """Entries for ever, over as many connections as it takes, none twice. `on_break` hears of each that broke, once
    until something comes again.

    Raises:
        LedgerCorrupt: the last entry that was told is not there any more, or is another: whoever answers has another
            ledger, or an older copy, and to go on would hide what is gone.
        NodeDown: the server stayed away for longer than it is waited for.
    """
    absence = patience.absence()
    last: tuple[int, bytes] | None = None

    async def later() -> AsyncGenerator[ledger_pb2.LedgerEntry, None]:
        if last is not None:
            await _known(entry, last)
            # It has answered, and may have nothing new for hours.
            absence.over()
        async with aclosing(entries(request)) as stream:
            async for found in stream:
                yield found

    async for found in watched(later, absence, on_break):
        last = found.index, found.body
        request.from_index = found.index + 1
        yield last


async def _known(entry: Callable[[int], Awaitable[bytes]], last: tuple[int, bytes]) -> None:
    index, told = last
    try:
        body = await entry(index)
    except NotFound:
        body = b""
    if body != told:
        raise LedgerCorrupt(
            f"entry {index}, which was told, is not in the ledger any more: it is another, or an older copy; compare a "
            "checkpoint that you kept, with: buildnet ledger verify --from",
            where=f"entry {index}",
        )


def receipt_of(proof: ledger_pb2.ProveInclusionResponse) -> Receipt:
    """A receipt from a proof; nothing is checked yet."""
    return Receipt(
        proof.entry.index,
        proof.entry.body,
        tuple(proof.hashes),
        proof.checkpoint.note,
        proof.checkpoint.verifier_key,
    )
