"""While a worker's only slot is taken, the inputs of what comes next reach its own store."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from buildnet._native import NativeError, Store
from buildnet.client import Client
from buildnet.model.digest import Digest
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.worker.ahead import Ahead
from tests.conftest import House

ENV = {"PATH": "/usr/bin:/bin"}
ABSENT = Digest.of(b"absent")


def holds(directory: Path, data: bytes) -> bool:
    for path in directory.rglob("*"):
        # The store renames and removes files of its own meanwhile.
        with suppress(FileNotFoundError):
            if path.is_file() and data in path.read_bytes():
                return True
    return False


def waiting(gate: Path, then: str) -> list[str]:
    return ["/bin/sh", "-c", f"while ! test -e {gate}; do sleep 0.02; done; {then}"]


async def fetched_ahead(client: Client, cas: Path, directory: Path) -> bool:
    """Whether the inputs of an action were in the worker's store while it was still queued behind another."""
    data, gate, source = os.urandom(100_000), directory / "gate", directory / "input"
    source.write_bytes(data)
    ambient = {"read": "ambient"}
    first = asyncio.ensure_future(client.run(waiting(gate, f": {data[:8].hex()}"), env=ENV, effects=ambient))
    while not any(info.state == "executing" for info in await client.actions()):
        await asyncio.sleep(0.02)
    second = asyncio.ensure_future(
        client.run(waiting(gate, "cat input"), env=ENV, inputs={"input": source}, effects=ambient)
    )
    while not await asyncio.to_thread(holds, cas, data[:1000]):
        await asyncio.sleep(0.05)
    # The newest first: the second was queued after the first.
    newest = (await client.actions())[0].state
    assert not first.done()
    gate.touch()
    await first
    assert (await second).stdout() == data
    return newest == "queued"


async def test_what_comes_next_is_fetched_while_another_runs(house: House) -> None:
    server = house.up("--no-worker")
    house.join(server.url, "--slots", "1", name="worker")
    async with Client(server.url) as client, asyncio.timeout(300):
        for _ in range(3):
            # Where the worker stands still for longer than a lease, the first is queued again, behind the second.
            with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
                if await fetched_ahead(client, house.directory / "worker" / "cas", Path(directory)):
                    return
    raise AssertionError("the inputs were there only once the action had begun")


class Slow:
    """Fetches when it is let on, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.begun, self.on = threading.Semaphore(0), threading.Semaphore(0)
        self.asked: list[str] = []

    def fetch(self, blobs: Sequence[str], tree: str | None = None) -> None:
        self.asked += [*blobs, *([tree] if tree else [])]
        self.begun.release()
        self.on.acquire(timeout=20)
        if ABSENT.text in blobs:
            raise NativeError("blobs_missing", "it is not there", {})


def test_of_what_is_asked_for_meanwhile_the_newest_is_fetched(tmp_path: Path) -> None:
    store, slow = Store(str(tmp_path)), Slow()
    root, command = Digest.of(b"tree"), Digest.of(b"command")
    actions = [
        re.Action(
            command_digest=digest_message(command), input_root_digest=digest_message(root), salt=bytes([n])
        ).SerializeToString()
        for n in range(3)
    ]
    first, second, third = (Digest.parse(store.put_bytes(action)) for action in actions)
    ahead = Ahead(store, slow)
    ahead.fetch(first)
    assert slow.begun.acquire(timeout=20)
    ahead.fetch(second)
    ahead.fetch(third)
    for _ in range(3):
        slow.on.release()
        assert slow.begun.acquire(timeout=20)
    slow.on.release()
    ahead.close()
    assert slow.asked == [digest.text for digest in (first, command, root, third, command, root)]


def test_what_cannot_be_fetched_is_left_and_the_next_is_fetched(tmp_path: Path) -> None:
    store, slow = Store(str(tmp_path)), Slow()
    nonsense = Digest.parse(store.put_bytes(b"\xff\xff"))
    ahead = Ahead(store, slow)
    for digest in (nonsense, ABSENT, nonsense):
        ahead.fetch(digest)
        assert slow.begun.acquire(timeout=20)
        slow.on.release()
    ahead.close()
    assert slow.asked == [nonsense.text, ABSENT.text, nonsense.text]
