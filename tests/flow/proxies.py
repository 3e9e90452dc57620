"""A proxy as stands before servers: it ends TLS and passes calls on by HTTP/2, message by message, and knows none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.flow.authority import Files

Change = Callable[[bytes], bytes]


@dataclass
class Proxy(grpc.GenericRpcHandler):
    """Where it listens, what it was called for and all that it has seen. Each of `changes` is done to one message of a
    caller's.
    """

    upstream: grpc.aio.Channel
    listen: str = ""
    methods: list[str] = field(default_factory=list)
    seen: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Pass any call on."""
        method = handler_call_details.method

        async def passed(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.methods.append(method)
            call = self.upstream.stream_stream(method)(self._said(requests))
            try:
                async for message in call:
                    self.seen += message
                    yield message
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
            finally:
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(passed)

    async def _said(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in requests:
            self.seen += message
            yield self.changes.pop()(message) if self.changes else message


@asynccontextmanager
async def passing(listen: str, files: Files | None = None, *, clients: Path | None = None) -> AsyncIterator[Proxy]:
    """A proxy before `listen`, within TLS by these files or in plaintext; with an authority of `clients`, for who has
    a certificate of it.
    """
    server = grpc.aio.server()
    async with grpc.aio.insecure_channel(listen) as upstream:
        proxy = Proxy(upstream)
        server.add_generic_rpc_handlers((proxy,))
        if files is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (files.key.read_bytes(), files.certificate.read_bytes())
            roots = None if clients is None else clients.read_bytes()
            credentials = grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
            port = server.add_secure_port("127.0.0.1:0", credentials)
        proxy.listen = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield proxy
        finally:
            await server.stop(0.2)
