"""While the outputs of one action are on their way, its slot runs the next."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from buildnet.client import Client
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from tests.conftest import House, Role
from tests.flow.test_door import Server

PATH = {"PATH": "/usr/bin:/bin"}
LARGE = 24 << 20


async def ran(role: Role, size_bytes: int, count: int) -> list[re.ExecutedActionMetadata]:
    """What so many actions of one slot tell of themselves, in the order in which they began."""

    async def run(client: Client, number: int) -> re.ExecutedActionMetadata:
        script = f": {number}; head -c {size_bytes} /dev/urandom > o"
        result = await client.run(["sh", "-c", script], env=PATH, outputs=["o"])
        assert result.outputs["o"].digest is not None
        assert result.outputs["o"].digest.size_bytes == size_bytes
        ask = re.GetActionResultRequest(action_digest=digest_message(result.action))
        told = server.unary("/build.bazel.remote.execution.v2.ActionCache/GetActionResult", ask, re.ActionResult)
        return told.execution_metadata

    server = Server(role.ready["listen"])
    async with Client(role.url) as client:
        times = await asyncio.gather(*(run(client, number) for number in range(count)))
    return sorted(times, key=lambda told: told.execution_start_timestamp.ToNanoseconds())


def begun_before(times: list[re.ExecutedActionMetadata], moment: str) -> int:
    """How many commands began before that moment of the one before."""
    return sum(
        after.execution_start_timestamp.ToNanoseconds() < getattr(before, moment).ToNanoseconds()
        for before, after in pairwise(times)
    )


@pytest.mark.timeout(120)
async def test_the_next_action_runs_while_the_outputs_of_the_last_are_sent(house: House) -> None:
    role = house.up("--slots", "1")
    large = await ran(role, LARGE, 6)
    assert begun_before(large, "output_upload_completed_timestamp") > 0
    assert begun_before(large, "execution_completed_timestamp") == 0, "one slot runs one command"
    small = await ran(role, 1000, 6)
    assert begun_before(small, "output_upload_completed_timestamp") == 0, "what is sent at once keeps its slot"
