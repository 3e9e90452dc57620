"""What the messages of one action cost a worker's process: an Assign in, a Done out, a Settled in.

Back of the envelope: each message is some 100 bytes, so what counts is wakes. Two messages come and one goes, by three
system calls of 1 to 2 us each and one switch to this process; what Python does with them, the lease book and a task
for the attempt among it, takes 100 to 200 us.

The peer is a bare grpc.aio client that answers each Assign with a Done and keeps no book, against the same controller.
Figures are processor time and switches, so that they mean something on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet.app.clock import SystemClock
from buildnet.model.action import Outcome
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker.attempt import Handle
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.lease_book import Assignment
from buildnet.worker.session import Session

SLOTS: Final = 64
PASSED: Final = Outcome("ok", b"result", exit_code=0)


class Instant:
    """Runs nothing, at once."""

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Pass."""
        await asyncio.sleep(0)
        return PASSED


async def control(actions: int, depth: int) -> None:
    """Be a controller that keeps `depth` actions assigned until so many have ended."""
    # Here, since it imports grpcio, which the worker that is measured must not.
    from buildnet.testing.controller import FakeController

    controller = FakeController(heartbeat_interval_ms=1000)
    await controller.start()
    print(controller.port, flush=True)
    session = await controller.session()
    assigned = done = 0
    while done < actions:
        while assigned - done < depth and assigned < actions:
            assigned += 1
            session.assign(assigned)
        message = await session.receive()
        if message.WhichOneof("message") == "done":
            done += 1
            session.settle(message.done.fence)
    session.drain()
    await session.ended.wait()
    await controller.stop()


async def ours(port: int) -> None:
    """Work until drained."""
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-stream-") as state:
        config = WorkerConfig(f"grpc://127.0.0.1:{port}", Path(state), slots=SLOTS, version="0.1.0", hostname="here")
        identity, rng = Identity("n" * 32, "b" * 32), random.Random(1)
        session = Session(config, identity, frozenset(), Instant(), clock=SystemClock(), rng=rng)
        await session.run(asyncio.Event(), asyncio.Event())


async def bare(port: int) -> None:
    """Answer each Assign until drained."""
    import grpc.aio

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        join: Any = channel.stream_stream(
            "/buildnet.v1.FleetService/Join",
            request_serializer=fleet_pb2.JoinRequest.SerializeToString,
            response_deserializer=fleet_pb2.JoinResponse.FromString,
        )
        call = join()
        await call.write(fleet_pb2.JoinRequest(hello=fleet_pb2.Hello(node_id="n", boot_id="b", slots=SLOTS)))
        while isinstance(message := await call.read(), fleet_pb2.JoinResponse) and not message.HasField("drain"):
            if message.HasField("assign"):
                done = fleet_pb2.Done(fence=message.assign.fence, result=b"result")
                await call.write(fleet_pb2.JoinRequest(done=done))
        await call.done_writing()


def counted(work: Callable[[int], Coroutine[Any, Any, None]], port: int) -> None:
    """Print what it used."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(work(port))
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": used_s, "waits": after.ru_nvcsw - before.ru_nvcsw, "peak_kib": after.ru_maxrss}))


def measured(role: str, actions: int, depth: int) -> dict[str, float]:
    """One worker's figures: processor time, voluntary switches, peak memory."""
    command = [sys.executable, __file__, "--actions", str(actions), "--depth", str(depth)]
    with subprocess.Popen([*command, "--be", "controller"], stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        port = controller.stdout.readline().strip()
        worker = [*command, "--be", role, "--port", port]
        told = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(told)
    return figures


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=3000)
    parser.add_argument("--depth", type=int, default=1, help="actions assigned at once (default: 1)")
    parser.add_argument("--be", choices=["controller", "ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be == "controller":
        asyncio.run(control(arguments.actions, arguments.depth))
        return
    if arguments.be is not None:
        counted(ours if arguments.be == "ours" else bare, arguments.port)
        return
    header("control_stream")
    mine, peer = (measured(role, arguments.actions, arguments.depth) for role in ("ours", "bare"))
    for what, key, unit, scale in (
        ("worker, processor of an action", "cpu_s", "us", 1e6 / arguments.actions),
        ("worker, waits of an action", "waits", "", 1 / arguments.actions),
        ("worker, peak memory", "peak_kib", "MiB", 1 / 1024),
    ):
        line(what, mine[key] * scale, unit, "bare grpc.aio", peer[key] * scale)


if __name__ == "__main__":
    main()
