"""Sessions over real sockets: who is let in, once, by what; who is not; who is put out, and who comes back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildnet._native import NativeError
from buildnet.client import Client
from buildnet.errors import BuildNetError, InvalidRequest
from buildnet.ledger import audit
from buildnet.model.digest import Digest
from buildnet.model.join_line import JoinLine
from buildnet.wire._gen.buildnet.v1 import fleet_pb2, ledger_pb2
from buildnet.wire.actions import digest_message
from buildnet.worker.uplink import met
from tests.flow.calls import answer_of
from tests.flow.fleets import PASSED, FleetHouse, FleetWorker, until, until_state, working
from tests.flow.session_workers import SessionWorker, counted, until_counted

OTHER_KEY = "ab" * 32
KEPT = fleet_pb2.KeepLogRequest(stream=fleet_pb2.LOG_STREAM_STDOUT, digest=digest_message(Digest.of(b"none")))
PERMISSION_DENIED = 7


@pytest.fixture
def fleet(tmp_path: Path) -> FleetHouse:
    return FleetHouse(tmp_path)


async def line_of(fleet: FleetHouse, client: Client, **more: Any) -> JoinLine:
    _, line = await client.fleet.new_token(fleet.listen, lifetime_s=60, **more)
    return line


def entries(fleet: FleetHouse, *kinds: str) -> list[dict[str, Any]]:
    """What the ledger says, from its files."""
    bodies = [json.loads(body) for _, body in audit.iterate(fleet.state)]
    return [body for body in bodies if body["kind"] in kinds]


async def refusal(worker: SessionWorker) -> str:
    """Why a worker that never joined gave up."""
    with pytest.raises(InvalidRequest) as error:
        async with asyncio.timeout(60):
            await worker.run()
    return error.value.message


async def test_a_node_joins_by_a_line_works_and_comes_back_without_it(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        line = await line_of(fleet, client, note="rack7")
        one = SessionWorker(fleet, "one", line)
        async with working(one):
            asked = asyncio.ensure_future(client.run(["/bin/true"], platform={"name": "one"}, skip_cache=True))
            await until(lambda: bool(one.runner.begun))
            one.runner.finish(one.runner.begun[0], PASSED)
            assert (await asked).exit_code == 0
            # Its blobs travel by sessions too.
            digest = await asyncio.to_thread(one.uplink.link.put_bytes, b"from one")
            assert await client.read(Digest.parse(digest)) == b"from one"
            (node,) = await client.fleet.nodes()
            assert len(node.key) == 64
            (token,) = await client.fleet.join_tokens()
            assert (token.state, token.used_by, token.note) == ("used", node.key, "rack7")
        remembered = met(fleet.directory / "one")
        assert remembered is not None
        assert remembered.line == line.without_token()
        again = SessionWorker(fleet, "one", remembered.line, boot="b2")
        async with working(again):
            await until_state(client, "one", "active")
        await until_counted(fleet.listen, "opened", 2)
        await until_closed(fleet)
    told = entries(fleet, "join_token.created", "join_token.used", "node.key_bound", "session.opened", "session.closed")
    assert [entry["kind"] for entry in told][:3] == ["join_token.created", "join_token.used", "session.opened"]
    assert [entry["key"] for entry in told if entry["kind"] == "node.key_bound"] == [node.key]
    opened = [entry for entry in told if entry["kind"] == "session.opened"]
    assert (opened[0]["pattern"], opened[-1]["pattern"]) == ("XX", "IK")
    assert {entry["session"] for entry in told if entry["kind"] == "session.closed"} == {
        entry["session"] for entry in opened
    }
    assert line.token.encode() not in b"".join(body for _, body in audit.iterate(fleet.state))


async def test_of_two_that_show_one_token_one_joins(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        line = await line_of(fleet, client)
        two = [SessionWorker(fleet, name, line) for name in ("one", "two")]

        async def attempt(worker: SessionWorker) -> str:
            try:
                await worker.run()
            except InvalidRequest as error:
                return error.message
            return ""

        running = [asyncio.ensure_future(attempt(worker)) for worker in two]
        async with asyncio.timeout(60):
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            assert "was used already" in ended.pop().result()
            winner = two[0] if running[1].done() else two[1]
            await winner.joined.wait()
            winner.stop_now.set()
            await asyncio.wait(running)
        assert await refusal(SessionWorker(fleet, "three", line)) != ""
    assert [entry["reason"] for entry in entries(fleet, "join_token.refused")] == ["used"]
    assert len(entries(fleet, "join_token.used")) == 1


async def test_what_is_wrong_with_a_line_is_told(fleet: FleetHouse) -> None:
    async with fleet.up() as client:
        line = await line_of(fleet, client)
        wrong_key = replace(line, key=OTHER_KEY)
        assert "answered, not abab" in await refusal(SessionWorker(fleet, "a", wrong_key))
        elsewhere = replace(line, organisation="other")
        assert "organisation" in await refusal(SessionWorker(fleet, "b", elsewhere))
        assert "has not joined" in await refusal(SessionWorker(fleet, "c", line.without_token()))
        token, revoked = await client.fleet.new_token(fleet.listen, lifetime_s=60)
        assert (await client.fleet.revoke_token(token.id)).state == "revoked"
        assert "was revoked" in await refusal(SessionWorker(fleet, "d", revoked))
        _, short = await client.fleet.new_token(fleet.listen, lifetime_s=1)
        await asyncio.sleep(1.1)
        assert "has expired" in await refusal(SessionWorker(fleet, "e", short))
        counts = await asyncio.to_thread(counted, fleet.listen)
        assert counts["turned_away"] >= 3
        assert counts["opened"] == 0
        # Whoever was named wrongly has shown nobody the token: it is still good.
        async with working(SessionWorker(fleet, "f", line)):
            pass
    assert {entry["reason"] for entry in entries(fleet, "join_token.refused")} == {"revoked", "expired"}


PREAMBLE = b"\xb5BNET\n\x01"


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        (b"\xb5garbage on the port", "refused_garbage"),
        (PREAMBLE + b"\x09" + bytes(8), "refused_garbage"),
        (PREAMBLE + b"\x01" + (99).to_bytes(8, "big"), "refused_term"),
        (PREAMBLE + b"\x01" + (1).to_bytes(8, "big") + b"\xff\xff", "refused_oversize"),
        (PREAMBLE + b"\x01" + (1).to_bytes(8, "big") + b"\x00\x60" + bytes(96), "refused_proof"),
        (PREAMBLE, "cut_short"),
    ],
)
async def test_what_strangers_send_is_refused_and_counted(fleet: FleetHouse, sent: bytes, count: str) -> None:
    async with fleet.up() as client, asyncio.timeout(60):
        host, port = fleet.listen.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        writer.write_eof()
        assert len(await reader.read()) < 64
        writer.close()
        await until_counted(fleet.listen, count, 1)
        assert await client.fleet.nodes() == []
    assert entries(fleet, "session.opened", "session.refused", "join_token.refused") == []


Change = Callable[[bytes], bytes]


@asynccontextmanager
async def recording(listen: str, changes: list[Change] | None = None) -> AsyncIterator[tuple[str, list[bytearray]]]:
    """A relay that keeps what diallers say: its address, and the bytes of each connection. What is in `changes` is done
    to one piece each of what they say, and then no more.
    """
    said: list[bytearray] = []
    host, port = listen.split(":")

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray, changes: list[Change]
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if changes:
                    data = changes.pop()(data)
                into += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        said.append(bytearray())
        await asyncio.gather(
            copy(reader, far_writer, said[-1], [] if changes is None else changes),
            copy(far_reader, writer, bytearray(), []),
        )

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        near_host, near_port = server.sockets[0].getsockname()
        yield f"{near_host}:{near_port}", said


async def test_a_recorded_session_said_again_opens_nothing(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(60):
        line = await line_of(fleet, client)
        async with working(SessionWorker(fleet, "one", line)):
            pass
        async with recording(fleet.listen) as (target, said):
            known = replace(line.without_token(), target=target)
            async with working(SessionWorker(fleet, "one", known, boot="b2")):
                pass
        opened = (await asyncio.to_thread(counted, fleet.listen))["opened"]
        # The first byte after the preamble's version says that it was IK, which is open to repetition.
        assert bytes(said[0][:8]) == PREAMBLE + b"\x01"
        host, port = fleet.listen.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(bytes(said[0]))
        with suppress(ConnectionError):
            # Ended, as a rule before all of it was read.
            await reader.read()
        writer.close()
        await until_counted(fleet.listen, "refused_proof", 1)
        assert (await asyncio.to_thread(counted, fleet.listen))["opened"] == opened


def repeated(piece: bytes) -> bytes:
    return piece + piece


def altered(piece: bytes) -> bytes:
    return piece[:-1] + bytes([piece[-1] ^ 1])


@pytest.mark.parametrize("change", [repeated, altered])
async def test_a_frame_that_is_not_the_next_ends_the_session_and_is_counted(fleet: FleetHouse, change: Change) -> None:
    changes: list[Change] = []
    async with fleet.up() as client, asyncio.timeout(60), recording(fleet.listen, changes) as (target, _):
        line = replace(await line_of(fleet, client), target=target)
        async with working(SessionWorker(fleet, "one", line)):
            await until_state(client, "one", "active")
            opened = (await asyncio.to_thread(counted, fleet.listen))["opened"]
            changes.append(change)
            await until_counted(fleet.listen, "broken", 1)
            # It dials again, and what it says is passed on as it is.
            await until_counted(fleet.listen, "opened", opened + 1)
            await until_state(client, "one", "active")
    reasons = [entry["reason"] for entry in entries(fleet, "session.closed")]
    assert any("frame" in reason for reason in reasons), reasons


async def test_a_removed_node_is_put_out_at_once_and_what_it_brings_late_is_refused(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100):
        one = SessionWorker(fleet, "one", await line_of(fleet, client), stubborn=True)
        two = SessionWorker(fleet, "two", await line_of(fleet, client))
        async with working(one):
            asked = asyncio.ensure_future(client.run(["/bin/true"], skip_cache=True))
            await until(lambda: bool(one.runner.begun))
            digest = await asyncio.to_thread(one.uplink.link.put_bytes, b"before")
            assert (await asyncio.to_thread(counted, fleet.listen))["open"] == 1
            began_s = time.monotonic()
            await client.fleet.remove("one")
            await until_closed(fleet)
            took_s = time.monotonic() - began_s
            # A second by design; the rest is for a machine that is busy.
            assert took_s < 5, took_s
            one.runner.finish(one.runner.begun[0], PASSED)
            with pytest.raises(NativeError):
                await asyncio.to_thread(one.uplink.link.get_bytes, digest)
            await until(lambda: one.uplink.failure() is not None)
            failure = one.uplink.failure()
            assert isinstance(failure, BuildNetError)
            assert (failure.code, "was removed" in failure.message) == ("forbidden", True)
            assert not asked.done()
            # Somebody else does it, and later the node may come back with the key that it has.
            async with working(two):
                await until(lambda: bool(two.runner.begun))
                two.runner.finish(two.runner.begun[0], PASSED)
                assert (await asked).exit_code == 0
            await client.fleet.allow("one")
            await until_state(client, "one", "active")
    assert [entry["node"] for entry in entries(fleet, "session.refused")] == ["one"]
    reasons = [entry["reason"] for entry in entries(fleet, "session.closed")]
    assert any("was removed" in reason for reason in reasons), reasons


async def until_closed(fleet: FleetHouse) -> None:
    while (await asyncio.to_thread(counted, fleet.listen))["open"] > 0:
        await asyncio.sleep(0.02)


async def test_a_controller_that_starts_again_is_found_by_its_key(fleet: FleetHouse) -> None:
    async with asyncio.timeout(100):
        async with fleet.up() as client:
            line = await line_of(fleet, client)
            one = SessionWorker(fleet, "one", line)
            task = asyncio.ensure_future(one.run())
            await one.joined.wait()
        async with fleet.up() as client:
            await until_state(client, "one", "active")
            known = met(fleet.directory / "one")
            assert known is not None
            one.stop_now.set()
            await task
            later = met(fleet.directory / "one")
            assert later is not None
            assert later.line.term == line.term + 1
    opened = entries(fleet, "session.opened")
    assert (opened[0]["pattern"], opened[-1]["pattern"]) == ("XX", "IK")


async def test_nobody_takes_the_id_of_a_node_with_a_key(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100):
        one = SessionWorker(fleet, "one", await line_of(fleet, client))
        thief = SessionWorker(fleet, "thief", await line_of(fleet, client), node="one", boot="b2")
        async with working(one):
            assert "has another key" in await refusal(thief)
            by_token = FleetWorker(fleet, "one", boot="b3")
            with pytest.raises(InvalidRequest, match="joined by a key"):
                await by_token.run()
            assert [node.node for node in await client.fleet.nodes()] == ["one"]


async def test_a_session_may_work_and_nothing_else(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(60):
        one = SessionWorker(fleet, "one", await line_of(fleet, client))
        async with working(one):
            for call, request, refused in (
                ("FleetService/ListNodes", fleet_pb2.ListNodesRequest(), False),
                ("FleetService/KeepLog", KEPT, False),
                ("FleetService/DrainNode", fleet_pb2.DrainNodeRequest(node_id="one"), True),
                ("FleetService/CreateJoinToken", fleet_pb2.CreateJoinTokenRequest(), True),
                ("LedgerService/Append", ledger_pb2.AppendRequest(), True),
            ):
                code, _, _ = await answer_of(one.uplink.call(f"/buildnet.v1.{call}"), request.SerializeToString())
                assert code == (PERMISSION_DENIED if refused else 0)
