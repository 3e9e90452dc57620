"""LedgerService: entries, proofs and checkpoints as they are. Nobody outside appends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from buildnet.edge.bridge import Call, Method
from buildnet.errors import Forbidden, NotFound
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog
from buildnet.wire._gen.buildnet.v1 import ledger_pb2

_LEDGER = "/buildnet.v1.LedgerService/"


class LedgerService:
    """The read side of the ledger."""

    def __init__(self, ledger: LedgerLog, cosigned: Cosigned | None = None) -> None:
        self._ledger = ledger
        self._cosigned = cosigned

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
        }

    async def append(self, request: ledger_pb2.AppendRequest, call: Call) -> ledger_pb2.AppendResponse:
        """Refused: entries are written by the controller's own rooms."""
        raise Forbidden("the ledger is written by the controller alone")

    async def tail(self, request: ledger_pb2.TailRequest, call: Call) -> AsyncIterator[ledger_pb2.LedgerEntry]:
        """Entries in order."""
        async for index, body in self._ledger.tail(request.from_index, follow=request.follow):
            yield _entry(index, body)

    async def get(self, request: ledger_pb2.GetRequest, call: Call) -> ledger_pb2.LedgerEntry:
        """One entry."""
        return _entry(request.index, await self._ledger.get(request.index))

    async def prove_inclusion(
        self, request: ledger_pb2.ProveInclusionRequest, call: Call
    ) -> ledger_pb2.ProveInclusionResponse:
        """One entry and its path to the root of a signed checkpoint."""
        size = request.tree_size or await self._ledger.signed_size()
        note = await self._ledger.checkpoint(size)
        hashes = await self._ledger.prove_inclusion(request.index, size)
        body = await self._ledger.get(request.index)
        return ledger_pb2.ProveInclusionResponse(
            entry=_entry(request.index, body), hashes=hashes, checkpoint=self._note(note), tree_size=size
        )

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


def _entry(index: int, body: bytes) -> ledger_pb2.LedgerEntry:
    entry = ledger_pb2.LedgerEntry(index=index, body=body)
    entry.at.FromMilliseconds(json.loads(body)["at_unix_ms"])
    return entry
