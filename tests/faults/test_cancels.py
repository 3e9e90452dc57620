"""Many clients that cancel at random, in the middle of anything: no process and no scratch directory stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from buildnet.client import Client
from buildnet.client.actions import ENDED
from buildnet.ledger import audit
from buildnet.model.action_spec import spec_of
from tests.conftest import House
from tests.processes import running_with

# `make crash` has 500.
CLIENTS = int(os.environ.get("BUILDNET_CANCEL_CLIENTS", "60"))
SLOTS = 12
# They come one after another, since all of them are this one process, and take back what they asked for in that time.
EVERY_S = 0.03
OVER_S = 4.0
# It hears no signal that can be ignored, has a daemon of its own session, and leaves files.
SCRIPT = """
trap '' TERM INT HUP
mkdir -p d/e; echo $CLIENT > d/e/f
setsid sh -c 'trap "" TERM; sleep {mark} & sleep {mark}' &
sleep {mark}
"""


def children(pid: int) -> set[str]:
    """Processes that a process started itself and has not reaped."""
    return {child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}


async def taken_back(url: str, number: int, mark: str, dice: random.Random) -> None:
    """One client that asks for one action, by either face, and takes it back while it waits, begins or runs."""
    environment = {"PATH": "/usr/bin:/bin", "CLIENT": str(number)}
    command = ["/bin/sh", "-c", SCRIPT.format(mark=mark)]
    await asyncio.sleep(number * EVERY_S)
    async with Client(url) as client:
        if dice.random() < 0.5:
            asked = asyncio.ensure_future(client.run(command, env=environment, outputs=["d"]))
            await asyncio.sleep(dice.uniform(0.0, OVER_S))
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked
            return
        spec = spec_of(command, variables=environment, outputs=["d"])
        await client.prepare(spec)
        info = await client.submissions.submit(spec)
        await asyncio.sleep(dice.uniform(0.0, OVER_S))
        await client.cancel(info.id)


async def until(condition: Callable[[], bool]) -> None:
    """Look until it holds; the test's timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.05)


async def until_all_ended(client: Client) -> None:
    """The same, of what was asked for: within a minute, and what is left is named."""
    deadline_s = time.monotonic() + 60
    while left := [info for info in await client.actions(limit=1000) if info.state not in ENDED]:
        assert time.monotonic() < deadline_s, f"{len(left)} were not cancelled, such as {left[0]}"
        await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
async def test_clients_that_cancel_leave_no_process_and_no_scratch(house: House, tmp_path: Path) -> None:
    server = house.up("--no-worker")
    worker = house.join(server.url, "--slots", str(SLOTS))
    scratch = tmp_path / "worker" / "scratch"
    mark = f"9{os.getpid()}.4321"
    dice = random.Random(12)
    async with Client(server.url) as client:
        before = children(worker.process.pid)
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(taken_back(server.url, number, mark, dice))
        await until_all_ended(client)
        operations = await client.actions(limit=1000)
        # Some have given up before they had asked, while their inputs went up.
        assert len(operations) > CLIENTS // 2
        assert {info.state for info in operations} == {"cancelled"}
        bodies = [json.loads(body) for _, body in audit.iterate(tmp_path / "controller")]
        assert sum(body["kind"] == "action.assigned" for body in bodies) >= SLOTS, "some ran"
        # A client is told before the worker has stopped what it ran, and that takes the worker a moment.
        await until(lambda: not list(scratch.iterdir()))
        await until(lambda: not list(running_with(mark)))
        await until(lambda: children(worker.process.pid) <= before)
        # All of its room is free again.
        results = await asyncio.gather(*(client.run(["/bin/echo", str(number)]) for number in range(2 * SLOTS)))
        assert {result.exit_code for result in results} == {0}
