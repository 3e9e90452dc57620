"""A thousand workers joined to one controller and nothing to do: its memory, and its share of a core.

Back of the envelope: a session is a call in the door (a few tens of KiB of HTTP/2 state and a task there), a task, an
async generator and two futures in Python (some 10 KiB) and the node's own facts (some 5 KiB with its properties): under
200 KiB each, 200 MiB for 1,000 above a bare controller's 60 MiB. The bar is 600 MiB. An idle worker says that it lives
every five seconds: 200 messages a second at 30 to 60 us of CPU each, door and Python together, are about 1 % of a core;
beats every second would be 5 %. The bar is 10 %. The peer of each figure is its bar.

The sessions are real ones over real sockets, a connection each; they run in this process, so that the controller's own
is what is measured. Both intervals are measured: the one that Welcome asks of idle workers, and that of workers that
beat every second, as those do that do not know of it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from buildnet.app.clock import SystemClock
from buildnet.app.descriptors import raise_limit
from buildnet.client import Client
from buildnet.testing.attempts import ScriptedRunner
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.session import Session

WORKERS = 1000
IDLE_S = 20
JOINING_MAX = 50
_PROPERTIES = frozenset((f"property-{i}", f"value-{i}") for i in range(30))
_TICKS = os.sysconf("SC_CLK_TCK")


class SteadySession(Session):
    """A worker that knows of no longer interval for idle workers."""

    async def _beat(self, interval_s: float, idle_interval_s: float) -> None:
        await super()._beat(interval_s, interval_s)


def cpu_s(pid: int) -> float:
    """CPU that a process has taken, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def share_of_core(pid: int) -> float:
    """Percent of a core that the process takes over `IDLE_S`."""
    began_s, began_cpu_s = time.monotonic(), cpu_s(pid)
    await asyncio.sleep(IDLE_S)
    return 100 * (cpu_s(pid) - began_cpu_s) / (time.monotonic() - began_s)


async def measured(url: str, pid: int, kind: type[Session]) -> tuple[float, float, float]:
    """Seconds to join all workers, MiB of the controller then, and its percent of a core while they idle."""
    stop_now = asyncio.Event()
    joining = asyncio.Semaphore(JOINING_MAX)

    async def worker(number: int, joined: asyncio.Event) -> None:
        config = WorkerConfig(url, Path("/nonexistent"), version="0.1.0", hostname=f"host-{number}")
        identity = Identity(f"{number:032x}", f"{random.SystemRandom().getrandbits(128):032x}")
        session = kind(
            config,
            identity,
            _PROPERTIES,
            ScriptedRunner(),
            clock=SystemClock(),
            rng=random.Random(number),
            ready=lambda _: joined.set(),
        )
        await session.run(asyncio.Event(), stop_now)

    async with asyncio.TaskGroup() as tasks:
        began_s = time.monotonic()

        async def join(number: int) -> None:
            async with joining:
                joined = asyncio.Event()
                tasks.create_task(worker(number, joined))
                await joined.wait()

        await asyncio.gather(*(join(number) for number in range(WORKERS)))
        took_s = time.monotonic() - began_s
        async with Client(url) as client:
            assert len(await client.nodes()) == WORKERS
        share = await share_of_core(pid)
        memory = memory_mib(pid)
        async with Client(url) as client:
            assert len(await client.nodes()) == WORKERS, "nobody was lost meanwhile"
        stop_now.set()
    return took_s, memory, share


async def run(url: str, pid: int) -> None:
    """Print each figure."""
    bare_mib, bare = memory_mib(pid), await share_of_core(pid)
    line("bare controller", bare_mib, "MiB", "bar", 600)
    line("bare controller, idle", bare, "% of core", "bar", 10)
    for what, kind in (("idle beats", Session), ("beats every second", SteadySession)):
        took_s, memory, share = await measured(url, pid, kind)
        line(f"{WORKERS} join, {what}", took_s, "s", "a minute", 60)
        line(f"{WORKERS} workers, {what}", memory, "MiB", "bar", 600)
        line(f"{WORKERS} workers, {what}, idle", share, "% of core", "bar", 10)


def main() -> None:
    """Start a controller and measure it."""
    raise_limit()
    header("fleet")
    with server("--no-worker") as (url, pid):
        asyncio.run(run(url, pid))


if __name__ == "__main__":
    main()
