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
from typing import Any

import grpc
import pytest

from buildnet.client import Client
from buildnet.client.actions import ENDED
from buildnet.ledger import audit
from buildnet.model.action_spec import spec_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire.actions import digest_message
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


EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"
WAIT = "/build.bazel.remote.execution.v2.Execution/WaitExecution"


Asked = grpc.aio.UnaryStreamCall[Any, operations_pb2.Operation]


class Tool:
    """A build tool that asks by REAPI, and ends its call without a word when it is interrupted."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"))

    def call(self, path: str, request: re.ExecuteRequest | re.WaitExecutionRequest) -> Asked:
        call: grpc.aio.UnaryStreamMultiCallable[Any, operations_pb2.Operation] = self.channel.unary_stream(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=operations_pb2.Operation.FromString,
        )
        return call(request, timeout=60)

    async def execute(self, client: Client, *command: str) -> tuple[Asked, str]:
        """Its call, and the id of its operation."""
        digest = await client.prepare(spec_of(command))
        call = self.call(EXECUTE, re.ExecuteRequest(action_digest=digest_message(digest)))
        return call, id_of(await told(call))


async def told(call: Asked) -> operations_pb2.Operation:
    operation = await call.read()
    assert isinstance(operation, operations_pb2.Operation), "the call ended"
    return operation


def id_of(operation: operations_pb2.Operation) -> str:
    return str(operation.name).removeprefix("operations/")


async def test_what_runs_for_a_client_that_is_gone_ends_when_it_does_not_come_back(
    house: House, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('[scheduler]\nabsent_after = "2s"\n')
    server = house.up("--config", str(settings), "--slots", "4")
    mark, shared = f"8{os.getpid()}.4321", f"7{os.getpid()}.4321"
    tool = Tool(server.url)
    async with Client(server.url) as client, tool.channel:
        gone, gone_id = await tool.execute(client, "/bin/sleep", mark)
        back, back_id = await tool.execute(client, "/bin/sleep", "6")
        left, left_id = await tool.execute(client, "/bin/sleep", shared)
        # The same action, for another that stays.
        stays, stays_id = await tool.execute(client, "/bin/sleep", shared)
        # Nobody waits for what was submitted, from the beginning.
        submitted = await client.submissions.submit(spec_of(["/bin/sleep", "5.5"]))
        await until(lambda: bool(list(running_with(mark))) and bool(list(running_with(shared))))
        again = tool.call(WAIT, re.WaitExecutionRequest(name=f"operations/{back_id}"))
        assert id_of(await told(again)) == back_id
        for call in (gone, back, left):
            call.cancel()
        await until(lambda: not list(running_with(mark)))
        states = {info.id: info.state for info in await client.actions(limit=10)}
        assert (states[gone_id], states[back_id], states[stays_id]) == ("cancelled", "executing", "executing")
        while not (await told(again)).done:
            pass
        assert list(running_with(shared)), "one of its two clients is there"
        states = {info.id: info.state for info in await client.actions(limit=10)}
        assert (states[left_id], states[stays_id]) == ("cancelled", "executing")
        assert states[back_id] == "completed"
        assert (await client.submissions.result(submitted.id)).exit_code == 0
        stays.cancel()
        await until(lambda: not list(running_with(shared)))
