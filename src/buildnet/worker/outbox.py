"""What waits to be sent in one session, in order. Logs come when nothing else does, and are read
from their files only then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker.stream import Excerpt


def _no_log() -> Excerpt | None:
    return None


class Outbox:
    """A queue of messages, and behind it whatever `next_log` gives when it is asked. `news` is called when there is
    something to ask for.
    """

    def __init__(self, next_log: Callable[[], Excerpt | None] = _no_log) -> None:
        self.news: Callable[[], None] = lambda: None
        self._waiting: deque[fleet_pb2.JoinRequest] = deque()
        self._next_log = next_log
        self._closed = False

    def put(self, message: fleet_pb2.JoinRequest) -> None:
        """Queue a message; the lease book bounds how many there can be."""
        self._waiting.append(message)
        self.news()

    def log_waits(self) -> None:
        """`next_log` has something to give."""
        self.news()

    def close(self) -> None:
        """No more will be put."""
        self._closed = True
        self.news()

    def next(self) -> bytes | Excerpt | None:
        """The next message; None while there is none."""
        return self._waiting.popleft().SerializeToString() if self._waiting else self._next_log()

    @property
    def closed(self) -> bool:
        """Once `next` gives None, it will for ever."""
        return self._closed
