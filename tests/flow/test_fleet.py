"""The fleet over real sockets: watching, draining, cordoning, removing, restarts and copies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from buildnet.client import Client, Credentials
from buildnet.client.fleet import NodeInfo
from buildnet.errors import Forbidden, InvalidRequest, NotFound
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from tests.flow.fleets import PASSED, FleetHouse, FleetWorker, until, until_state, working

# The reason, or on a machine that is too busy to send it in half a second, the cut.
CLOSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.CANCELLED)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetHouse:
    return FleetHouse(tmp_path)


def wish(client: Client, name: str = "", **more: Any) -> asyncio.Task[Any]:
    """An action that only this worker may run."""
    platform = {"name": name} if name else None
    return asyncio.ensure_future(client.run(["/bin/true"], platform=platform, skip_cache=True, **more))


def kinds(fleet: FleetHouse) -> list[str]:
    return [entry["kind"] for entry in fleet.entries()]


async def test_a_watcher_is_told_what_is_and_then_what_changes(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        seen: asyncio.Queue[NodeInfo | None] = asyncio.Queue()

        async def watch() -> None:
            async for node in client.fleet.watch():
                seen.put_nowait(node)

        async def told(node: str, state: str) -> NodeInfo:
            while (info := await seen.get()) is None or (info.node, info.state) != (node, state):
                pass
            return info

        one, two = FleetWorker(fleet, "one"), FleetWorker(fleet, "two", skew_s=30)
        async with working(one):
            watching = asyncio.ensure_future(watch())
            first = await told("one", "active")
            assert (first.hostname, first.slots, first.version) == ("host-one", 2, "0.1.0")
            assert first.properties == {"name": ["one"], "os": ["linux"]}
            assert first.clock_skew_s is not None
            assert abs(first.clock_skew_s) < 10
            assert await seen.get() is None
            async with working(two):
                skewed = await told("two", "active")
                assert skewed.clock_skew_s is not None
                assert 20 < skewed.clock_skew_s < 40
                await client.fleet.cordon("two")
                assert (await told("two", "cordoned")).asked_by == "ann"
            await told("two", "left")
        await told("one", "left")
        watching.cancel()
        assert [node.node for node in await client.fleet.nodes()] == []
        assert [node.node for node in await client.fleet.nodes(include_absent=True)] == ["one", "two"]
    assert kinds(fleet).count("node.clock_skewed") == 1


async def test_beats_set_right_what_a_late_hello_looked_like(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        # As if Hello had waited for as long at a controller that stood still.
        one = FleetWorker(fleet, "one", skew_s=-5)
        async with working(one):
            late_s = (await client.fleet.find("one")).clock_skew_s
            assert late_s is not None
            assert late_s < -4
            one.clock.skew_s = 0
            # Who holds a lease beats every second.
            running = wish(client)
            while (skew_s := (await client.fleet.find("one")).clock_skew_s) is None or skew_s < -2:
                await asyncio.sleep(0.05)
            running.cancel()
    assert "node.clock_skewed" not in kinds(fleet)


async def test_a_drained_node_finishes_takes_no_more_and_its_worker_ends(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        one, two = FleetWorker(fleet, "one"), FleetWorker(fleet, "two")
        async with working(one):
            running = wish(client)
            await until(lambda: bool(one.runner.begun))
            async with working(two):
                node = await client.fleet.drain("one")
                assert (node.state, node.running, node.asked_by) == ("draining", 1, "ann")
                assert (await client.fleet.drain("one")).state == "draining"
                other = wish(client, timeout_s=30, do_not_cache=True)
                await until(lambda: bool(two.runner.begun))
                two.runner.finish(two.runner.begun[0], PASSED)
                assert (await other).exit_code == 0
                one.runner.finish(one.runner.begun[0], PASSED)
                assert (await running).exit_code == 0
                await one.task
                await until_state(client, "one", "left")
        with pytest.raises(NotFound, match="no session"):
            await client.fleet.drain("one")
        assert len(one.runner.begun) == 1
    of_one = [entry for entry in fleet.entries() if entry["node"] == "one"]
    assert [entry["kind"] for entry in of_one] == ["node.joined", "node.draining", "node.left", "node.drained"]
    assert [entry.get("by") for entry in of_one] == ["rack", "ann", None, "ann"]
    assert of_one[2]["drained"] == 1
    assert of_one[1]["peer"].startswith("127.0.0.1:")


async def test_a_removed_nodes_work_goes_elsewhere_and_nothing_of_it_is_heard_any_more(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        one, two = FleetWorker(fleet, "one", stubborn=True), FleetWorker(fleet, "two")
        async with working(one):
            running = wish(client)
            await until(lambda: bool(one.runner.begun))
            async with working(two):
                assert (await client.fleet.remove("one")).state == "removed"
                await until(lambda: bool(two.runner.begun))
                assert [node.node for node in await client.fleet.nodes()] == ["two"]
                # The worker itself is told to stop what nobody wants.
                fence = one.runner.begun[0]
                await until(lambda: one.runner.handles[fence].stop_reason is not None)
                assert "was removed" in str(one.runner.handles[fence].stop_reason)
                one.runner.finish(fence, PASSED)
                two.runner.finish(two.runner.begun[0], PASSED)
                assert (await running).exit_code == 0
            assert not one.task.done()
            with pytest.raises(InvalidRequest, match="buildnet fleet allow one"):
                await FleetWorker(fleet, "one", boot="b2").run()
            one.joined.clear()
            await client.fleet.allow("one")
            await one.joined.wait()
            await until_state(client, "one", "active")
    removed = [entry for entry in fleet.entries() if entry["kind"] == "node.removed"]
    assert [(entry["node"], entry["by"]) for entry in removed] == [("one", "ann")]
    assert kinds(fleet).count("node.refused") == 1
    assert kinds(fleet).count("node.allowed") == 1


async def test_a_late_result_of_a_removed_node_is_refused_by_its_session(fleet: FleetHouse) -> None:
    """A worker that ignores that it was removed, and sends a result for the fence that it had."""
    async with fleet.up() as client, raw_join(fleet, "one") as (call, read):
        running = wish(client)
        assigned = await read()
        fence = assigned.assign.fence
        await client.fleet.remove("one")
        done = fleet_pb2.JoinRequest()
        done.done.fence, done.done.result = fence, PASSED.result

        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The session may be over by now, which is as well.
            await call.write(done)
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        # A write that failed hides the server's own code behind one of the client's.
        assert await call.code() is not grpc.StatusCode.OK
        two = FleetWorker(fleet, "two")
        async with working(two):
            await until(lambda: bool(two.runner.begun))
            two.runner.finish(two.runner.begun[0], PASSED)
            assert (await running).exit_code == 0


async def test_a_session_whose_worker_takes_nothing_is_cut_off_when_it_is_removed(fleet: FleetHouse) -> None:
    async with fleet.up() as client, raw_join(fleet, "one") as (call, _):
        await client.fleet.remove("one")
        # Nothing is read: the end of the call comes all the same.
        assert await call.code() in CLOSED


async def test_cordon_and_removal_outlive_the_controller(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        one = FleetWorker(fleet, "one")
        task = asyncio.ensure_future(one.run())
        await one.joined.wait()
        assert (await client.fleet.cordon("one")).state == "cordoned"
        await client.fleet.remove("never-seen")
    one.joined.clear()
    async with fleet.up() as client:
        await one.joined.wait()
        await until_state(client, "one", "cordoned")
        assert await nodes_by_state(client) == {"one": "cordoned", "never-seen": "removed"}
        running = wish(client)
        with pytest.raises(InvalidRequest, match="was removed"):
            await FleetWorker(fleet, "never-seen").run()
        assert not one.runner.begun
        assert (await client.fleet.cordon("one", cordoned=False)).state == "active"
        await until(lambda: bool(one.runner.begun))
        one.runner.finish(one.runner.begun[0], PASSED)
        assert (await running).exit_code == 0
        one.stop.set()
        await task
    assert [kind for kind in kinds(fleet) if "cordon" in kind] == ["node.cordoned", "node.uncordoned"]


async def nodes_by_state(client: Client) -> dict[str, str]:
    return {node.node: node.state for node in await client.fleet.nodes(include_absent=True)}


async def test_copies_of_one_state_directory_do_not_take_turns(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        older, newer = FleetWorker(fleet, "one", boot="b1"), FleetWorker(fleet, "one", boot="b2")
        async with working(older):
            running = wish(client)
            await until(lambda: bool(older.runner.begun))
            async with working(newer):
                # What the older one ran is run anew; it is told so.
                await until(lambda: bool(newer.runner.begun))
                await until(lambda: bool(older.runner.stopped))
                newer.runner.finish(newer.runner.begun[0], PASSED)
                assert (await running).exit_code == 0
                with pytest.raises(InvalidRequest, match="delete the file `id`"):
                    await FleetWorker(fleet, "one", boot="b1").run()
                nodes = await client.fleet.nodes()
                assert [(node.node, node.boot) for node in nodes] == [("one", "b2")]
    of_one = kinds(fleet)
    assert of_one.count("node.restarted") == 1
    assert of_one.count("node.refused") == 1


async def test_a_restart_is_told_from_a_broken_connection(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        for boot in ("b1", "b1", "b2"):
            async with working(FleetWorker(fleet, "one", boot=boot)):
                await until_state(client, "one", "active")
            await until_state(client, "one", "left")
    restarts = [entry for entry in fleet.entries() if entry["kind"] == "node.restarted"]
    assert [(entry["boot"], entry["earlier_boot"]) for entry in restarts] == [("b2", "b1")]


async def test_only_an_administrator_changes_the_fleet_and_readers_see_it(fleet: FleetHouse) -> None:
    async with fleet.up() as admin, working(FleetWorker(fleet, "one")):
        reader = fleet.token("read", subject="bob")
        async with Client(fleet.url, credentials=Credentials(token=lambda: reader)) as client:
            assert [node.node for node in await client.fleet.nodes()] == ["one"]
            assert await anext(aiter(client.fleet.watch())) is not None
            calls = [client.fleet.drain, client.fleet.cordon, client.fleet.remove, client.fleet.allow]
            for call in calls:
                with pytest.raises(Forbidden, match="scope admin"):
                    await call("one")
        for bad in ("", "a b", "x\x1b[31m", "n" * 129):
            with pytest.raises(InvalidRequest, match="node_id"):
                await admin.fleet.remove(bad)
        with pytest.raises(NotFound, match="fleet ls --all"):
            await admin.fleet.cordon("nobody")


async def test_many_nodes_come_in_pages(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        for number in range(3):
            wide = [(f"p{i:03}", f"{number}" * 900) for i in range(900)]
            async with raw_join(fleet, f"n{number}", properties=wide):
                pass
        nodes = await client.fleet.nodes(include_absent=True)
        assert [node.node for node in nodes] == ["n0", "n1", "n2"]
        assert all(len(node.properties) == 900 for node in nodes)


class raw_join:  # noqa: N801 - used as a function
    """A session by hand: says Hello, has read Welcome; yields the call and a function that reads."""

    def __init__(self, fleet: FleetHouse, node: str, properties: list[tuple[str, str]] | None = None) -> None:
        self._fleet = fleet
        self._node = node
        self._properties = properties or []

    async def __aenter__(self) -> tuple[Any, Any]:
        self._channel = grpc.aio.insecure_channel(self._fleet.listen)
        stub: Any = self._channel.stream_stream(
            "/buildnet.v1.FleetService/Join",
            request_serializer=fleet_pb2.JoinRequest.SerializeToString,
            response_deserializer=fleet_pb2.JoinResponse.FromString,
        )
        token = self._fleet.token("worker", subject="rack")
        call = stub(metadata=(("authorization", f"Bearer {token}"),))
        hello = fleet_pb2.JoinRequest()
        hello.hello.node_id, hello.hello.boot_id = self._node, "b1"
        hello.hello.version, hello.hello.slots = "0.1.0", 1
        for name, value in self._properties:
            hello.hello.properties.add(name=name, value=value)
        await call.write(hello)

        async def read() -> fleet_pb2.JoinResponse:
            message = await call.read()
            if message is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details()
                )
            assert isinstance(message, fleet_pb2.JoinResponse)
            return message

        assert (await read()).HasField("welcome")
        return call, read

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    """Nothing here waits for ever."""
    async with asyncio.timeout(100):
        yield
