"""FleetService without sockets: silence, a failing ledger, a failing disk, a caller that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from buildnet.catalog.catalog import Catalog
from buildnet.catalog.pins import Pins
from buildnet.edge.announcements import Announcements
from buildnet.edge.bridge import Call
from buildnet.edge.fleet import SILENCE_S_MAX, FleetService
from buildnet.edge.flow import Duplex
from buildnet.edge.logs import LogBook
from buildnet.edge.node_tiers import NodeTiers
from buildnet.errors import InvalidRequest, InvariantBroken, NodeDown, NotFound, StorageFull
from buildnet.model.caller import Caller
from buildnet.model.node import NodePolicy
from buildnet.model.tier import Tier
from buildnet.scheduler.service import Scheduler
from buildnet.testing.scheduler_fakes import HeldPublisher, ManualClock, MemoryBlobs, MemoryCache
from buildnet.wire._gen.buildnet.v1 import fleet_pb2

CALL = Call(1, "127.0.0.1:1", [], None, Caller("ann"))


OFFERS = (("effect:network", "none"), ("effect:read", "declared"), ("effect:write", "declared"))


class Trusted:
    """Tiers of those that joined by keys, in memory."""

    def __init__(self) -> None:
        self.tiers: dict[str, Tier] = {}

    def tier_of(self, node: str) -> Tier | None:
        return self.tiers.get(node)

    def set_tier(self, node: str, tier: Tier) -> None:
        self.tiers[node] = tier


class Bench:
    """A service whose disk and ledger do as a test says; `order` is what was done, in order."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.kept: dict[str, NodePolicy] = {}
        self.order: list[str] = []
        self.ledger_fails = self.disk_fails = False
        self.trusted = Trusted()
        self.gate = asyncio.Event()
        self.gate.set()
        self.scheduler = Scheduler(
            cache=MemoryCache(MemoryBlobs()),
            publisher=HeldPublisher(),
            record=lambda _: None,
            clock=self.clock,
            new_id=lambda: "o",
        )
        self.service = FleetService(
            self.scheduler,
            LogBook(Path("logs"), self.clock),
            self.clock,
            controller_id="c",
            version="0.1.0",
            record=lambda kind, _: self.order.append(kind),
            append=self._append,
            # Nobody announces here, so nothing is pinned.
            announcements=Announcements(
                Catalog(), Pins(Path("pins")), self.clock, controller_id="c", record=lambda kind, _: None
            ),
            tiers=NodeTiers(self.trusted, self._append, ["untrusted"]),
            policies={},
            keep=self._keep,
        )

    async def _append(self, kind: str, facts: Mapping[str, Any]) -> None:
        await self.gate.wait()
        if self.ledger_fails:
            raise InvariantBroken("the ledger refused")
        self.order.append(kind)
        assert facts["by"] == "ann"

    async def _keep(self, policies: Mapping[str, NodePolicy]) -> None:
        if self.disk_fails:
            raise StorageFull("no room")
        self.kept = dict(policies)
        self.order.append("kept")

    def join(
        self, told: list[fleet_pb2.JoinResponse], node: str = "n", offers: tuple[tuple[str, str], ...] = ()
    ) -> asyncio.Future[None]:
        """A session of which nothing comes but Hello; `told` gets what the worker is told."""
        stream = Duplex(
            lambda op: told.append(fleet_pb2.JoinResponse.FromString(op[2])), 1, fleet_pb2.JoinRequest.FromString
        )
        hello = fleet_pb2.Hello(node_id=node, boot_id="b", version="0.1.0", slots=1)
        for name, value in offers:
            hello.properties.add(name=name, value=value)
        stream.message(fleet_pb2.JoinRequest(hello=hello).SerializeToString())
        return asyncio.ensure_future(self.service.join(stream, CALL))

    def states(self) -> dict[str, str]:
        answer = self.service.list_nodes(fleet_pb2.ListNodesRequest(include_absent=True), CALL)
        return {n.node_id: fleet_pb2.NodeState.Name(n.state).removeprefix("NODE_STATE_") for n in answer.nodes}


async def test_a_worker_that_says_nothing_is_lost() -> None:
    bench = Bench()
    told: list[fleet_pb2.JoinResponse] = []
    ending = bench.join(told)
    while not told:
        await asyncio.sleep(0)
    assert told[0].HasField("welcome")
    assert bench.states() == {"n": "ACTIVE"}
    bench.service.end_silent(bench.clock.now_s + SILENCE_S_MAX)
    assert not ending.done()
    bench.service.end_silent(bench.clock.now_s + SILENCE_S_MAX + 1)
    with pytest.raises(NodeDown, match="said nothing"):
        await ending
    assert bench.states() == {"n": "LEFT"}


async def test_what_is_decided_is_kept_and_ledgered_before_it_is_in_force() -> None:
    bench = Bench()
    bench.gate.clear()
    asked = asyncio.ensure_future(bench.service.remove_node(fleet_pb2.RemoveNodeRequest(node_id="n"), CALL))
    while bench.order != ["kept"]:
        await asyncio.sleep(0)
    assert bench.states() == {}
    # Whoever asked went away: it is settled all the same, and the next ask waits for it.
    asked.cancel()
    allowed = asyncio.ensure_future(
        bench.service.cordon_node(fleet_pb2.CordonNodeRequest(node_id="n", cordoned=True), CALL)
    )
    bench.gate.set()
    assert (await allowed).state == fleet_pb2.NODE_STATE_REMOVED
    assert bench.order == ["kept", "node.removed", "kept", "node.cordoned"]
    assert bench.kept == {"n": NodePolicy(cordoned=True, removed=True, by="ann")}


@pytest.mark.parametrize("failing", ["ledger", "disk"])
async def test_what_cannot_be_kept_or_ledgered_is_not_in_force(failing: str) -> None:
    bench = Bench()
    bench.ledger_fails, bench.disk_fails = failing == "ledger", failing == "disk"
    with pytest.raises((InvariantBroken, StorageFull)):
        await bench.service.remove_node(fleet_pb2.RemoveNodeRequest(node_id="n"), CALL)
    assert bench.states() == {}
    assert bench.kept == {}
    bench.ledger_fails = bench.disk_fails = False
    await bench.service.remove_node(fleet_pb2.RemoveNodeRequest(node_id="n"), CALL)
    assert bench.states() == {"n": "REMOVED"}


async def test_an_ask_for_what_is_so_already_writes_nothing() -> None:
    bench = Bench()
    for _ in range(2):
        await bench.service.remove_node(fleet_pb2.RemoveNodeRequest(node_id="n"), CALL)
    assert bench.order == ["kept", "node.removed"]


async def welcomed(bench: Bench, *offers: tuple[str, str]) -> tuple[asyncio.Future[None], fleet_pb2.Node, bool]:
    told: list[fleet_pb2.JoinResponse] = []
    ending = bench.join(told, offers=offers)
    while not told:
        if ending.done():
            await ending
        await asyncio.sleep(0)
    (node,) = bench.service.list_nodes(fleet_pb2.ListNodesRequest(), CALL).nodes
    return ending, node, told[0].welcome.strict


async def test_a_tier_is_kept_and_ledgered_and_a_session_of_the_old_one_ends() -> None:
    bench = Bench()
    bench.trusted.tiers["n"] = "trusted"
    ending, node, strict = await welcomed(bench)
    assert (node.tier, strict) == ("trusted", False)
    asked = fleet_pb2.SetNodeTierRequest(node_id="n", tier="untrusted")
    bench.ledger_fails = True
    with pytest.raises(InvariantBroken):
        await bench.service.set_node_tier(asked, CALL)
    assert (bench.trusted.tiers, ending.done()) == ({"n": "trusted"}, False)
    bench.ledger_fails = False
    for _ in range(2):
        assert (await bench.service.set_node_tier(asked, CALL)).tier == "untrusted"
    with pytest.raises(NodeDown, match="is now untrusted"):
        await ending
    assert bench.order.count("node.tier_set") == 1
    ending, node, strict = await welcomed(bench, *OFFERS, ("effect:write", "ambient"))
    assert (node.tier, strict) == ("untrusted", True)
    assert bench.service._sessions[2].greeting.offer.properties == frozenset(OFFERS)
    ending.cancel()


async def test_a_tier_that_is_strict_takes_no_node_that_cannot_be() -> None:
    bench = Bench()
    bench.trusted.tiers["n"] = "untrusted"
    with pytest.raises(InvalidRequest, match="cannot enforce effect:read=declared, effect:write=declared; "):
        await welcomed(bench, OFFERS[0])
    assert bench.states() == {}


@pytest.mark.parametrize(
    ("tier", "error", "text"),
    [("local", InvalidRequest, "there are untrusted, trusted"), ("trusted", NotFound, "trust is given to keys")],
)
async def test_a_tier_that_may_not_be_given_is_refused(tier: str, error: type[Exception], text: str) -> None:
    bench = Bench()
    with pytest.raises(error, match=text):
        await bench.service.set_node_tier(fleet_pb2.SetNodeTierRequest(node_id="n", tier=tier), CALL)
    assert bench.order == []
