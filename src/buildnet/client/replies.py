"""Replies of a native call, one after another. Whoever reads them slowly keeps the connection, and nothing piles up:
what is not read stays with the transport, which tells the server to wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from buildnet._native import Body, Call
from buildnet.client.status import error_of_end


async def replies(call: Call, request: bytes, url: str) -> AsyncGenerator[bytes | Body, None]:
    """Make the call with one request, and give its replies; the call is closed with this.

    Raises:
        NodeDown: the server cannot be reached, or went away.
        BuildNetError: what else it says.
    """
    loop = asyncio.get_running_loop()
    came: deque[bytes | Body] = deque()
    end: tuple[int, str] | None = None
    news = asyncio.Event()

    def turn() -> None:
        nonlocal end
        if came:
            # The connection is to live on meanwhile.
            call.look()
            return
        messages, _, end = call.turn(bodies=True)
        came.extend(messages)
        if came or end is not None:
            news.set()

    call.send(request)
    call.finish()
    loop.add_reader(call.fd, turn)
    try:
        while end is None:
            news.clear()
            # In a turn of the loop's own, so that a flood leaves others theirs.
            loop.call_soon(turn)
            await news.wait()
            while came:
                yield came.popleft()
        if end[0]:
            raise error_of_end(*end, call.details, url)
    finally:
        loop.remove_reader(call.fd)
        call.close()
