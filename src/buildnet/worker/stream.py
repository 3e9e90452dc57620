"""One native call on this loop: in a turn all that waits is sent and all that came is handed on, and no task wakes for
a message. It knows what none of them says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from buildnet._native import Call

# Asked for ahead of what the transport has taken. A log is read from its file only then, so that a result passes it.
AHEAD_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A message whose last `size_bytes` are in `file` from `offset` on, and are read when it is sent. `cut` is called
    where the file has fewer; nothing is sent then.
    """

    head: bytes
    file: int
    offset: int
    size_bytes: int
    cut: Callable[[], None]


class Source(Protocol):
    """What is to be sent, in order."""

    news: Callable[[], None]

    def next(self) -> bytes | Excerpt | None:
        """The next message; None while there is none."""
        ...

    @property
    def closed(self) -> bool:
        """Once `next` gives None, it will for ever."""
        ...


class Stream:
    """A call from its dial to its end; use as a context manager, which ends it.

    Args:
        call: not turned yet.
        source: asked for messages as the transport takes them.
        heard: called with what came, in the loop; what it raises ends the stream.
    """

    def __init__(self, call: Call, source: Source, heard: Callable[[Sequence[bytes]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._source = source
        self._heard = heard
        self._waiting_bytes = 0
        self._asked = False
        self._finished = False
        self.over: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        """A gRPC status code and its text."""

    def __enter__(self) -> Stream:
        self._loop.add_reader(self._call.fd, self._turn)
        self._source.news = self._look
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        self._source.news = lambda: None
        self._loop.remove_reader(self._call.fd)
        if not self.over.cancel() and not self.over.cancelled():
            # Whoever left early does not ask for it.
            self.over.exception()
        self._call.close()

    def _look(self) -> None:
        """Turn at the end of this turn of the loop: what is put until then goes together."""
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._asked = False
        if self.over.done():
            return
        try:
            more = self._send()
            messages, self._waiting_bytes, end = self._call.turn()
            if messages:
                self._heard(messages)
        except Exception as error:  # noqa: BLE001 - whoever waits for the end raises it
            self.over.set_exception(error)
            return
        if end is not None:
            self._loop.remove_reader(self._call.fd)
            self.over.set_result(end)
        elif more and self._waiting_bytes < AHEAD_BYTES:
            self._look()

    def _send(self) -> bool:
        """Hand on what there is room for; whether there may be more."""
        while self._waiting_bytes < AHEAD_BYTES:
            message = self._source.next()
            if message is None:
                if self._source.closed and not self._finished:
                    self._finished = True
                    self._call.finish()
                return False
            self._waiting_bytes += self._sent(message)
        return True

    def _sent(self, message: bytes | Excerpt) -> int:
        """Hand a message on; returns how many bytes it has."""
        if isinstance(message, bytes):
            self._call.send(message)
            return len(message)
        if self._call.send_from(message.head, message.file, message.offset, message.size_bytes) < message.size_bytes:
            message.cut()
            return 0
        return len(message.head) + message.size_bytes
