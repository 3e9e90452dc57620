"""LedgerService: entries, proofs, checkpoints and accounts as they are. Nobody outside appends."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from buildnet.edge.bridge import Call, Method
from buildnet.errors import Forbidden, InvalidRequest, NotFound
from buildnet.ledger import leaf, queries, statements
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog
from buildnet.model.caller import Caller, looked_up
from buildnet.model.digest import Digest
from buildnet.model.posting import is_account
from buildnet.wire import times
from buildnet.wire._gen.buildnet.v1 import ledger_pb2
from buildnet.wire.native import translated

_LEDGER = "/buildnet.v1.LedgerService/"
_NAMED_MAX: Final = 64
_ACCOUNTS_MAX: Final = 1000
_ENTRIES_AT_ONCE: Final = 500
# The index of the entry by which the cached result of an action became visible, by instance and digest text.
PublishedIndex = Callable[[str, str], int | None]


class LedgerService:
    """The read side of the ledger."""

    def __init__(
        self,
        ledger: LedgerLog,
        published_index: PublishedIndex,
        accounted: statements.Statements,
        cosigned: Cosigned | None = None,
    ) -> None:
        self._ledger = ledger
        self._published_index = published_index
        self._cosigned = cosigned
        self._accounts = queries.AccountIndex()
        self._statements = accounted

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        pb = ledger_pb2
        return {
            _LEDGER + "Append": Method("unary", self.append, pb.AppendRequest, pb.AppendResponse),
            _LEDGER + "Tail": Method("server_stream", self.tail, pb.TailRequest, pb.LedgerEntry),
            _LEDGER + "Get": Method("unary", self.get, pb.GetRequest, pb.LedgerEntry),
            _LEDGER + "ProveInclusion": Method(
                "unary", self.prove_inclusion, pb.ProveInclusionRequest, pb.ProveInclusionResponse
            ),
            _LEDGER + "ProveConsistency": Method(
                "unary",
                self.prove_consistency,
                pb.ProveConsistencyRequest,
                pb.ProveConsistencyResponse,
            ),
            _LEDGER + "GetCheckpoint": Method("unary", self.checkpoint, pb.GetCheckpointRequest, pb.Checkpoint),
            _LEDGER + "GetReceipt": Method("unary", self.get_receipt, pb.GetReceiptRequest, pb.ProveInclusionResponse),
            _LEDGER + "ListAccounts": Method(
                "unary", self.list_accounts, pb.ListAccountsRequest, pb.ListAccountsResponse
            ),
            _LEDGER + "Statement": Method("server_stream", self.statement, pb.StatementRequest, pb.Posting),
        }

    async def append(self, request: ledger_pb2.AppendRequest, call: Call) -> ledger_pb2.AppendResponse:
        """Refused: entries are written by the controller's own rooms."""
        raise Forbidden("the ledger is written by the controller alone")

    async def tail(self, request: ledger_pb2.TailRequest, call: Call) -> AsyncIterator[ledger_pb2.LedgerEntry]:
        """Entries in order, those of the kinds asked for."""
        for field, named in (("kinds", request.kinds), ("instances", request.instances)):
            if len(named) > _NAMED_MAX:
                raise InvalidRequest(f"more than {_NAMED_MAX} {field}; leave the field empty for all", field=field)
        kinds = frozenset(request.kinds)
        start = request.from_index
        if request.HasField("since"):
            since_ms = times.unix_ms(request.since)
            start = max(start, await self._ledger.look(lambda c: queries.first_since(c, since_ms)))
        wanted = Caller(instances=tuple(request.instances) or None)
        async for index, body in self._ledger.tail(start, follow=request.follow):
            fields = json.loads(body)
            if (not kinds or fields["kind"] in kinds) and _sees(wanted, fields) and _sees(call.caller, fields):
                yield _message(index, body, fields["at_unix_ms"])

    async def get(self, request: ledger_pb2.GetRequest, call: Call) -> ledger_pb2.LedgerEntry:
        """One entry."""
        return await self._entry(request.index, call.caller)

    async def _entry(self, index: int, caller: Caller) -> ledger_pb2.LedgerEntry:
        """An entry that the caller may see.

        Raises:
            NotFound: there is none.
            Forbidden: it is of other instances than the caller's.
        """
        body = await self._ledger.get(index)
        fields = json.loads(body)
        if not _sees(caller, fields):
            raise Forbidden(f"entry {index} is not of an instance that you may see")
        return _message(index, body, fields["at_unix_ms"])

    async def prove_inclusion(
        self, request: ledger_pb2.ProveInclusionRequest, call: Call
    ) -> ledger_pb2.ProveInclusionResponse:
        """One entry and its path to the root of a signed checkpoint."""
        return await self._proof(request.index, call.caller, request.tree_size)

    async def _proof(self, index: int, caller: Caller, size: int = 0) -> ledger_pb2.ProveInclusionResponse:
        size = size or await self._ledger.signed_size()
        note = await self._ledger.checkpoint(size)
        hashes = await self._ledger.prove_inclusion(index, size)
        entry = await self._entry(index, caller)
        return ledger_pb2.ProveInclusionResponse(
            entry=entry, hashes=hashes, checkpoint=self._note(note), tree_size=size
        )

    async def get_receipt(self, request: ledger_pb2.GetReceiptRequest, call: Call) -> ledger_pb2.ProveInclusionResponse:
        """The entry of an action's newest result that the caller would be told, with its proof."""
        action = Digest.parse(request.action_digest).text
        if not call.caller.may_see(request.instance_name):
            raise Forbidden(f"the instance {request.instance_name!r} is not one that you may see")
        for instance in looked_up(call.caller.written(request.instance_name)):
            index = await self._result_entry(action, instance)
            if index is not None:
                return await self._proof(index, call.caller)
        raise NotFound(
            f"no entry tells of a result of {action} in the instance {request.instance_name!r}; run it first",
            kind="result",
            name=action,
        )

    async def _result_entry(self, action: str, instance: str) -> int | None:
        with translated():
            index = await asyncio.to_thread(self._published_index, instance, action)
        if index is not None:
            return index
        # Nothing is cached, or a client wrote it: the entries know, the newest first.
        end = await self._ledger.signed_size()
        while end > 0:
            start = max(0, end - queries.ROWS_MAX)
            found = await self._ledger.look(queries.result_entry(action, instance, start, end))
            if found is not None:
                return found
            end = start
        return None

    async def list_accounts(
        self, request: ledger_pb2.ListAccountsRequest, call: Call
    ) -> ledger_pb2.ListAccountsResponse:
        """One page of accounts, by name and unit."""
        name, _, unit = request.page_token.partition(" ")
        if request.page_token and (not unit or " " in unit):
            raise InvalidRequest("the page token is not one of ours", field="page_token")
        limit = min(request.page_size or _ACCOUNTS_MAX, _ACCOUNTS_MAX)
        known = await self._ledger.look(self._accounts.page(request.prefix, (name, unit), limit + 1))
        answer = ledger_pb2.ListAccountsResponse()
        for account in known[:limit]:
            answer.accounts.add(
                name=account.name,
                unit=account.unit,
                limit=account.limit,
                debits_posted=str(account.debits_posted),
                credits_posted=str(account.credits_posted),
                debits_pending=str(account.debits_pending),
                credits_pending=str(account.credits_pending),
            )
        if limit < len(known):
            answer.next_page_token = f"{known[limit - 1].name} {known[limit - 1].unit}"
        return answer

    async def statement(self, request: ledger_pb2.StatementRequest, call: Call) -> AsyncIterator[ledger_pb2.Posting]:
        """Every transfer of one account with what it came to, oldest first."""
        name = request.account
        if not is_account(name):
            raise InvalidRequest("an account is KIND:NAME, as `ledger accounts` lists them", field="account")
        if not await self._ledger.look(self._accounts.has(name)):
            raise NotFound(f"there is no account {name}; `ledger accounts` lists them", kind="account", name=name)
        since_ms = times.unix_ms(request.since) if request.HasField("since") else 0
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        size = await self._ledger.signed_size()
        while await self._ledger.look(self._statements.follow(size)):
            # Others may read between two pieces.
            continue
        last = -1
        while entries := await self._ledger.look(self._statements.entries(name, last, _ENTRIES_AT_ONCE)):
            last = entries[-1]
            for posting in await self._ledger.look(statements.postings(name, entries)):
                held = sums[posting.unit]
                if posting.status == "posted":
                    held[0] += posting.amount if posting.debit == name else 0
                    held[1] += posting.amount if posting.credit == name else 0
                if posting.at_unix_ms >= since_ms:
                    yield _posting(posting, *held)

    async def prove_consistency(
        self, request: ledger_pb2.ProveConsistencyRequest, call: Call
    ) -> ledger_pb2.ProveConsistencyResponse:
        """That an older tree begins a newer one."""
        newer = request.to_size or await self._ledger.signed_size()
        hashes = await self._ledger.prove_consistency(request.from_size, newer)
        return ledger_pb2.ProveConsistencyResponse(hashes=hashes, to_size=newer)

    async def checkpoint(self, request: ledger_pb2.GetCheckpointRequest, call: Call) -> ledger_pb2.Checkpoint:
        """The newest checkpoint, or the newest that witnesses cosigned."""
        if not request.cosigned:
            return self._note(await self._ledger.checkpoint())
        if self._cosigned is None or self._cosigned.note is None:
            raise NotFound(
                "no witness has cosigned a checkpoint yet; `buildnet up --witness` names some",
                kind="checkpoint",
                name="cosigned",
            )
        return self._note(self._cosigned.note)

    def _note(self, note: str) -> ledger_pb2.Checkpoint:
        note = note if self._cosigned is None else self._cosigned.over(note)
        return ledger_pb2.Checkpoint(note=note, verifier_key=self._ledger.verifier.text)


def _posting(posting: statements.Posting, debited: int, credited: int) -> ledger_pb2.Posting:
    line = ledger_pb2.Posting(
        index=posting.index,
        kind=posting.kind,
        debit=posting.debit,
        credit=posting.credit,
        unit=posting.unit,
        amount=str(posting.amount),
        status=posting.status,
        debits_posted=str(debited),
        credits_posted=str(credited),
    )
    line.at.FromMilliseconds(posting.at_unix_ms)
    return line


def _sees(caller: Caller, fields: Mapping[str, Any]) -> bool:
    """Whether all that an entry tells of is the caller's to see."""
    if caller.instances is None:
        return True
    instances = leaf.instances_of(fields)
    return bool(instances) and all(map(caller.may_see, instances))


def _message(index: int, body: bytes, at_unix_ms: int) -> ledger_pb2.LedgerEntry:
    entry = ledger_pb2.LedgerEntry(index=index, body=body)
    entry.at.FromMilliseconds(at_unix_ms)
    return entry
