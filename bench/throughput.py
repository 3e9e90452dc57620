"""Calls, bytes and no-op actions through one controller with client and worker on the same machine.

Back of the envelope: a call costs the door 15-20 us and a Python client 100-150, so a client of two processes sees some
10,000 calls/s at most; the floor is the same client asking for capabilities, a constant. A byte is hashed once on
its way in and once on its way out: SHA-256 with SHA-NI is 1-2 GB/s a core. A no-op action is a spawn in namespaces (3
ms), eight calls and two ledger entries: some 100-200 a second with two slots on two cores.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from buildnet._native import Link
from buildnet.client import Client
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

RE = "/build.bazel.remote.execution.v2."
CALLS = 6000
AT_ONCE = 64
BLOB_BYTES = 256 << 20
ACTIONS = 300


async def calls_per_s(listen: str, path: str, request: bytes) -> float:
    """Unary calls a second, 64 at once."""
    async with grpc.aio.insecure_channel(listen) as channel:
        call: Any = channel.unary_unary(path, None, None)

        async def caller() -> None:
            for _ in range(CALLS // AT_ONCE):
                await call(request)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return CALLS / (time.perf_counter() - started)


async def actions_per_s(url: str) -> float:
    """Distinct no-op actions a second, end to end."""
    async with Client(url) as client:

        async def one(number: int) -> None:
            result = await client.run(["/bin/true"], env={"N": str(number)})
            assert result.exit_code == 0
            assert not result.cached

        room = asyncio.Semaphore(AT_ONCE)

        async def bounded(number: int) -> None:
            async with room:
                await one(number)

        started = time.perf_counter()
        await asyncio.gather(*(bounded(number) for number in range(ACTIONS)))
        return ACTIONS / (time.perf_counter() - started)


def spawns_per_s() -> float:
    """The physical limit of a no-op action: starting the program, one after the other, on one core."""
    started = time.perf_counter()
    for _ in range(ACTIONS):
        subprocess.run(["/bin/true"], check=True)
    return ACTIONS / (time.perf_counter() - started)


def blob_mib_per_s(url: str) -> tuple[float, float, float]:
    """A large blob up and down through ByteStream, and SHA-256 alone over the same bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        source, dest = Path(scratch, "source"), Path(scratch, "dest")
        with source.open("wb") as file:
            for number in range(BLOB_BYTES >> 20):
                file.write(hashlib.shake_128(str(number).encode()).digest(1 << 20))
        data = source.read_bytes()
        started = time.perf_counter()
        hashlib.sha256(data).digest()
        hashed = time.perf_counter() - started
        del data
        link = Link(url)
        started = time.perf_counter()
        digest = link.put_file(str(source))
        up = time.perf_counter() - started
        started = time.perf_counter()
        link.get_file(digest, str(dest))
        down = time.perf_counter() - started
        link.close()
    mib = BLOB_BYTES / (1 << 20)
    return mib / up, mib / down, mib / hashed


async def result_request(url: str) -> bytes:
    """A request for a result that is there."""
    async with Client(url) as client:
        result = await client.run(["/bin/echo", "bench"])
        digest = re.Digest(hash=result.action.hash, size_bytes=result.action.size_bytes)
        return re.GetActionResultRequest(action_digest=digest).SerializeToString()


async def main() -> None:
    """Print each figure."""
    header("throughput")
    with server("--slots", "2") as (url, _):
        listen = url.removeprefix("grpc://")
        request = await result_request(url)
        floor = await calls_per_s(listen, RE + "Capabilities/GetCapabilities", b"")
        hits = await calls_per_s(listen, RE + "ActionCache/GetActionResult", request)
        line("GetActionResult, hits", hits, "calls/s", "GetCapabilities, same client", floor)
        up, down, hashed = await asyncio.to_thread(blob_mib_per_s, url)
        line("ByteStream write", up, "MiB/s", "SHA-256 alone, one core", hashed)
        line("ByteStream read", down, "MiB/s", "SHA-256 alone, one core", hashed)
        actions = await actions_per_s(url)
        line("no-op actions, end to end", actions, "actions/s", "spawning /bin/true, in series", spawns_per_s())


if __name__ == "__main__":
    asyncio.run(main())
