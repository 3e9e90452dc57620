"""A worker that joined has one session: its control stream and its blobs share it, and neither waits behind the other,
ends it, or comes back without it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from buildnet._native import Dialler, Link, NativeError
from buildnet.access.keys import node_keys
from buildnet.client import Client
from buildnet.model.digest import Digest
from buildnet.model.join_line import JoinLine
from buildnet.worker.uplink import Uplink
from tests.conftest import COMMAND, House
from tests.flow.fleets import PASSED, FleetHouse, until, until_state, working
from tests.flow.session_workers import SessionWorker, counted, until_counted
from tests.flow.test_sessions import entries, line_of

MIB = 1 << 20
BLOB = bytes(range(256)) * (64 * MIB // 256)
# What may pass before a message: 128 KiB that the session keeps, 128 KiB that the kernel has not sent, what the relay
# holds, and what passes while the message is on its way to the transport. The rest of the blob is many times that.
BEFORE_BYTES_MAX = 3 * MIB // 2
STEP_BYTES = 16 << 10


def test_a_worker_that_runs_actions_with_inputs_and_outputs_has_one_session(house: House, tmp_path: Path) -> None:
    controller = house.up("--no-worker")
    worker = house.join(controller.ready["join"], "--slots", "2", name="w")
    (tmp_path / "in").write_bytes(BLOB[: 3 * MIB])
    for number in range(3):
        words = ["--input", f"{tmp_path / 'in'}:in", "--output", "out", "--output-dir", str(tmp_path)]
        script = f"cat in in > out; echo {number}"
        command = [*COMMAND, "run", "--state", controller.ready["state"], *words, "--", "sh", "-c", script]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert (ran.returncode, ran.stdout) == (0, f"{number}\n"), ran.stderr
    assert (tmp_path / "out").read_bytes() == BLOB[: 3 * MIB] * 2
    counts = counted(controller.ready["listen"])
    assert (counts["opened"], counts["open"]) == (1, 1)
    assert worker.stop() == 0


class Valve:
    """Lets as many bytes pass as it is told to; none that are told to wait."""

    def __init__(self) -> None:
        self.passed_bytes = 0
        self._limit_bytes: int | None = None
        self._moved = asyncio.Condition()

    async def let(self, more_bytes: int | None) -> None:
        """From now on let so many bytes pass; None for all."""
        async with self._moved:
            self._limit_bytes = None if more_bytes is None else self.passed_bytes + more_bytes
            self._moved.notify_all()

    async def is_shut(self) -> None:
        """Wait until all has passed that may."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._room(1) == 0)

    async def step(self, arrived: Callable[[], bool]) -> int:
        """Let bytes pass little by little until something has arrived; how many it took."""
        before_bytes = self.passed_bytes
        while not arrived():
            await self.let(STEP_BYTES)
            await self.is_shut()
            await asyncio.sleep(0.01)
        return self.passed_bytes - before_bytes

    def _room(self, wanted: int) -> int:
        return wanted if self._limit_bytes is None else min(wanted, self._limit_bytes - self.passed_bytes)

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until either ends."""
        try:
            while data := await reader.read(STEP_BYTES):
                while data:
                    async with self._moved:
                        await self._moved.wait_for(lambda: self._room(1) > 0)
                        size = self._room(len(data))
                        self.passed_bytes += size
                        self._moved.notify_all()
                    writer.write(data[:size])
                    await writer.drain()
                    data = data[size:]
        except ConnectionError:
            pass
        writer.close()


class Relay:
    """Stands between a worker and its controller."""

    def __init__(self) -> None:
        self.up, self.down = Valve(), Valve()
        self.target = ""
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Break every connection."""
        while self._writers:
            self._writers.pop().transport.abort()

    async def serve(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        far = socket.socket()
        # Little waits here: what a message waits behind is the ends' to bound.
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        far.setblocking(False)
        await asyncio.get_running_loop().sock_connect(far, (host, port))
        far_reader, far_writer = await asyncio.open_connection(sock=far)
        self._writers += [writer, far_writer]
        await asyncio.gather(self.up.copy(reader, far_writer), self.down.copy(far_reader, writer))


@asynccontextmanager
async def relayed(listen: str) -> AsyncIterator[Relay]:
    """A relay to a controller."""
    relay = Relay()
    host, port = listen.split(":")
    near = socket.create_server(("127.0.0.1", 0))
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    relay.target = "{}:{}".format(*near.getsockname())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relay.serve(host, int(port), reader, writer)

    async with await asyncio.start_server(serve, sock=near):
        yield relay
        relay.cut()


@pytest.fixture
def fleet(tmp_path: Path) -> FleetHouse:
    return FleetHouse(tmp_path)


def through(line: JoinLine, relay: Relay) -> JoinLine:
    return replace(line, target=relay.target)


async def passed(worker: SessionWorker, client: Client) -> None:
    """Have it run one action."""
    begun = len(worker.runner.begun)
    asked = asyncio.ensure_future(client.run(["/bin/true"], skip_cache=True))
    await until(lambda: len(worker.runner.begun) > begun)
    worker.runner.finish(worker.runner.begun[begun], PASSED)
    assert (await asked).exit_code == 0


async def until_running(client: Client) -> None:
    """Until some node was given work."""
    while not any(node.running for node in await client.fleet.nodes()):
        await asyncio.sleep(0.01)


async def test_a_result_passes_a_blob_that_is_on_its_way_up(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100), relayed(fleet.listen) as relay:
        one = SessionWorker(fleet, "one", through(await line_of(fleet, client), relay))
        async with working(one):
            asked = asyncio.ensure_future(client.run(["/bin/true"], skip_cache=True))
            await until(lambda: bool(one.runner.begun))
            await relay.up.let(2 * MIB)
            uploading = asyncio.ensure_future(asyncio.to_thread(one.uplink.link.put_bytes, BLOB))
            await relay.up.is_shut()
            one.runner.finish(one.runner.begun[0], PASSED)
            assert await relay.up.step(asked.done) < BEFORE_BYTES_MAX
            assert (await asked).exit_code == 0
            assert not uploading.done()
            await relay.up.let(None)
            assert await client.read(Digest.parse(await uploading)) == BLOB
        assert (await asyncio.to_thread(counted, fleet.listen))["opened"] == 1


async def test_work_passes_a_blob_that_is_on_its_way_down(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100), relayed(fleet.listen) as relay:
        one = SessionWorker(fleet, "one", through(await line_of(fleet, client), relay))
        async with working(one):
            digest = await client.upload(BLOB)
            await relay.down.let(2 * MIB)
            downloading = asyncio.ensure_future(asyncio.to_thread(one.uplink.link.get_bytes, digest.text, len(BLOB)))
            await relay.down.is_shut()
            asked = asyncio.ensure_future(client.run(["/bin/true"], skip_cache=True))
            await until_running(client)
            assert await relay.down.step(lambda: bool(one.runner.begun)) < BEFORE_BYTES_MAX
            assert not downloading.done()
            await relay.down.let(None)
            assert await downloading == BLOB
            one.runner.finish(one.runner.begun[0], PASSED)
            assert (await asked).exit_code == 0
        assert (await asyncio.to_thread(counted, fleet.listen))["opened"] == 1


async def test_a_transfer_that_fails_ends_nothing_else(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100):
        one = SessionWorker(fleet, "one", await line_of(fleet, client))
        async with working(one):
            digest = await client.upload(BLOB)
            for _ in range(3):
                with pytest.raises(NativeError, match="space"):
                    await asyncio.to_thread(one.uplink.link.get_file, digest.text, "/dev/full", follow=True)
                with pytest.raises(NativeError):
                    await asyncio.to_thread(one.uplink.link.get_bytes, Digest.of(b"nowhere").text)
                await passed(one, client)
            counts = await asyncio.to_thread(counted, fleet.listen)
            assert (counts["opened"], counts["open"]) == (1, 1)


async def test_a_lost_session_ends_both_and_both_come_back_on_the_next(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(100), relayed(fleet.listen) as relay:
        one = SessionWorker(fleet, "one", through(await line_of(fleet, client), relay))
        async with working(one):
            await relay.up.let(2 * MIB)
            uploading = asyncio.ensure_future(asyncio.to_thread(one.uplink.link.put_bytes, BLOB))
            await relay.up.is_shut()
            await relay.up.let(None)
            relay.cut()
            with pytest.raises(NativeError):
                await uploading
            await until_counted(fleet.listen, "opened", 2)
            await until_state(client, "one", "active")
            await passed(one, client)
            uploaded = await asyncio.to_thread(one.uplink.link.put_bytes, BLOB)
            assert await client.read(Digest.parse(uploaded)) == BLOB
            counts = await asyncio.to_thread(counted, fleet.listen)
            assert (counts["opened"], counts["open"]) == (2, 1)
    closed = [entry["reason"] for entry in entries(fleet, "session.closed")]
    # Who is cut off has said nothing; who leaves says farewell.
    assert (len(closed), bool(closed[0]), closed[-1]) == (2, True, "")


async def test_changes_of_keys_are_in_the_ledger(fleet: FleetHouse) -> None:
    async with fleet.up() as client, asyncio.timeout(60):
        line = await line_of(fleet, client)
        one = SessionWorker(fleet, "one", line)
        own = node_keys(one.config.state)
        dialler = Dialler(
            line.target,
            organisation=line.organisation,
            node_key=line.key,
            node_seed=own.node_seed,
            session_secret=own.session_secret,
            term=line.term,
            token=line.token_bytes,
            rekey_frames=4,
        )
        link = Link.by_session(dialler)
        running = asyncio.ensure_future(one.run(Uplink(link.call, link)))
        await one.joined.wait()
        await until(lambda: bool(entries(fleet, "session.rekeyed")))
        await passed(one, client)
        one.stop_now.set()
        await running
        (node,) = await client.fleet.nodes(include_absent=True)
    (opened,) = entries(fleet, "session.opened")
    (rekeyed,) = entries(fleet, "session.rekeyed")
    # Later changes come with the next entry, ten seconds on.
    assert (rekeyed["session"], rekeyed["key"], rekeyed["rekeys"]) == (opened["session"], node.key, 1)
