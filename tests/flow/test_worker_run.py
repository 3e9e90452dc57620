"""A whole worker, put together as in service, against a controller that only speaks of leases."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from buildnet.errors import StateCorrupt, StateLocked
from buildnet.testing.controller import FakeController
from buildnet.worker.config import WorkerConfig
from buildnet.worker.run import run_worker


class Clock:
    """The machine's own time; its threads ask too."""

    def now_unix_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


async def serve(config: WorkerConfig, stop: asyncio.Event, joined: list[str], seed: int = 1) -> None:
    await run_worker(config, clock=Clock(), rng=random.Random(seed), stop=stop, ready=joined.append)


async def test_a_worker_joins_answers_and_leaves(controller: FakeController, tmp_path: Path) -> None:
    config = WorkerConfig(controller.url, tmp_path / "worker", version="0.1.0")
    leftover = config.state / "scratch" / "0000000000000001"
    leftover.mkdir(parents=True)
    stop, joined = asyncio.Event(), list[str]()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(config, stop, joined))
        session = await controller.session()
        assert not leftover.exists()
        offered = {(p.name, p.value) for p in session.hello.properties}
        assert ("OSFamily", "linux") in offered
        session.assign(5, b"an action whose blobs nobody serves")
        done = (await session.receive()).done
        assert joined == ["controller-1"]
        assert done.fence == 5
        assert done.error_code
        assert done.status.message
        session.settle(5)
        stop.set()
        assert (await session.receive()).WhichOneof("message") == "draining"
    assert (config.state / "id").read_text().strip() == session.hello.node_id


async def test_a_worker_comes_back_as_the_same_node(controller: FakeController, tmp_path: Path) -> None:
    config = WorkerConfig(controller.url, tmp_path / "worker")
    hellos = []
    for seed in (1, 2):
        stop = asyncio.Event()
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(config, stop, [], seed))
            hellos.append((await controller.session()).hello)
            stop.set()
    first, second = hellos
    assert first.node_id == second.node_id
    assert first.boot_id != second.boot_id


async def test_two_workers_cannot_share_a_state_directory(controller: FakeController, tmp_path: Path) -> None:
    config = WorkerConfig(controller.url, tmp_path / "worker")
    stop = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(config, stop, []))
        await controller.session()
        with pytest.raises(StateLocked):
            await serve(config, asyncio.Event(), [])
        stop.set()


async def test_a_damaged_identity_is_told_before_anything_is_dialled(tmp_path: Path) -> None:
    config = WorkerConfig("grpc://127.0.0.1:1", tmp_path)
    (tmp_path / "id").write_text("not an id")
    with pytest.raises(StateCorrupt):
        await serve(config, asyncio.Event(), [])
