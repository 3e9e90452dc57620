"""An ASGI application on a free loopback port, torn down with its context."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

STOP_S = 20


def _server(application: Any) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(application, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    )


def _url(listener: socket.socket) -> str:
    # Whoever connects before the server accepts waits in the listener's queue.
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def served(application: Any) -> Iterator[str]:
    """Serve it in a thread of its own; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _server(application)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join(STOP_S)
            assert not thread.is_alive()


@asynccontextmanager
async def served_here(application: Any) -> AsyncIterator[str]:
    """Serve it in the running event loop; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _server(application)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listener]))
            try:
                yield _url(listener)
            finally:
                server.should_exit = True
