"""A controller, workers that dial it and an administrator, in one process: real sockets, scripted attempts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from buildnet.access import keys, tokens
from buildnet.app.admission import AccessConfig
from buildnet.app.clock import SystemClock
from buildnet.app.config import ControllerConfig
from buildnet.app.controller import build_controller
from buildnet.client import Client, Credentials
from buildnet.ledger import audit
from buildnet.model.action import Outcome
from buildnet.testing.attempts import ScriptedRunner
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.session import Session
from buildnet.worker.uplink import Uplink

PASSED = Outcome("ok", re.ActionResult(stdout_raw=b"done").SerializeToString())


class SkewedClock(SystemClock):
    """A clock that is off by `skew_s`."""

    def __init__(self, skew_s: float) -> None:
        self.skew_s = skew_s

    def now_unix_ms(self) -> int:
        return super().now_unix_ms() + round(self.skew_s * 1000)


class FleetHouse:
    """One state directory; its controller may be stopped and started again on the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "controller"
        self.listen = "127.0.0.1:0"

    @property
    def url(self) -> str:
        return f"grpc://{self.listen}"

    def token(self, *scopes: str, subject: str) -> str:
        now = int(time.time())
        said = tokens.Token(f"{subject}-{now}", scopes, now + 600, subject, issued_unix_s=now)
        return tokens.sign(keys.load_or_create(self.state), said)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Client]:
        """Serve; yields the administrator's client."""
        config = ControllerConfig(self.state, self.listen, worker=False, access=AccessConfig(anonymous="none"))
        async with build_controller(config, clock=SystemClock()) as built:
            bridge = built.bridge
            self.listen = await bridge.serve(self.listen)
            try:
                admin = self.token("admin", subject="ann")
                async with Client(self.url, credentials=Credentials(token=lambda: admin)) as client:
                    yield client
            finally:
                await bridge.stop(0.2)

    def entries(self) -> list[dict[str, Any]]:
        """What the ledger says of nodes, from its files."""
        bodies = [json.loads(body) for _, body in audit.iterate(self.state)]
        return [body for body in bodies if body["kind"].startswith("node.")]


class FleetWorker:
    """One worker's session over a real socket; its attempts end when a test says so."""

    def __init__(
        self, house: FleetHouse, name: str, *, boot: str = "b1", stubborn: bool = False, skew_s: float = 0.0
    ) -> None:
        shown = house.token("worker", subject="rack")
        self.config = WorkerConfig(
            house.url,
            house.directory / name,
            slots=2,
            version="0.1.0",
            hostname=f"host-{name}",
            backoff_first_s=0.01,
            backoff_max_s=0.05,
            settle_timeout_s=0.2,
            stop_timeout_s=0.3,
            credentials=Credentials(token=lambda: shown),
        )
        self.name = name
        self.identity = Identity(name, boot)
        self.runner = ScriptedRunner(stubborn=stubborn)
        self.stop = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.joined = asyncio.Event()
        self.clock = SkewedClock(skew_s)
        self.task: asyncio.Task[None]

    async def run(self, uplink: Uplink | None = None) -> None:
        session = Session(
            self.config,
            self.identity,
            frozenset({("os", "linux"), ("name", self.name)}),
            self.runner,
            clock=self.clock,
            rng=random.Random(1),
            ready=lambda _: self.joined.set(),
            uplink=uplink,
        )
        await session.run(self.stop, self.stop_now)


@asynccontextmanager
async def working(*workers: FleetWorker) -> AsyncIterator[None]:
    """Let them join, and end what still runs."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for worker in workers:
            worker.task = tasks.create_task(worker.run())
        for worker in workers:
            await worker.joined.wait()
        yield
        for worker in workers:
            worker.stop_now.set()


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until something that other tasks bring about holds; the test's timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.01)


async def state_of(client: Client, node: str) -> str:
    """Where a node stands, "" when it is not known."""
    return next((n.state for n in await client.fleet.nodes(include_absent=True) if n.node == node), "")


async def until_state(client: Client, node: str, state: str) -> None:
    """Until the controller says so."""
    while await state_of(client, node) != state:
        await asyncio.sleep(0.01)
