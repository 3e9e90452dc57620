"""A controller that starts with a long queue: what it costs until it serves, and what is done after that.

Back of the envelope: a row is read and decoded in 8 us and made known in 3 more, so 100,000 take 1.1 s of processor
time beyond what an empty start takes; the core is given them, and their inputs are held, while it serves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.lines import COMMAND, header, line
from buildnet._native import Store
from buildnet.model.action import ActionKey, Lease, Outcome, Wanted
from buildnet.model.action_spec import spec_of
from buildnet.model.digest import EMPTY, Digest
from buildnet.model.operation import Intended, StoredOperation
from buildnet.queue.store import SqliteOperations
from buildnet.wire.action_spec import lower

LIST_ACTIONS = "/buildnet.v1.ActionService/ListActions"
BAR_S = 3.0
BATCH = 5_000


async def fill(state: Path, count: int) -> float:
    """Leave `count` operations that wait, their blobs too; return processor time of an operation's record, in us."""
    blobs = Store(str(state / "cas"))
    blobs.put_bytes(b"")
    store = SqliteOperations.open(state / "queue", "process")
    spent_s = 0.0
    try:
        for first in range(0, count, BATCH):
            actions = []
            for number in range(first, min(first + BATCH, count)):
                spec = spec_of(
                    ["/bin/true"],
                    variables={"N": str(number % 1000)},
                    platform=(("bench", "nobody-offers-it"),),
                    timeout_s=60.0 + number % 3600,
                    salt=number.to_bytes(4, "big"),
                )
                lowered = lower(spec, EMPTY)
                blobs.put_bytes(lowered.command)
                actions.append(lowered.action)
                blobs.put_bytes(actions[-1])
            began_s = time.process_time()
            for number, action in enumerate(actions, first + 1):
                wanted = Wanted(ActionKey("", Digest.of(action)), frozenset({("bench", "nobody-offers-it")}), 60.0)
                store.begin(StoredOperation(number, f"{number:032x}", wanted, 1_700_000_000_000))
            await store.kept()
            spent_s += time.process_time() - began_s
    finally:
        await store.close()
        blobs.close()
    return spent_s / count * 1e6


async def life_us(directory: Path, count: int, at_once: int = 8) -> float:
    """Processor time to keep all of an action's life, in us: begun, leased, about to be published, ended, forgotten."""
    store = SqliteOperations.open(directory, "process")
    result = Outcome("ok", bytes(400), worker="w" * 32, exit_code=0, entry_index=1, cpu_ms=3, cpu_from="usage")
    operations = []
    for number in range(1, count + 1):
        wanted = Wanted(ActionKey("", Digest(f"{number:064x}", 140)), frozenset({("OSFamily", "linux")}), 60.0)
        operations.append(StoredOperation(number, f"{number:032x}", wanted, 1_700_000_000_000))
    began_s = time.process_time()
    try:
        for first in range(0, count, at_once):
            group = operations[first : first + at_once]
            for one in group:
                store.begin(one)
            await store.kept()
            for one in group:
                store.lease(Lease(one.number, one.wanted.key, "w" * 32, 1, 60.0), one.number, alone=False)
            await store.kept()
            for one in group:
                store.intend(one.number, Intended(result, True, one.number))
            await store.kept()
            for one in group:
                store.end(replace(one, outcome=result, completed_at_unix_ms=1_700_000_000_000))
                store.release(one.number)
        store.forget([one.number for one in operations])
        await store.kept()
        return (time.process_time() - began_s) / count * 1e6
    finally:
        await store.close()


def cpu_s(pid: int) -> float:
    """Processor time of a process by now, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(state: Path) -> tuple[float, float, int]:
    """Start a controller; processor time and wall time until it has answered, and its resident memory."""
    began_s = time.perf_counter()
    command = [*COMMAND, "up", "--no-worker", "--state", str(state), "--listen", "127.0.0.1:0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        listen = json.loads(process.stdout.readline())["listen"]
        with grpc.insecure_channel(listen) as channel:
            call: Any = channel.unary_unary(LIST_ACTIONS, None, None)
            call(b"", timeout=60)
        spent_s, took_s = cpu_s(process.pid), time.perf_counter() - began_s
        status = Path(f"/proc/{process.pid}/status").read_text()
        return spent_s, took_s, int(status.split("VmRSS:")[1].split()[0]) * 1024
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=100_000)
    count = parser.parse_args().queued
    header(f"restart with {count} queued")
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as scratch:
        empty_s, empty_wall_s, empty_bytes = started(Path(scratch, "empty"))
        each_us = asyncio.run(fill(Path(scratch, "full"), count))
        full_s, full_wall_s, full_bytes = started(Path(scratch, "full"))
        whole_us = asyncio.run(life_us(Path(scratch, "life"), 2_000))
    line("to keep one action's whole life, cpu", whole_us, "us", "two cores at 530 actions/s, us", 2e6 / 530)
    line("to keep one operation, cpu", each_us, "us", "the bar of 1 ms an action, us", 1000.0)
    line("serving again, cpu", full_s, "s", "the bar, s", BAR_S)
    line("serving again, cpu", full_s, "s", "with nothing queued, s", empty_s)
    line("serving again, wall", full_wall_s, "s", "with nothing queued, s", empty_wall_s)
    line("memory of one queued", (full_bytes - empty_bytes) / count, "bytes", "the bar, bytes", 1024.0 * 2)


if __name__ == "__main__":
    main()
