"""Workers that join by sessions of their own keys, over real sockets, and what the controller counts of them."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from dataclasses import replace

from buildnet.model.credentials import NONE, Credentials
from buildnet.model.join_line import JoinLine
from buildnet.worker.uplink import Uplink, uplink_of
from tests.flow.fleets import FleetHouse, FleetWorker


class SessionWorker(FleetWorker):
    """One worker with a state directory of its own; its keys and what it met are there."""

    def __init__(
        self,
        house: FleetHouse,
        name: str,
        line: JoinLine,
        *,
        boot: str = "b1",
        node: str = "",
        stubborn: bool = False,
        credentials: Credentials = NONE,
    ) -> None:
        super().__init__(house, node or name, boot=boot, stubborn=stubborn)
        state = house.directory / name
        state.mkdir(exist_ok=True)
        self.config = replace(self.config, url=line.url, line=line, credentials=credentials, state=state)
        self.uplink: Uplink

    async def run(self, uplink: Uplink | None = None) -> None:
        self.uplink = uplink or uplink_of(self.config)
        try:
            await super().run(self.uplink)
        finally:
            await asyncio.to_thread(self.uplink.close)


def counted(listen: str) -> dict[str, int]:
    """What the door counts of sessions."""
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        name: int(value)
        for name, value in re.findall(r'buildnet_statistics\{source="sessions",name="(\w+)"\} (\d+)', text)
    }


async def until_counted(listen: str, name: str, count: int) -> None:
    """Until so many were counted; the test's timeout bounds it."""
    while (await asyncio.to_thread(counted, listen))[name] < count:
        await asyncio.sleep(0.02)
