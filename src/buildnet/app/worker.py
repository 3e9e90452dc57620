"""Wire one worker: its configuration, its signals' meaning, its ready line. No logic."""

from __future__ import annotations

import asyncio
import os
import random  # noqa: TID251 - the operating system's randomness, handed to the worker as an argument
import socket
from collections.abc import Callable
from dataclasses import dataclass

from buildnet import __version__
from buildnet.app.clock import SystemClock
from buildnet.app.config import WorkerRunConfig, search_path
from buildnet.worker.config import WorkerConfig
from buildnet.worker.run import run_worker


@dataclass(frozen=True, slots=True)
class Joined:
    """What is said once the worker has joined."""

    url: str
    state: str
    pid: int
    slots: int
    controller: str


async def run(
    config: WorkerRunConfig, announce: Callable[[Joined], None], stop: asyncio.Event, stop_now: asyncio.Event
) -> None:
    """Work until `stop` (drain) or `stop_now` is set.

    Raises:
        BuildNetError: the state directory cannot be used, or the controller refused this worker.
    """
    told = False

    def ready(controller: str) -> None:
        nonlocal told
        if not told:
            told = True
            announce(Joined(config.url, str(config.state), os.getpid(), config.slots, controller))

    await run_worker(
        WorkerConfig(
            url=config.url,
            state=config.state,
            slots=config.slots,
            version=__version__,
            hostname=socket.gethostname(),
            hidden=config.hidden,
            search_path=search_path(),
            credentials=config.credentials,
            cache_size_bytes=config.cache_size_bytes,
        ),
        clock=SystemClock(),
        rng=random.SystemRandom(),
        stop=stop,
        stop_now=stop_now,
        ready=ready,
    )
