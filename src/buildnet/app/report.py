"""What the door is told of the controller, for those who look from outside: numbers, and how it is to be watched."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from buildnet.app.config import ControllerConfig
from buildnet.edge.bridge import Bridge
from buildnet.ledger.log import LedgerLog

_EVERY_S: Final = 1.0


def observed(config: ControllerConfig, *, traces: bool) -> dict[str, Any]:
    """How the door is watched, as it wants to be told."""
    options: dict[str, Any] = {"durability": config.durability, "traces": traces}
    if config.access_log is not None:
        log = config.access_log
        options |= {"access_log": log.path, "slow_ms": log.slow_ms, "access_log_sample": log.sample}
    return options


async def report(bridge: Bridge, ledger: LedgerLog, more: Callable[[], dict[str, int]]) -> None:
    """Tell the door what only Python knows, each second and without an end."""
    while True:
        counts = bridge.statistics()
        bridge.report(
            {
                "ledger_entries": ledger.size,
                "bridge_tasks": counts["tasks"],
                "bridge_streams": counts["streams"],
                **more(),
            }
        )
        await asyncio.sleep(_EVERY_S)


@contextmanager
def hang_up_reopens(bridge: Bridge) -> Iterator[None]:
    """Let SIGHUP open the access log anew, as logrotate asks; it would end the process otherwise."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, bridge.reopen_log)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
