"""Who follows the ledger hears every entry once, over restarts; a ledger that lost some is not followed."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from buildnet.client import Client
from buildnet.errors import LedgerCorrupt, NodeDown
from tests.conftest import House

PATIENT_S = 60


async def test_a_tail_goes_on_over_kill_and_stop(house: House) -> None:
    server = house.up("--no-worker")
    listen, broken = server.ready["listen"], list[NodeDown]()
    indices, starts = list[int](), 0
    async with asyncio.timeout(PATIENT_S), Client(server.url) as client:
        async for index, body in client.ledger_tail(follow=True, on_break=broken.append):
            indices.append(index)
            starts += json.loads(body)["kind"] == "controller.started"
            if starts == 1 and index == 1:
                server.kill()
                server = house.up("--no-worker", listen=listen)
            elif starts == 2 and len(broken) == 1:
                # In order this time: the stream may end without an error.
                assert server.stop() == 0
                server = house.up("--no-worker", listen=listen)
            elif starts == 3:
                break
    assert indices == list(range(len(indices)))
    assert len(broken) == 2


async def test_a_ledger_that_went_back_is_not_followed(house: House) -> None:
    state, older = house.directory / "controller", house.directory / "older"
    first = house.up("--no-worker")
    assert first.stop() == 0
    shutil.copytree(state, older)
    listen = first.ready["listen"]
    second = house.up("--no-worker", listen=listen)

    async def follow(client: Client) -> None:
        async for _, body in client.ledger_tail(follow=True):
            if "told, and gone" in body.decode():
                second.kill()
                shutil.rmtree(state)
                shutil.copytree(older, state)
                house.up("--no-worker", listen=listen)

    async with asyncio.timeout(PATIENT_S), Client(second.url) as client:
        await client.fleet.new_token(listen, lifetime_s=60, note="told, and gone with the state")
        with pytest.raises(LedgerCorrupt, match="is not in the ledger any more"):
            await follow(client)
