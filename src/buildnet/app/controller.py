"""Wire one controller: open what it stands on, lowest first, serve, and close in reverse. No logic."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass

from buildnet import __version__
from buildnet._native import Store
from buildnet.app import state
from buildnet.app.clock import SystemClock, random_id
from buildnet.app.config import ControllerConfig
from buildnet.app.local_worker import supervise
from buildnet.app.stores import NativeStores
from buildnet.edge.action import ActionService, Descriptions
from buildnet.edge.bridge import Bridge
from buildnet.edge.execution import ExecutionService
from buildnet.edge.fleet import FleetService
from buildnet.edge.ledger import LedgerService
from buildnet.edge.logs import LogBook
from buildnet.edge.reflection import ReflectionService
from buildnet.edge.status import to_status
from buildnet.edge.unbuilt import unbuilt_methods
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry, Value
from buildnet.scheduler.publish import OrderedPublisher
from buildnet.scheduler.service import Scheduler
from buildnet.wire.native import translated


@dataclass(frozen=True, slots=True)
class Ready:
    """What is said once the first call would be answered."""

    url: str
    listen: str
    state: str
    pid: int
    slots: int


async def run_controller(
    config: ControllerConfig, announce: Callable[[Ready], None], stop: asyncio.Event
) -> None:
    """Serve until `stop` is set.

    Raises:
        BuildNetError: the state directory or the address cannot be used.
    """
    async with build_controller(config) as (bridge, scheduler):
        url_address = await bridge.serve(config.listen)
        ready = Ready(
            url=f"grpc://{url_address}",
            listen=url_address,
            state=str(config.state),
            pid=os.getpid(),
            slots=config.slots if config.worker else 0,
        )
        with state.announced(config.state, asdict(ready)):
            announce(ready)
            await stop.wait()
