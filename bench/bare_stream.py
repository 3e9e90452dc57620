"""What the machine gives: bytes from a pipe through one TCP connection, and through one stream of grpcio, to a reader.

The other end is a process of its own, as a controller is: a copy of this one, which must not have begun with gRPC.
"""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio

PIECE_BYTES = 512 << 10
_PATH = "/bench.Bare/Read"


@dataclass(frozen=True)
class Moved:
    """Wall seconds, and processor seconds of both ends and of whoever prints."""

    wall_s: float
    cpu_s: float


def tcp(size_bytes: int) -> Moved:
    """Through a TCP connection, 512 KiB at a time."""

    def serve(port: Connection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port.send(listening.getsockname()[1])
            connection, _ = listening.accept()
            with connection, _printing(size_bytes) as printing:
                assert printing.stdout is not None
                buffer = memoryview(bytearray(PIECE_BYTES))
                while count := printing.stdout.readinto(buffer):  # type: ignore[attr-defined]
                    connection.sendall(buffer[:count])

    def read(port: int) -> int:
        came, buffer = 0, memoryview(bytearray(PIECE_BYTES))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while count := connection.recv_into(buffer):
                came += count
        return came

    return _moved(size_bytes, serve, read)


def grpcio(size_bytes: int) -> Moved:
    """Through a stream of messages of 512 KiB, whose bytes nobody decodes."""

    async def told(_: bytes, context: object) -> AsyncIterator[bytes]:
        with _printing(size_bytes) as printing:
            assert printing.stdout is not None
            while piece := os.read(printing.stdout.fileno(), PIECE_BYTES):
                yield piece

    async def serving(port: Connection) -> None:
        server = grpc.aio.server()
        handler: Any = grpc.unary_stream_rpc_method_handler(told)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", {"Read": handler}),))
        number = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        port.send(number)
        # Until the reader has all of it.
        await asyncio.to_thread(port.recv)
        await server.stop(None)

    async def reading(port: int) -> int:
        came = 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_PATH)
            async for piece in call(b""):
                came += len(piece)
        return came

    return _moved(size_bytes, lambda port: asyncio.run(serving(port)), lambda port: asyncio.run(reading(port)))


def _printing(size_bytes: int) -> subprocess.Popen[bytes]:
    printing = subprocess.Popen(["head", "-c", str(size_bytes), "/dev/zero"], stdout=subprocess.PIPE, bufsize=0)
    assert printing.stdout is not None
    fcntl.fcntl(printing.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
    return printing


def _moved(size_bytes: int, serve: Callable[[Connection], None], read: Callable[[int], int]) -> Moved:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(there,))
    before_s = _cpu_s()
    process.start()
    port = here.recv()
    began_s = time.monotonic()
    came = read(port)
    wall_s = time.monotonic() - began_s
    here.send(None)
    process.join(30)
    assert came == size_bytes, f"{came} of {size_bytes} bytes came"
    return Moved(wall_s, _cpu_s() - before_s)


def _cpu_s() -> float:
    """Of this process and of its children that ended, with theirs."""
    return sum(os.times()[:4])
