"""Who may see some instances sees their entries, with proofs, and none of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from buildnet.edge.bridge import Call
from buildnet.edge.ledger import LedgerService
from buildnet.errors import Forbidden, InvalidRequest
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.ledger.statements import Statements
from buildnet.model.caller import ANYBODY, Caller
from buildnet.model.entry import Entry, Value
from buildnet.wire._gen.buildnet.v1 import ledger_pb2 as pb

ACTION = f"{'a' * 64}/142"
RED = Caller(instances=("red",))
BLUE = Caller(instances=("blue",))
ENTRIES: list[tuple[str, dict[str, Value]]] = [
    ("controller.started", {"term": 1}),
    ("action.published", {"action": ACTION, "instance": "red", "fence": 1}),
    ("action.published", {"action": ACTION, "instance": "red/deep", "fence": 2}),
    ("action.published", {"action": ACTION, "instance": "redder", "fence": 3}),
    ("results.updated", {"results": [f"red {ACTION} {'b' * 64}"]}),
    ("results.updated", {"results": [f"red {ACTION} {'b' * 64}", f"blue {ACTION} {'b' * 64}"]}),
    ("action.published", {"action": ACTION, "instance": "red\x01apart", "fence": 4}),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[LedgerService]:
    log = LedgerLog.open(tmp_path / "ledger", load_or_create_key(tmp_path / "key"), "process")
    accounted = Statements(tmp_path / "views")
    await log.append([Entry(kind, at, facts) for at, (kind, facts) in enumerate(ENTRIES)])
    yield LedgerService(log, lambda instance, action: 1 if instance == "red" else None, accounted)
    accounted.close()
    await log.close()


def call(caller: Caller) -> Call:
    return Call(0, "", [], None, caller)


async def seen(service: LedgerService, caller: Caller, *instances: str) -> list[int]:
    request = pb.TailRequest(instances=instances)
    return [entry.index async for entry in service.tail(request, call(caller))]


async def test_a_tail_holds_what_its_reader_may_see(service: LedgerService) -> None:
    assert await seen(service, ANYBODY) == list(range(len(ENTRIES)))
    assert await seen(service, RED) == [1, 2, 4, 6]
    assert await seen(service, BLUE) == []


async def test_a_tail_is_narrowed_to_instances_that_are_named(service: LedgerService) -> None:
    assert await seen(service, ANYBODY, "red") == [1, 2, 4, 6]
    assert await seen(service, ANYBODY, "red/deep", "redder") == [2, 3]
    assert await seen(service, RED, "redder") == [], "naming it does not open it"
    with pytest.raises(InvalidRequest, match="instances"):
        await seen(service, ANYBODY, *map(str, range(65)))


async def test_an_entry_of_others_is_told_and_proven_to_nobody(service: LedgerService) -> None:
    for index in (0, 3, 5):
        with pytest.raises(Forbidden):
            await service.get(pb.GetRequest(index=index), call(RED))
        with pytest.raises(Forbidden):
            await service.prove_inclusion(pb.ProveInclusionRequest(index=index), call(RED))
    entry = await service.get(pb.GetRequest(index=2), call(RED))
    assert json.loads(entry.body)["instance"] == "red/deep"


async def test_a_receipt_is_its_instances_reader_s_to_ask_for(service: LedgerService) -> None:
    request = pb.GetReceiptRequest(action_digest=ACTION, instance_name="red")
    assert (await service.get_receipt(request, call(RED))).entry.index == 1
    with pytest.raises(Forbidden):
        await service.get_receipt(request, call(BLUE))
