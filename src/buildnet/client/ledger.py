"""What the ledger says, as objects; amounts are integers, times Unix milliseconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from buildnet.client.connection import Connection
from buildnet.client.patience import OnBreak, Patience, watched
from buildnet.errors import BadSignature, LedgerCorrupt, NotFound
from buildnet.ledger.checkpoint import Verifier
from buildnet.ledger.receipt import Receipt
from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import ledger_pb2

_LEDGER: Final = "/buildnet.v1.LedgerService/"

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


class LedgerCalls(Connection):
    """The calls of LedgerService."""

    async def ledger_tail(
        self,
        start: int = 0,
        *,
        follow: bool = False,
        kinds: Collection[str] = (),
        instances: Collection[str] = (),
        since_unix_ms: int | None = None,
        on_break: OnBreak | None = None,
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Ledger entries with their indices, of some kinds and instances or all, from an index or a time on, whichever
        is later. With `follow` it stays, and a connection that breaks is made again, for as long as a server that is
        started anew may take; `on_break` is called with why.

        Raises:
            LedgerCorrupt: after a break, what had been told is not there any more.
            NodeDown: the server stayed away.
        """
        request = tail_request(start, follow=follow, kinds=kinds, instances=instances, since_unix_ms=since_unix_ms)
        if follow:
            # Only a server that was reached is waited for, and a ledger may be silent for hours.
            await self.ledger_size()
            async for told in followed(self._entries, self.ledger_entry, request, self._patience, on_break):
                yield told
            return
        async for entry in self._entries(request):
            yield entry.index, entry.body

    def _entries(self, request: ledger_pb2.TailRequest) -> AsyncGenerator[ledger_pb2.LedgerEntry, None]:
        return self._stream(_LEDGER + "Tail", request, ledger_pb2.LedgerEntry)

    async def ledger_size(self) -> int:
        """How many entries the newest checkpoint covers."""
        checkpoint = await self._unary(
            _LEDGER + "GetCheckpoint", ledger_pb2.GetCheckpointRequest(), ledger_pb2.Checkpoint
        )
        return Verifier.parse(checkpoint.verifier_key).open(checkpoint.note).size

    async def ledger_entry(self, index: int) -> bytes:
        """The body of one entry.

        Raises:
            NotFound: there is none.
        """
        request = ledger_pb2.GetRequest(index=index)
        body: bytes = (await self._unary(_LEDGER + "Get", request, ledger_pb2.LedgerEntry)).body
        return body

    async def prove(self, index: int) -> Receipt:
        """One entry with its proof, checked here against the server's signed checkpoint.

        The key is the server's word: compare it with the one you know.

        Raises:
            BadSignature: the checkpoint is not signed, or the proof does not lead to its root.
        """
        request = ledger_pb2.ProveInclusionRequest(index=index)
        proof = await self._unary(_LEDGER + "ProveInclusion", request, ledger_pb2.ProveInclusionResponse)
        receipt = receipt_of(proof)
        receipt.verify()
        if receipt.index != index:
            raise BadSignature(f"the server proved entry {receipt.index} instead of {index}")
        return receipt

    async def receipt(self, action: Digest) -> Receipt:
        """The entry by which the newest result of an action became visible, with its proof, checked as `prove` does.

        Raises:
            NotFound: no entry tells of one in this instance.
            BadSignature: as `prove`.
        """
        request = ledger_pb2.GetReceiptRequest(instance_name=self.instance, action_digest=action.text)
        proof = await self._unary(_LEDGER + "GetReceipt", request, ledger_pb2.ProveInclusionResponse)
        receipt = receipt_of(proof)
        receipt.verify()
        if action.text.encode() not in receipt.body:
            raise BadSignature(f"the server proved an entry that does not tell of {action.text}")
        return receipt

    async def accounts(self, prefix: str = "") -> list[Account]:
        """Accounts whose names begin so, by name and unit."""
        request = ledger_pb2.ListAccountsRequest(prefix=prefix)
        found: list[Account] = []
        while True:
            page = await self._unary(_LEDGER + "ListAccounts", request, ledger_pb2.ListAccountsResponse)
            found += map(account_of, page.accounts)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def statement(self, account: str, *, since_unix_ms: int | None = None) -> AsyncIterator[Posting]:
        """What was posted to and from an account, oldest first.

        Raises:
            NotFound: there is no such account.
        """
        request = ledger_pb2.StatementRequest(account=account)
        if since_unix_ms is not None:
            request.since.FromMilliseconds(since_unix_ms)
        async for line in self._stream(_LEDGER + "Statement", request, ledger_pb2.Posting):
            yield posting_of(line)
