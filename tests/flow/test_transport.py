"""Sessions where only HTTP/2 passes, through a proxy that ends TLS: what passes is unread and unaltered, and what is no
session is refused and counted as on the port itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from buildnet.client import Client, Credentials
from buildnet.errors import BuildNetError, NodeDown
from buildnet.ledger import audit
from buildnet.model.digest import Digest
from buildnet.model.join_line import JoinLine
from buildnet.wire._gen.buildnet.v1 import transport_pb2
from buildnet.worker.uplink import met
from tests.conftest import COMMAND, House
from tests.flow.authority import Authority
from tests.flow.calls import answer_of
from tests.flow.fleets import PASSED, FleetHouse, until, until_state, working
from tests.flow.proxies import Change, Proxy, passing
from tests.flow.session_workers import SessionWorker, counted, until_counted
from tests.flow.test_sessions import OTHER_KEY, PREAMBLE, altered, entries, line_of, refusal, repeated, until_closed

OPEN = "/buildnet.v1.TransportService/Open"
TERM = (1).to_bytes(8, "big")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetHouse:
    return FleetHouse(tmp_path)


@asynccontextmanager
async def before(fleet: FleetHouse) -> AsyncIterator[tuple[Proxy, Credentials]]:
    """A proxy that ends TLS before a fleet, and what it is verified by."""
    authority = Authority(fleet.directory / "authority")
    async with passing(fleet.listen, authority.issue("proxy", loopback=True)) as proxy:
        yield proxy, Credentials(ca_pem=authority.file.read_bytes())


async def carried_line(fleet: FleetHouse, client: Client, proxy: Proxy) -> JoinLine:
    return replace(await line_of(fleet, client), target=proxy.listen, carrier="https")


async def test_a_worker_joins_through_a_proxy_that_sees_nothing_and_comes_back(fleet: FleetHouse) -> None:
    async with fleet.up() as client, before(fleet) as (proxy, credentials), asyncio.timeout(60):
        line = await carried_line(fleet, client, proxy)
        one = SessionWorker(fleet, "one", line, credentials=credentials)
        async with working(one):
            asked = asyncio.ensure_future(client.run(["/bin/true"], platform={"name": "one"}, skip_cache=True))
            await until(lambda: bool(one.runner.begun))
            one.runner.finish(one.runner.begun[0], PASSED)
            assert (await asked).exit_code == 0
            secret = b"what no proxy may read" * 100_000
            digest = await asyncio.to_thread(one.uplink.link.put_bytes, secret)
            assert await client.read(Digest.parse(digest)) == secret
            assert await asyncio.to_thread(one.uplink.link.get_bytes, digest) == secret
            (node,) = await client.fleet.nodes()
            assert len(node.key) == 64
        assert set(proxy.methods) == {OPEN}
        # All of it, and nothing of what is within.
        assert len(proxy.seen) > 2 * len(secret)
        assert PREAMBLE in proxy.seen
        for plain in (secret[:22], b"FleetService", base64.b32decode(line.token), bytes.fromhex(node.key), b"host-one"):
            assert plain not in proxy.seen
        known = met(fleet.directory / "one")
        assert known is not None
        assert known.line == line.without_token()
        again = SessionWorker(fleet, "one", known.line, boot="b2", credentials=credentials)
        async with working(again):
            assert await asyncio.to_thread(again.uplink.link.get_bytes, digest) == secret
            await client.fleet.remove("one")
            await until_closed(fleet)
    opened = [entry["pattern"] for entry in entries(fleet, "session.opened")]
    assert (opened[0], opened[-1]) == ("XX", "IK")
    reasons = [entry["reason"] for entry in entries(fleet, "session.closed")]
    assert any("was removed" in reason for reason in reasons), reasons
    assert line.token.encode() not in b"".join(body for _, body in audit.iterate(fleet.state))


async def test_a_controller_that_starts_again_is_found_through_the_proxy(fleet: FleetHouse) -> None:
    async with asyncio.timeout(100), AsyncExitStack() as stack:
        async with fleet.up() as client:
            proxy = await stack.enter_async_context(passing(fleet.listen))
            line = replace(await line_of(fleet, client), target=proxy.listen, carrier="http")
            one = SessionWorker(fleet, "one", line)
            task = asyncio.ensure_future(one.run())
            await one.joined.wait()
        async with fleet.up() as client:
            await until_state(client, "one", "active")
            one.stop_now.set()
            await task
    later = met(fleet.directory / "one")
    assert later is not None
    assert later.line == replace(line.without_token(), term=line.term + 1)


async def test_what_is_wrong_is_told(fleet: FleetHouse) -> None:
    async with fleet.up() as client, before(fleet) as (proxy, credentials), asyncio.timeout(60):
        line = await carried_line(fleet, client, proxy)
        wrong_key = SessionWorker(fleet, "a", replace(line, key=OTHER_KEY), credentials=credentials)
        assert "answered, not abab" in await refusal(wrong_key)
        elsewhere = SessionWorker(fleet, "b", replace(line, organisation="other"), credentials=credentials)
        assert "organisation" in await refusal(elsewhere)
        stranger = SessionWorker(fleet, "c", line.without_token(), credentials=credentials)
        assert "has not joined" in await refusal(stranger)
        assert (await asyncio.to_thread(counted, fleet.listen))["opened"] == 0
        # A proxy that is not who the address says gets no byte of a session.
        seen = len(proxy.seen)
        other = Authority(fleet.directory / "other").file.read_bytes()
        for ca_pem in (other, None):
            doubtful = SessionWorker(fleet, "d", line, credentials=Credentials(ca_pem=ca_pem))
            task = asyncio.ensure_future(doubtful.run())
            failure = await failure_of(doubtful)
            assert isinstance(failure, NodeDown)
            assert "certificate" in failure.message
            doubtful.stop_now.set()
            await task
        assert len(proxy.seen) == seen
        async with working(SessionWorker(fleet, "e", line, credentials=credentials)):
            pass


async def failure_of(worker: SessionWorker) -> BuildNetError:
    """Why a worker has no session."""
    while not hasattr(worker, "uplink") or (failure := worker.uplink.failure()) is None:
        await asyncio.sleep(0.01)
    return failure


async def test_a_session_carries_no_other(fleet: FleetHouse) -> None:
    async with fleet.up() as client, before(fleet) as (proxy, credentials), asyncio.timeout(60):
        for number, line in enumerate([await line_of(fleet, client), await carried_line(fleet, client, proxy)]):
            one = SessionWorker(fleet, f"w{number}", line, credentials=credentials)
            async with working(one):
                code, text, _ = await answer_of(one.uplink.call(OPEN), frame_of(PREAMBLE))
                assert (code, "carries no other" in text) == (grpc.StatusCode.FAILED_PRECONDITION.value[0], True), text


@pytest.mark.parametrize("change", [repeated, altered])
async def test_a_proxy_that_alters_what_passes_ends_the_session_and_is_counted(
    fleet: FleetHouse, change: Change
) -> None:
    async with fleet.up() as client, before(fleet) as (proxy, credentials), asyncio.timeout(60):
        line = await carried_line(fleet, client, proxy)
        async with working(SessionWorker(fleet, "one", line, credentials=credentials)):
            await until_state(client, "one", "active")
            opened = (await asyncio.to_thread(counted, fleet.listen))["opened"]
            proxy.changes.append(changed_frame(change))
            await until_counted(fleet.listen, "broken", 1)
            await until_counted(fleet.listen, "opened", opened + 1)
            await until_state(client, "one", "active")


def frame_of(data: bytes) -> bytes:
    return transport_pb2.OpenRequest(frame=data).SerializeToString()


def changed_frame(change: Change) -> Change:
    return lambda message: frame_of(change(transport_pb2.OpenRequest.FromString(message).frame))


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        ([frame_of(b"\xb5garbage on the port")], "refused_garbage"),
        ([frame_of(b"GET / HTTP/1.1\r\n\r\n")], "refused_garbage"),
        ([b"\xff\xff\xff"], "refused_garbage"),
        ([b""], "refused_garbage"),
        ([frame_of(bytes(65_538))], "refused_oversize"),
        ([frame_of(PREAMBLE[:3]), frame_of(PREAMBLE[3:] + b"\x01" + TERM + b"\xff\xff")], "refused_oversize"),
        ([frame_of(PREAMBLE + b"\x01" + (99).to_bytes(8, "big"))], "refused_term"),
        ([frame_of(PREAMBLE + b"\x01" + TERM + b"\x00\x60" + bytes(96))], "refused_proof"),
        ([frame_of(PREAMBLE)], "cut_short"),
        ([], "cut_short"),
    ],
)
async def test_what_strangers_send_is_refused_and_counted(fleet: FleetHouse, sent: list[bytes], count: str) -> None:
    async with fleet.up() as client, grpc.aio.insecure_channel(fleet.listen) as channel, asyncio.timeout(60):
        # A token that is none takes nothing away: the handshake is what counts.
        call = channel.stream_stream(OPEN)(iter(sent), metadata=(("authorization", "Bearer x"),))
        heard = [transport_pb2.OpenResponse.FromString(message).frame async for message in told(call)]
        assert len(b"".join(heard)) < 64
        assert await call.code() is grpc.StatusCode.ABORTED
        await until_counted(fleet.listen, count, 1)
        assert await client.fleet.nodes() == []
    assert entries(fleet, "session.opened", "session.refused", "join_token.refused") == []


async def told(call: grpc.aio.StreamStreamCall) -> AsyncIterator[bytes]:
    """What a call brings before it fails."""
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError:
        return


async def test_a_call_that_is_left_half_open_is_ended(fleet: FleetHouse) -> None:
    async with fleet.up(), grpc.aio.insecure_channel(fleet.listen) as channel, asyncio.timeout(60):
        silent = channel.stream_stream(OPEN)()
        await silent.write(frame_of(PREAMBLE))
        # Who gives a call up is not waited for.
        given_up = channel.stream_stream(OPEN)()
        await given_up.write(frame_of(PREAMBLE))
        given_up.cancel()
        await until_counted(fleet.listen, "cut_short", 1)
        assert [message async for message in told(silent)] == []
        assert await silent.code() is grpc.StatusCode.ABORTED
        assert (await asyncio.to_thread(counted, fleet.listen))["refused_slow"] == 1


async def test_a_server_that_carries_no_sessions_is_no_controller(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(60):
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        line = replace(await line_of(fleet, client), target=f"127.0.0.1:{port}", carrier="http")
        assert "is it a BuildNET controller?" in await refusal(SessionWorker(fleet, "one", line))
        await server.stop(0)


async def test_the_commands_join_a_worker_through_a_proxy(house: House, tmp_path: Path) -> None:
    controller = await asyncio.to_thread(house.up, "--no-worker")
    state = controller.ready["state"]
    authority = Authority(tmp_path / "authority")

    async def buildnet(*arguments: str) -> str:
        words = [*COMMAND, *arguments]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    files, own = authority.issue("proxy", loopback=True), authority.issue("node")
    async with passing(controller.ready["listen"], files, clients=authority.file) as proxy:
        address = f"https://{proxy.listen}"
        line = await buildnet("fleet", "tokens", "new", "--address", address, "--state", state)
        assert line.startswith(f"bnet+https://{proxy.listen}/local?key=")
        shown = ("--ca-file", authority.file, "--cert-file", own.certificate, "--key-file", own.key)
        credentials = [str(word) for word in shown]
        worker = await asyncio.to_thread(house.join, line.strip(), "--slots", "1", *credentials, name="w")
        words = ("run", "--state", state, "--", "sh", "-c", "echo from behind")
        assert await buildnet(*words) == "from behind\n"
        assert await asyncio.to_thread(worker.stop) == 0
        # It is known by its key now, and knows its way.
        arguments = ("join", "--state", str(tmp_path / "w"), "--slots", "1", *credentials)
        again = await asyncio.to_thread(lambda: house._start(*arguments, worker_state=tmp_path / "w"))
        assert again.ready["url"] == line.partition("?")[0]
        assert await asyncio.to_thread(again.stop) == 0
        (node,) = json.loads(await buildnet("fleet", "ls", "--all", "--json", "--state", state))
        assert bytes.fromhex(node["key"]) not in proxy.seen
