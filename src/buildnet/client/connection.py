"""One connection to one server: calls go by gRPC, bytes by the native link. What is called is decided elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc

from buildnet.client.channel import channel_of, metadata_of
from buildnet.client.patience import Patience
from buildnet.client.status import error_of_call
from buildnet.dial import link_of
from buildnet.model.credentials import NONE, Address, Credentials

# How long a server may be away at a time, as when it is started anew, before that is an error.
AWAY_S: Final = 60.0
_CALL_TIMEOUT_S: Final = 60.0
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    # The default grows to two minutes: a server that is started anew is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Connection:
    """A connection to a server, made at the first call; arguments are as `Client` has them.

    Raises:
        InvalidRequest: the URL or the credentials cannot be used.
    """

    def __init__(
        self, url: str, *, instance: str = "", credentials: Credentials = NONE, away_s: float = AWAY_S
    ) -> None:
        self.url = url
        self._patience = Patience(away_s)
        self.instance = instance
        self._credentials = credentials
        address = self._address = Address.parse(url)
        self._link = link_of(address, credentials, instance=instance)
        self._channel = channel_of(address, credentials, _OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close(None)
        await asyncio.to_thread(self._link.close)

    async def _unary(self, path: str, request: Any, response: type[Any]) -> Any:
        call = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        try:
            answer = await call(request, timeout=_CALL_TIMEOUT_S, metadata=metadata_of(self._credentials))
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error
        self._patience.reached = True
        return answer

    async def _upload(self, path: str, requests: Iterator[Any], response: type[Any]) -> Any:
        call: Any = self._channel.stream_unary(path, _bytes_of, response.FromString)
        try:
            return await call(requests, timeout=_CALL_TIMEOUT_S, metadata=metadata_of(self._credentials))
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error

    async def _stream(
        self, path: str, request: Any, response: type[Any], metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncGenerator[Any, None]:
        multi = self._channel.unary_stream(path, type(request).SerializeToString, response.FromString)
        call = multi(request, metadata=(*metadata_of(self._credentials), *metadata))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error
        finally:
            call.cancel()


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
