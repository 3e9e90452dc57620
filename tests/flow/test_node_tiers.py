"""Tiers of trust, with real processes: an untrusted node serves a namespace and nobody else, until it is trusted."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from buildnet._native import probe_isolation
from buildnet.cli.main import cli
from buildnet.client import Credentials, SyncClient, connect
from buildnet.errors import BuildNetError, InvalidRequest, NoCapableWorker, NotFound
from buildnet.ledger import audit
from tests.conftest import House, Role
from tests.flow.fleets import PASSED, FleetHouse, until, working
from tests.flow.session_workers import SessionWorker

SCRIPT = ["sh", "-c", "echo a > kept; echo b > besides"]
namespaces = pytest.mark.skipif(
    not (probe_isolation()["namespaces"] and probe_isolation()["network_namespace"]),
    reason="this kernel refuses namespaces",
)


def buildnet(controller: Role, *words: str) -> Result:
    return CliRunner().invoke(cli, words, env={"BUILDNET_STATE": str(controller.ready["state"])})


def said(controller: Role, *words: str) -> str:
    ran = buildnet(controller, *words)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def apart(controller: Role) -> SyncClient:
    """A client in the namespace `pr`."""
    words = ("--scope", "read,write,execute", "--namespace", "pr", "--expires", "1h", "--subject", "pr")
    token = said(controller, "token", "create", *words).strip()
    return connect(controller.url, credentials=Credentials(token=lambda: token))


def entries(state: Path, kind: str) -> list[dict[str, Any]]:
    """What the ledger says, from its files."""
    bodies = [json.loads(body) for _, body in audit.iterate(state)]
    return [body for body in bodies if body["kind"] == kind]


def until_joined(client: SyncClient, *tiers: str) -> dict[str, str]:
    """Ids by tier, once just these nodes have a session."""
    deadline_s = time.monotonic() + 60
    while True:
        nodes = client.fleet_nodes()
        if sorted(node.tier for node in nodes if node.state == "active") == sorted(tiers):
            return {node.tier: node.node for node in nodes}
        assert time.monotonic() < deadline_s, nodes
        time.sleep(0.05)


def node_of(client: SyncClient, tier: str) -> str:
    """The id of the only node, once it is of this tier and has a session."""
    return until_joined(client, tier)[tier]


def test_what_an_untrusted_node_makes_is_a_namespaces_alone(house: House) -> None:
    controller = house.up("--no-worker")
    house.join(said(controller, "fleet", "tokens", "new", "--tier", "untrusted").strip(), "--slots", "1")
    with connect(controller.url) as client, apart(controller) as contributor:
        node = node_of(client, "untrusted")
        with pytest.raises(NoCapableWorker, match=r"is of the tier trusted or above \(untrusted\)"):
            client.run(SCRIPT, outputs=["kept"])
        # To ask for less than one's result needs changes nothing.
        with pytest.raises(NoCapableWorker):
            client.run(SCRIPT, outputs=["kept"], tier="untrusted")
        theirs = contributor.run(SCRIPT, outputs=["kept"])
        assert (theirs.exit_code, theirs.cached, theirs.worker) == (0, False, node)
        assert contributor.run(SCRIPT, outputs=["kept"]).cached
        with pytest.raises(NoCapableWorker):
            contributor.run(SCRIPT, outputs=["kept"], tier="trusted")
        # Nor does it reach everybody by a run on that very node.
        with pytest.raises(NoCapableWorker):
            client.rerun(theirs.action, worker=node)
        assert f"{node} is trusted" in said(controller, "fleet", "tier", "trusted", node)
        node_of(client, "trusted")
        ours = client.run(SCRIPT, outputs=["kept"])
        assert (ours.cached, ours.worker) == (False, node)
        with pytest.raises(NoCapableWorker, match="is of the tier local or above"):
            client.run(SCRIPT, outputs=["kept"], tier="local")
        with pytest.raises(InvalidRequest, match="there are untrusted, trusted, local"):
            client.run(SCRIPT, platform={}, tier="most")
    tokens = json.loads(said(controller, "fleet", "tokens", "ls", "--json"))
    assert [token["tier"] for token in tokens if token["state"] == "used"] == ["untrusted"]
    assert "trusted" in said(controller, "fleet", "ls")
    (told,) = entries(Path(controller.ready["state"]), "node.tier_set")
    assert (told["was"], told["tier"]) == ("untrusted", "trusted")


async def test_what_runs_when_trust_is_lost_is_run_elsewhere(tmp_path: Path) -> None:
    fleet = FleetHouse(tmp_path)
    async with fleet.up() as client:
        lines = [(await client.fleet.new_token(fleet.listen, lifetime_s=60))[1] for _ in range(2)]
        # It does not stop when it is told to, and hands its result over as if nothing had happened.
        one, two = SessionWorker(fleet, "one", lines[0], stubborn=True), SessionWorker(fleet, "two", lines[1])
        async with working(one):
            with pytest.raises(NotFound, match="trust is given to keys"):
                await client.fleet.set_tier("0" * 32, "untrusted")
            asked = asyncio.ensure_future(client.run(["true"], skip_cache=True))
            await until(lambda: bool(one.runner.begun))
            async with working(two):
                assert (await client.fleet.set_tier("one", "untrusted")).tier == "untrusted"
                one.runner.finish(one.runner.begun[0], PASSED)
                await until(lambda: bool(two.runner.begun))
                two.runner.finish(two.runner.begun[0], PASSED)
                assert (await asked).exit_code == 0
    assert [body["worker"] for body in entries(fleet.state, "action.published")] == ["two"]
    assert [body["tier"] for body in entries(fleet.state, "node.tier_set")] == ["untrusted"]


def test_a_worker_of_the_controllers_own_is_local(house: House) -> None:
    controller = house.up("--slots", "1")
    with connect(controller.url) as client:
        node_of(client, "local")
        assert client.run(["true"], tier="local").exit_code == 0
        ran = buildnet(controller, "run", "--tier", "local", "--", "true")
        assert ran.exit_code == 0, ran.output


@namespaces
def test_a_tier_is_strict_where_the_controller_says_so(house: House) -> None:
    controller = house.up("--slots", "1", "--strict-tier", "untrusted")
    house.join(said(controller, "fleet", "tokens", "new", "--tier", "untrusted").strip(), "--slots", "1")
    with connect(controller.url) as client, apart(controller) as contributor:
        node = until_joined(client, "local", "untrusted")["untrusted"]
        ran = client.run(SCRIPT, outputs=["kept"])
        assert ran.effects is not None
        assert (ran.effects.effects["write"], ran.effects.undeclared_writes) == ("ambient", ("besides",))
        with pytest.raises(BuildNetError, match="besides") as refused:
            contributor.rerun(ran.action, worker=node)
        assert refused.value.code == "output_invalid"
