"""What nodes offer, from a file on a search path to watcher, constraint and ledger; and what is not believed."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from buildnet import __version__
from buildnet._native import SigningKey
from buildnet.client import Client
from buildnet.client.resources import ResourceNews
from buildnet.errors import InvalidRequest, NoCapableWorker
from buildnet.model.resource import Announcement, Resource
from buildnet.testing.nodes import AnnouncingNode
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from tests.conftest import COMMAND, House, Role


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def program(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(f"#!/bin/sh\n{text}\n")
    fresh.chmod(0o755)
    fresh.replace(path)


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first directory of the workers' search path."""
    place = tmp_path / "bin"
    place.mkdir()
    program(place / "zig", "echo 0.13.0")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


async def printed(follower: Process, *words: str) -> None:
    """Read what a command prints until one line holds all of these."""
    assert follower.stdout is not None
    while line := await follower.stdout.readline():
        if all(word in line.decode() for word in words):
            return
    raise AssertionError(f"it ended, and printed no line with {words}")


async def test_the_commands_that_follow_tell_of_a_build_while_it_runs(house: House, bin_directory: Path) -> None:
    server = house.up("--slots", "1")
    commands = ("ledger", "tail", "-f", "--json"), ("resources", "watch", "--kind", "tool")
    pipe = asyncio.subprocess.PIPE
    # An action has a /tmp of its own.
    with TemporaryDirectory(dir=Path.home()) as place:
        async with Client(server.url) as client, asyncio.timeout(90):
            gate = Path(place, "gate")
            ledger, tools = [
                await asyncio.create_subprocess_exec(*COMMAND, *command, "--url", server.url, stdout=pipe)
                for command in commands
            ]
            try:
                await printed(tools, "+", "tool:zig", "0.13.0")
                waiting = f"until test -e {gate}; do sleep 0.02; done; echo built"
                building = asyncio.ensure_future(client.run(["/bin/sh", "-c", waiting], effects={"read": "ambient"}))
                # What is told before the gate is opened is told while the action runs.
                await printed(ledger, "action.assigned")
                program(bin_directory / "newcomer", "exit 0")
                await printed(tools, "+", "tool:newcomer")
                assert not building.done()
                gate.touch()
                assert (await building).stdout() == b"built\n"
                await printed(ledger, "action.published")
            finally:
                for follower in (ledger, tools):
                    with suppress(ProcessLookupError):
                        follower.send_signal(signal.SIGINT)
                    await follower.wait()
            assert {ledger.returncode, tools.returncode} == {130}


async def until(news: AsyncIterator[ResourceNews], name: str) -> None:
    """Read news until one tells of a resource of this name, come or gone."""
    async for part in news:
        if any(resource.name == name for resource in part.present) or any(key[1] == name for key in part.gone):
            return


async def test_a_tool_reaches_watchers_constraints_and_the_ledger(house: House, bin_directory: Path) -> None:
    server = house.up("--slots", "1")
    async with Client(server.url) as client, asyncio.timeout(90):
        # Asked before the worker has announced: it waits, and is not refused.
        result = await client.run(["true"], require=["zig>=0.13", "cpu.arch"], do_not_cache=True)
        assert result.exit_code == 0
        found = {resource.key: resource async for _, resource in client.resources()}
        assert found["tool", "zig"].version == found["toolchain", "zig"].version == "0.13.0"
        assert {"cpu", "memory", "disk", "sandbox", "tool"} <= {kind for kind, _ in found}

        with pytest.raises(NoCapableWorker, match="tool newcomer"):
            await client.run(["true"], require=["tool:newcomer"], do_not_cache=True)
        with pytest.raises(InvalidRequest, match="nothing follows"):
            await client.run(["true"], require=["zig>="])

        watching = client.watch_resources()
        await until(watching, "zig")
        program(bin_directory / "newcomer", "exit 0")
        await until(watching, "newcomer")
        assert (await client.run(["true"], require=["tool:newcomer"], do_not_cache=True)).exit_code == 0
        (bin_directory / "newcomer").unlink()
        await until(watching, "newcomer")
        (verdict,) = await client.explain_resources(["tool:newcomer", "zig"])
        assert (verdict.meets, verdict.reasons) == (False, ("tool:newcomer: no tool newcomer",))
        kinds = [json.loads(body)["kind"] async for _, body in client.ledger_tail()]
        assert kinds.count("resource.announced") == 2
        assert kinds.count("resource.withdrawn") == 1


def test_the_command_line_tells_what_is_there_and_why_not(house: House, bin_directory: Path) -> None:
    server = house.up("--slots", "1")
    state = ("--state", server.ready["state"])
    assert command("run", *state, "--require", "zig>=0.13", "--", "true").returncode == 0
    listed = command("resources", "ls", *state, "--kind", "toolchain", "--json")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {"zig": "0.13.0"}.items() <= {row["name"]: row["version"] for row in rows}.items()
    node = rows[0]["node"]
    assert "zig" in command("resources", "ls", *state, "--node", node[:8], "--kind", "tool").stdout
    refused = command("resources", "ls", *state, "--kind", "car")
    assert refused.returncode == 125
    assert "kinds are" in refused.stderr
    assert "no nodes that announced" in command("resources", "ls", *state, "--node", "0" * 8).stderr
    explained = command("resources", "explain", *state, "zig>=1", "gpu.memory_bytes>=1TiB").stdout
    assert explained.splitlines()[0] == f"{node[:12]}  does not"
    assert "zig>=1: tool zig is of version 0.13.0, not >=1; toolchain zig is of version 0.13.0, not >=1" in explained
    assert json.loads(command("resources", "explain", *state, "zig", "--json").stdout)[0]["meets"] is True
    assert command("resources", "explain", *state, "car:zig").returncode == 125


class FakeWorker:
    """One session of a worker, spoken by the test."""

    def __init__(self, call: grpc.aio.StreamStreamCall, node: AnnouncingNode) -> None:  # type: ignore[type-arg]
        self._call = call
        self.node = node

    async def say(self, said: Announcement, node: AnnouncingNode | None = None) -> str:
        """Announce; return the error's code, or nothing when it was believed."""
        message = fleet_pb2.JoinRequest(announcement=(node or self.node).signed(said))
        await self._call.write(message)
        answer = await self.read()
        assert answer.WhichOneof("message") == "announced"
        return answer.announced.error_code

    async def read(self) -> fleet_pb2.JoinResponse:
        answer = await self._call.read()
        assert isinstance(answer, fleet_pb2.JoinResponse)
        return answer


@asynccontextmanager
async def joined(server: Role, node: AnnouncingNode) -> AsyncIterator[FakeWorker]:
    async with grpc.aio.insecure_channel(server.ready["listen"]) as channel:
        stub = channel.stream_stream(
            "/buildnet.v1.FleetService/Join",
            fleet_pb2.JoinRequest.SerializeToString,
            fleet_pb2.JoinResponse.FromString,
        )
        call = stub()
        hello = fleet_pb2.Hello(node_id=node.node, boot_id=node.boot, version=__version__, slots=1)
        await call.write(fleet_pb2.JoinRequest(hello=hello))
        welcome = await call.read()
        node.controller = welcome.welcome.controller_id
        yield FakeWorker(call, node)
        call.cancel()


def now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


GCC = Resource("tool", "gcc", "12.2.0")


async def test_what_is_forged_replayed_or_expired_is_refused_over_the_wire(house: House) -> None:
    server = house.up("--no-worker")
    node = AnnouncingNode()
    async with Client(server.url) as client, asyncio.timeout(60):
        async with joined(server, node) as worker:
            said = node.say(now_unix_ms(), [GCC])
            assert await worker.say(said) == ""
            assert await worker.say(said) == "replayed"
            thief = replace(node, key=SigningKey(secrets.token_bytes(32)))
            assert await worker.say(node.say(now_unix_ms()), thief) == "bad_signature"
            assert await worker.say(node.say(now_unix_ms() - 300_000)) == "expired"
            assert [r async for _, r in client.resources()] == [GCC]
        async with joined(server, node.reborn("d" * 32)) as worker:
            other = replace(worker.node, controller="0" * 32)
            for _ in range(3):
                assert await worker.say(other.say(now_unix_ms())) == "bad_signature"
            with pytest.raises(grpc.aio.AioRpcError, match="another controller"):
                await worker.say(other.say(now_unix_ms()))
        kinds = [json.loads(body)["kind"] async for _, body in client.ledger_tail()]
        assert kinds.count("resource.refused") >= 6
        assert [r async for _, r in client.resources()] == []


async def test_an_action_waits_for_a_worker_that_has_not_announced_yet(house: House) -> None:
    server = house.up("--no-worker")
    node = AnnouncingNode()
    async with Client(server.url) as client, asyncio.timeout(60), joined(server, node) as worker:
        running = asyncio.ensure_future(client.run(["true"], require=["gcc>=12"], do_not_cache=True))
        while not await client.actions():
            await asyncio.sleep(0.02)
        assert await worker.say(node.say(now_unix_ms(), [Resource("tool", "make", "4.3")])) == ""
        with pytest.raises(NoCapableWorker, match="no gcc"):
            await running
        running = asyncio.ensure_future(client.run(["true"], require=["make"], do_not_cache=True))
        assert (await worker.read()).WhichOneof("message") == "assign"
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_watcher_goes_on_where_it_stood(house: House) -> None:
    server = house.up("--no-worker")
    node = AnnouncingNode()
    async with Client(server.url) as client, asyncio.timeout(60), joined(server, node) as worker:
        assert await worker.say(node.say(now_unix_ms(), [GCC])) == ""
        first = client.watch_resources()
        parts = [await anext(first) for _ in range(3)]
        assert parts[0].snapshot
        assert parts[1].present == (GCC,)
        end = parts[2]
        assert end.revision > 0
        assert await worker.say(node.say(now_unix_ms(), [], [GCC.key], base=1)) == ""
        later = client.watch_resources(after=(end.catalog, end.revision))
        change = await anext(later)
        assert (change.snapshot, change.gone, change.replaced) == (False, (GCC.key,), False)
        other = client.watch_resources(after=("another", end.revision))
        assert (await anext(other)).snapshot
        for watching in (first, later, other):
            await watching.aclose()  # type: ignore[attr-defined]


async def test_many_resources_come_in_pages_and_pieces(house: House) -> None:
    server = house.up("--no-worker")
    node = AnnouncingNode()
    many = [Resource("tool", f"t{number:05}", "1.0", (("path", f"/usr/bin/{number}"),)) for number in range(12_000)]
    async with Client(server.url) as client, asyncio.timeout(90), joined(server, node) as worker:
        assert await worker.say(node.say(now_unix_ms(), many)) == ""
        assert [resource async for _, resource in client.resources()] == many
        watching = client.watch_resources()
        seen: list[Resource] = []
        async for part in watching:
            seen.extend(part.present)
            if part.revision:
                break
        assert seen == many
