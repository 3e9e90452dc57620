"""A controller's end of FleetService.Join on a free loopback port, driven by a test step by step.

It decides nothing: what it says and when is the test's to choose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import fleet_pb2, resource_pb2
from buildnet.wire.actions import digest_message


class FakeSession:
    """One worker's session, from the controller's side."""

    def __init__(self, hello: fleet_pb2.Hello) -> None:
        self.hello = hello
        self._heartbeats: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        self.announcements: asyncio.Queue[resource_pb2.Announcement] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._received: asyncio.Queue[fleet_pb2.JoinRequest] = asyncio.Queue()
        self._outgoing: asyncio.Queue[fleet_pb2.JoinResponse | None] = asyncio.Queue()

    async def receive(self) -> fleet_pb2.JoinRequest:
        """The next message that is neither a heartbeat nor an announcement."""
        return await self._received.get()

    async def heartbeat(self) -> tuple[int, ...]:
        """The fences of the next heartbeat to come."""
        while not self._heartbeats.empty():
            self._heartbeats.get_nowait()
        return await self._heartbeats.get()

    def assign(self, fence: int, action: bytes = b"", timeout_s: int = 10) -> None:
        """Assign an action; its digest is that of `action`."""
        message = fleet_pb2.JoinResponse()
        message.assign.fence = fence
        message.assign.action_digest.CopyFrom(digest_message(Digest.of(action)))
        message.assign.timeout.seconds = timeout_s
        message.assign.attempt = 1
        self.send(message)

    def cancel(self, fence: int, reason: str = "asked") -> None:
        """Cancel a lease."""
        message = fleet_pb2.JoinResponse()
        message.cancel.fence = fence
        message.cancel.reason = reason
        self.send(message)

    def settle(self, fence: int) -> None:
        """Confirm a Done."""
        message = fleet_pb2.JoinResponse()
        message.settled.fence = fence
        self.send(message)

    def drain(self) -> None:
        """Ask the worker to leave."""
        message = fleet_pb2.JoinResponse()
        message.drain.SetInParent()
        self.send(message)

    def send(self, message: fleet_pb2.JoinResponse) -> None:
        """Send any message."""
        self._outgoing.put_nowait(message)

    def end(self) -> None:
        """End the session from this side."""
        self._outgoing.put_nowait(None)

    async def _serve(self, requests: AsyncIterator[fleet_pb2.JoinRequest]) -> AsyncIterator[fleet_pb2.JoinResponse]:
        reading = asyncio.ensure_future(self._read(requests))
        try:
            while (message := await self._outgoing.get()) is not None:
                yield message
        finally:
            reading.cancel()
            self.ended.set()

    async def _read(self, requests: AsyncIterator[fleet_pb2.JoinRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("message") == "heartbeat":
                self._heartbeats.put_nowait(tuple(request.heartbeat.fences))
            elif request.WhichOneof("message") == "announcement":
                self.announcements.put_nowait(request.announcement)
            else:
                self._received.put_nowait(request)
        self.end()


class FakeController:
    """Serves sessions; each new one is a FakeSession that has been welcomed."""

    def __init__(self, heartbeat_interval_ms: int = 20, controller_id: str = "controller-1") -> None:
        self.takes_command_ended = False
        self._heartbeat_interval_ms = heartbeat_interval_ms
        self._controller_id = controller_id
        self._sessions: asyncio.Queue[FakeSession] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where workers dial."""
        return f"grpc://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port as before when it was stopped."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(
            self._join,
            request_deserializer=fleet_pb2.JoinRequest.FromString,
            response_serializer=fleet_pb2.JoinResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("buildnet.v1.FleetService", {"Join": handler})
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Vanish: every session breaks at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def session(self) -> FakeSession:
        """The next session that a worker opens."""
        return await self._sessions.get()

    async def _join(
        self,
        requests: AsyncIterator[fleet_pb2.JoinRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[fleet_pb2.JoinResponse]:
        first = await anext(aiter(requests))
        if self.refusal is not None:
            await context.abort(*self.refusal)
        session = FakeSession(first.hello)
        welcome = fleet_pb2.JoinResponse()
        welcome.welcome.controller_id = self._controller_id
        welcome.welcome.heartbeat_interval.FromMilliseconds(self._heartbeat_interval_ms)
        welcome.welcome.lease_duration.seconds = 4
        welcome.welcome.takes_command_ended = self.takes_command_ended
        session.send(welcome)
        self._sessions.put_nowait(session)
        async for message in session._serve(requests):
            yield message
