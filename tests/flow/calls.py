"""Native calls on a test's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from buildnet._native import Call
from buildnet.worker.stream import Stream


class Words:
    """What a test sends."""

    def __init__(self, *words: bytes, closed: bool = False) -> None:
        self.news: Callable[[], None] = lambda: None
        self.waiting = deque(words)
        self.closed = closed

    def next(self) -> bytes | None:
        """The next message."""
        return self.waiting.popleft() if self.waiting else None

    def say(self, *words: bytes, closed: bool = False) -> None:
        """Send more, and then perhaps no more."""
        self.waiting.extend(words)
        self.closed = closed
        self.news()


async def answer_of(call: Call, *words: bytes) -> tuple[int, str, list[bytes]]:
    """Say these words and no more; the code, text and messages of the answer."""
    heard: list[bytes] = []

    def hear(messages: Sequence[bytes]) -> None:
        heard.extend(messages)

    with Stream(call, Words(*words, closed=True), hear) as stream:
        async with asyncio.timeout(30):
            code, text = await stream.over
    return code, text, heard
