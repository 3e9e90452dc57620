"""Who watches goes on watching when the controller is killed, or stopped, and started again: nobody asks anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

from buildnet.client import Client
from buildnet.errors import NodeDown
from tests.conftest import House

PATIENT_S = 60
T = TypeVar("T")


async def until(events: AsyncIterator[T], wanted: Callable[[T], Any]) -> T:
    async for event in events:
        if wanted(event):
            return event
    raise AssertionError("a watch ended")


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_watches_go_on_under_the_next_controller(house: House, how: str) -> None:
    first = house.up("--no-worker")
    house.join(first.url, "--slots", "1")
    broken = {"nodes": list[NodeDown](), "actions": list[NodeDown](), "resources": list[NodeDown]()}
    async with asyncio.timeout(PATIENT_S), Client(first.url) as client:
        nodes = client.fleet.watch(on_break=broken["nodes"].append)
        actions = client.submissions.watch(on_break=broken["actions"].append)
        resources = client.watch_resources(on_break=broken["resources"].append)
        one = await until(nodes, lambda node: node is not None and node.state == "active")
        assert one is not None
        await until(actions, lambda action: action is None)
        of_one = await until(resources, lambda news: news.node == one.node and news.present)
        first.kill() if how == "killed" else first.stop()
        house.up("--no-worker", listen=first.ready["listen"])
        again = await until(nodes, lambda node: node is not None and node.state == "active" and broken["nodes"])
        assert again is not None
        assert again.node == one.node
        back = await until(resources, lambda news: news.node == one.node and news.present and broken["resources"])
        assert back.catalog != of_one.catalog, "it is told by the next controller"
        result = await client.run(["/bin/true"])
        ended = await until(actions, lambda action: action is not None and action.state == "completed")
        assert ended is not None
        assert (ended.id, len(broken["actions"])) == (result.operation.rsplit("/", 1)[-1], 1)
