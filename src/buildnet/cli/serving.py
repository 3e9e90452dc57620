"""What `up` and `join` share: an event loop, signals, one ready line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable


def serve(role: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]) -> None:
    """Run a role until SIGTERM or Ctrl-C; the first asks it to finish, the second to leave at once."""
    from buildnet.app.config import log_level

    logging.basicConfig(level=log_level(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(role))


def on_stdin_closed(events: Iterable[asyncio.Event]) -> None:
    """Set the events when standard input ends; what it says before is nothing to us."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            for event in events:
                event.set()

    loop.add_reader(0, readable)


async def _serve(role: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]) -> None:
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await role(stop, stop_now)
