"""A controller that is killed, or stopped, in the middle of a build of real processes: what was accepted goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from buildnet.client import Client
from buildnet.client.connection import AWAY_S
from buildnet.ledger import audit
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.rpc import error_details_pb2, status_pb2
from buildnet.wire.actions import digest_message
from tests.conftest import House

# The gate is in the home directory, which actions see when they say so.
MACHINE = {"read": "ambient"}
GATE = "while ! test -e {gate}; do sleep 0.05; done; echo through"
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def entries(state: Path) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in audit.iterate(state)]


def kinds(state: Path) -> Counter[str]:
    return Counter(entry["kind"] for entry in entries(state))


async def executing(stages: asyncio.Queue[str]) -> None:
    while await stages.get() != "executing":
        pass


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file to be made, where commands see it: their /tmp is their own."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        yield Path(directory) / "open"


@pytest.mark.timeout(240)
async def test_a_killed_controllers_running_action_is_adopted_and_its_client_hears_the_result(
    house: House, gate: Path
) -> None:
    first = house.up("--no-worker")
    house.join(first.url, "--slots", "2")
    stages: asyncio.Queue[str] = asyncio.Queue()
    async with Client(first.url) as client:
        script = GATE.format(gate=gate)
        running = asyncio.ensure_future(
            client.run(
                ["/bin/sh", "-c", script],
                env=ENVIRONMENT,
                effects=MACHINE,
                do_not_cache=True,
                on_stage=stages.put_nowait,
            )
        )
        async with asyncio.timeout(AWAY_S):
            await executing(stages)
            first.kill()
            second = house.up("--no-worker", listen=first.ready["listen"])
            # Told again by the next controller, which has it from its worker.
            await executing(stages)
            gate.touch()
            result = await running
        assert (result.exit_code, result.stdout()) == (0, b"through\n")
        assert second.stop() == 0
        third = house.up("--no-worker", listen=first.ready["listen"])
        # An operation that ended under another controller is still known, with its result.
        ended = await client.action(result.operation.rsplit("/", 1)[-1])
        assert (ended.state, ended.exit_code, ended.arguments[0]) == ("completed", 0, "/bin/sh")
        assert third.stop() == 0
    seen = kinds(house.directory / "controller")
    assert (seen["action.assigned"], seen["action.adopted"], seen["action.published"]) == (1, 1, 1), seen
    assert audit.verify(house.directory / "controller").size == sum(seen.values())


@pytest.mark.timeout(240)
@pytest.mark.timeout(240)
async def test_a_follower_goes_on_with_the_next_controller_and_hears_why_it_waits(house: House, gate: Path) -> None:
    first = house.up("--no-worker")
    house.join(first.url)
    stages: asyncio.Queue[str] = asyncio.Queue()
    said: list[str] = []
    async with Client(first.url) as client, asyncio.timeout(2 * AWAY_S):
        script = f"echo before; {GATE.format(gate=gate)}"
        running = asyncio.ensure_future(
            client.run(
                ["/bin/sh", "-c", script],
                env=ENVIRONMENT,
                effects=MACHINE,
                do_not_cache=True,
                on_stage=stages.put_nowait,
            )
        )
        await executing(stages)
        (operation,) = [info.id for info in await client.actions()]
        follower = client.logs(operation, follow=True, on_break=lambda failure: said.append(failure.message))
        assert (await anext(follower)).data == b"before\n"
        first.kill()
        house.up("--no-worker", listen=first.ready["listen"])
        gate.touch()
        assert b"".join([piece.data async for piece in follower]) == b"through\n"
        assert (await running).exit_code == 0
    assert said


async def test_what_was_queued_without_a_worker_runs_under_the_next_controller(house: House) -> None:
    first = house.up("--no-worker")
    stages: asyncio.Queue[str] = asyncio.Queue()
    async with Client(first.url) as client, asyncio.timeout(AWAY_S):
        wishes = [
            asyncio.ensure_future(client.run(["/bin/echo", str(number)], on_stage=stages.put_nowait))
            for number in range(20)
        ]
        for _ in wishes:
            assert await stages.get() == "queued"
        first.kill()
        second = house.up("--no-worker", listen=first.ready["listen"])
        house.join(second.url)
        results = await asyncio.gather(*wishes)
        assert [result.stdout() for result in results] == [f"{number}\n".encode() for number in range(20)]
    seen = kinds(house.directory / "controller")
    assert (seen["action.submitted"], seen["action.published"]) == (20, 20)


@pytest.mark.timeout(240)
async def test_an_orderly_stop_refuses_what_is_new_and_lets_what_runs_end(house: House, gate: Path) -> None:
    first = house.up("--no-worker")
    house.join(first.url, "--slots", "2")
    stages: asyncio.Queue[str] = asyncio.Queue()
    async with Client(first.url, away_s=0.0) as client, asyncio.timeout(60):
        script = GATE.format(gate=gate)
        running = asyncio.ensure_future(
            client.run(["/bin/sh", "-c", script], env=ENVIRONMENT, effects=MACHINE, on_stage=stages.put_nowait)
        )
        await executing(stages)
        other = await client.run(["/bin/true"])
        first.process.send_signal(signal.SIGTERM)
        error = await refused(first.url, other.action)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert retry_of(error) > 0
        gate.touch()
        assert (await running).exit_code == 0
    assert first.stop() == 0


async def refused(url: str, action: Any) -> grpc.aio.AioRpcError:
    """Execute until it is refused: the signal is on its way."""
    request = re.ExecuteRequest(action_digest=digest_message(action), skip_cache_lookup=True)
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        execute = channel.unary_stream(
            "/build.bazel.remote.execution.v2.Execution/Execute",
            request_serializer=re.ExecuteRequest.SerializeToString,
            response_deserializer=operations_pb2.Operation.FromString,
        )
        while True:
            try:
                async for _ in execute(request):
                    pass
            except grpc.aio.AioRpcError as error:
                return error


def retry_of(error: grpc.aio.AioRpcError) -> float:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(bytes(trailing["grpc-status-details-bin"]))
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details), status
    return float(retry.retry_delay.ToNanoseconds()) / 1e9
