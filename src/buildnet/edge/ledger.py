"""LedgerService: entries, proofs and checkpoints as they are. Nobody outside appends."""

from __future__ import annotations

from collections.abc import AsyncIterator

from buildnet.edge.bridge import Call, Method
from buildnet.errors import Forbidden, InvalidRequest
from buildnet.ledger.log import LedgerLog
from buildnet.wire._gen.buildnet.v1 import ledger_pb2

_LEDGER = "/buildnet.v1.LedgerService/"


class LedgerService:
    """The read side of the ledger."""

    def __init__(self, ledger: LedgerLog) -> None:
        self._ledger = ledger

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
            _LEDGER + "GetCheckpoint": Method(
                "unary", self.checkpoint, pb.GetCheckpointRequest, pb.Checkpoint
            ),
        }

    async def append(
        self, request: ledger_pb2.AppendRequest, call: Call
    ) -> ledger_pb2.AppendResponse:
        """Refused: entries are written by the controller's own rooms."""
        raise Forbidden("the ledger is written by the controller alone")
