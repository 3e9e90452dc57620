"""Wire one worker: its configuration, its signals' meaning, its ready line. No logic."""

from __future__ import annotations

import asyncio
import os
import random  # noqa: TID251 - the operating system's randomness, handed to the worker as an argument
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from buildnet import __version__
from buildnet.app.clock import SystemClock
from buildnet.app.config import WorkerRunConfig, search_path
from buildnet.model.join_line import JoinLine
from buildnet.worker.capacity import capacity_of
from buildnet.worker.config import WorkerConfig
from buildnet.worker.run import run_worker
from buildnet.worker.uplink import met


@dataclass(frozen=True, slots=True)
class Joined:
    """What is said once the worker has joined."""

    url: str
    state: str
    pid: int
    slots: int
    controller: str


def known_line(state: Path) -> JoinLine | None:
    """How the node with this state directory joins the controller that let it in before; None when none did.

    Raises:
        StateCorrupt: the file that says it is damaged.
    """
    known = met(state)
    return None if known is None else known.line


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
            toolchain=tuple(str(path) for path in config.toolchain),
            strict=config.strict,
            search_path=search_path(),
            secrets=config.secrets,
            credentials=config.credentials,
            line=config.line,
            capacity=capacity_of(config.state, cpu_milli=config.cpu_milli),
            limits=config.limits,
            cache_size_bytes=config.cache_size_bytes,
            cache_keep_s=config.cache_keep_s,
        ),
        clock=SystemClock(),
        rng=random.SystemRandom(),
        stop=stop,
        stop_now=stop_now,
        ready=ready,
    )
