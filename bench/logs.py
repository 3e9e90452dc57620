"""One GiB of stdout followed live, and how long a line takes to a follower.

Back of the envelope: the kernel copies each byte into a pipe, from it into a file and out of it at the worker, through
a socket, into a file at the controller, and through a socket: eight copies, and two at the follower, who makes `bytes`
of them. At some 5 GB/s a copy that is 2 s a GiB over all processes. Memory that is fresh costs more: a page that is
faulted in takes up to 3 us on a virtual machine, 0.8 s a GiB, and both files are fresh. 2,048 messages of 512 KiB cost
each process 0.2 to 0.4 ms of Python. Two cores move 200 MiB/s as long as all together take under 10 s of processor time
a GiB, and 300 under 6.8.

The peers are the same bytes through `cat | cat`, through one bare TCP connection and through one bare stream of grpcio
(`bare_stream.py`), in the same run. Wall-clock figures mean something on an idle machine
only; processor time and memory always do. The bar of a line is 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import bare_stream
from bench.lines import header, line, server
from bench.processes import children, cpu_s, peak_mib
from buildnet.client import Client, LogPiece

_ENV = {"PATH": "/usr/bin:/bin"}
LINES = 200
LINE_BAR_MS = 50.0


def piped(size_bytes: int) -> tuple[float, float]:
    """Wall and processor seconds of the same bytes through two `cat`s."""
    began_s, used_s = time.monotonic(), children_cpu_s()
    subprocess.run(["sh", "-c", f"head -c {size_bytes} /dev/zero | cat | cat > /dev/null"], check=True)
    return time.monotonic() - began_s, children_cpu_s() - used_s


def children_cpu_s() -> float:
    """Processor time of this process's ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Flood:
    """A long log that was followed: wall seconds until its last byte came and until the result did, bytes, gaps."""

    followed_s: float
    told_s: float
    came: int
    gap: bool


async def flood(client: Client, size_bytes: int) -> Flood:
    """Run a command that prints so much and follow it."""
    came = 0
    gap = False
    last_s = 0.0

    def on_log(piece: LogPiece) -> None:
        nonlocal came, gap, last_s
        gap = gap or piece.gap or piece.offset != came
        came += len(piece.data)
        last_s = time.monotonic()

    script = f"head -c {size_bytes} /dev/zero"
    began_s = time.monotonic()
    await client.run(["/bin/sh", "-c", script], env=_ENV, do_not_cache=True, on_log=on_log, timeout_s=600)
    return Flood(last_s - began_s, time.monotonic() - began_s, came, gap)


async def delays_ms(client: Client) -> list[float]:
    """How long lines took from their printing to the follower, sorted."""
    found: list[float] = []
    text = ""

    def on_log(piece: LogPiece) -> None:
        nonlocal text
        now_ns = time.time_ns()
        *lines, text = (text + piece.data.decode()).split("\n")
        found.extend((now_ns - int(printed)) / 1e6 for printed in lines)

    script = f"for i in $(seq {LINES}); do date +%s%N; sleep 0.05; done"
    await client.run(["/bin/sh", "-c", script], env=_ENV, do_not_cache=True, on_log=on_log)
    return sorted(found)


@dataclass(frozen=True)
class Bounds:
    """What this machine gives: the same bytes with nothing in their way."""

    cat: tuple[float, float]
    tcp: bare_stream.Moved
    grpcio: bare_stream.Moved


async def measured(url: str, pid: int, size_bytes: int, bounds: Bounds) -> None:
    """Print all of it."""
    gib = size_bytes / (1 << 30)
    pipe_wall_s, pipe_cpu_s = bounds.cat
    async with Client(url) as client:
        await client.run(["/bin/true"], do_not_cache=True)
        (worker,) = children(pid)
        before = {name: (cpu_s(p), peak_mib(p)) for name, p in (("controller", pid), ("worker", worker))}
        began_cpu_s = time.process_time()
        followed = await flood(client, size_bytes)
        follower_s = time.process_time() - began_cpu_s
        speed = size_bytes / followed.followed_s / (1 << 20)
        line("followed live, to the last byte", speed, "MiB/s", "bar", 200.0)
        for name, wall_s in (("cat|cat", pipe_wall_s), ("TCP", bounds.tcp.wall_s), ("grpcio", bounds.grpcio.wall_s)):
            line("the same", speed, "MiB/s", name, size_bytes / wall_s / (1 << 20))
        # The log of record is made of it, hashed at both ends, before the client is told.
        line("to the result", followed.told_s, "s", "last byte", followed.followed_s)
        for name, process in (("controller", pid), ("worker", worker)):
            used_s, mib = before[name]
            line(f"{name}, processor", (cpu_s(process) - used_s) / gib, "s/GiB", "cat|cat", pipe_cpu_s / gib)
            line(f"{name}, memory it grew by", peak_mib(process) - mib, "MiB", "log", size_bytes / (1 << 20))
        line("follower, processor", follower_s / gib, "s/GiB", "cat|cat", pipe_cpu_s / gib)
        line("follower, memory", peak_mib(os.getpid()), "MiB", "log", size_bytes / (1 << 20))
        for name, moved in (("TCP", bounds.tcp), ("grpcio", bounds.grpcio)):
            line(f"bare {name}, processor, both ends", moved.cpu_s / gib, "s/GiB", "cat|cat", pipe_cpu_s / gib)
        missing = ", with a gap" if followed.gap else ", none missing"
        print(f"  {followed.came} of {size_bytes} bytes came live{missing}")
        times = await delays_ms(client)
        line("a line to its follower, median", times[len(times) // 2], "ms", "bar", LINE_BAR_MS)
        line("a line to its follower, 99 of 100", times[len(times) * 99 // 100], "ms", "bar", LINE_BAR_MS)
        line("a line to its follower, worst", times[-1], "ms", "bar", LINE_BAR_MS)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mib", type=int, default=1024, help="how much is printed (default: 1024, the most that is kept)"
    )
    arguments = parser.parse_args()
    header("logs")
    size_bytes = arguments.mib << 20
    bounds = Bounds(piped(size_bytes), bare_stream.tcp(size_bytes), bare_stream.grpcio(size_bytes))
    with server("--slots", "1") as (url, pid):
        asyncio.run(measured(url, pid, size_bytes, bounds))


if __name__ == "__main__":
    main()
