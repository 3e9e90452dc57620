"""What `up` and `join` share: an event loop, signals, one ready line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable

_STDIN_BYTES = 16 << 10


def serve(role: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]) -> None:
    """Run a role until SIGTERM or Ctrl-C; the first asks it to finish, the second to leave at once."""
    from buildnet.app.config import log_level

    logging.basicConfig(level=log_level(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(role))


class StdinTokens:
    """Tokens that whoever started this process writes to its standard input, one a line; the newest is valid."""

    def __init__(self) -> None:
        self._token = ""
        self._rest = b""

    def __call__(self) -> str:
        """The newest; empty when none came yet."""
        return self._token

    def wait(self) -> None:
        """Block until the first token is there, or standard input has ended."""
        while not self._token and (data := os.read(0, _STDIN_BYTES)):
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        *lines, self._rest = (self._rest + data[-_STDIN_BYTES:]).split(b"\n")
        for line in lines:
            self._token = line.decode(errors="replace").strip()


def on_stdin_closed(events: Iterable[asyncio.Event], tokens: StdinTokens | None = None) -> None:
    """Set the events when standard input ends; what it says before is tokens, or nothing to us."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        data = os.read(0, _STDIN_BYTES)
        if tokens is not None:
            tokens.feed(data)
        if not data:
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
