"""A thousand workers joined to one controller and nothing to do: its memory, and its share of a core.

Back of the envelope: a session is a call in the door (a few tens of KiB of HTTP/2 state and a task there), a task, an
async generator and two futures in Python (some 10 KiB) and the node's own facts (some 5 KiB with its properties): under
200 KiB each, 200 MiB for 1,000 above a bare controller's 60 MiB. The bar is 600 MiB. An idle worker says that it lives
every five seconds: 200 messages a second at 30 to 60 us of CPU each, door and Python together, are about 1 % of a core;
beats every second would be 5 %. The bar is 10 %. The peer of each figure is its bar.

A session by the node's own key adds, for each, a few tens of KiB of frames and cipher state, and to each beat two AEAD
operations of a microsecond.

The sessions are real ones over real sockets, a connection each; they run in this process, so that the controller's own
is what is measured. Three kinds of worker are: in plaintext, by sessions of keys that join lines brought in (Noise),
and in plaintext without the longer interval that Welcome asks of idle workers.

    python bench/fleet.py [--workers N] [--only plain|noise|steady]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from buildnet import __version__
from buildnet.app.clock import SystemClock
from buildnet.app.descriptors import raise_limit
from buildnet.client import Client
from buildnet.model.join_line import JoinLine
from buildnet.testing.attempts import ScriptedRunner
from buildnet.worker.config import WorkerConfig
from buildnet.worker.identity import Identity
from buildnet.worker.session import Session
from buildnet.worker.uplink import Uplink, uplink_of

IDLE_S = 20
JOINING_MAX = 20
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


async def join_lines(url: str, count: int) -> list[JoinLine]:
    """As many join lines, each for one node."""
    async with Client(url) as client:
        return [(await client.fleet.new_token(url.partition("://")[2], lifetime_s=3600))[1] for _ in range(count)]


async def work(config: WorkerConfig, number: int, kind: type[Session], joined: asyncio.Event) -> None:
    """Be one idle worker until cancelled."""
    uplink: Uplink | None = None
    if config.line is not None:
        config.state.mkdir()
        uplink = await asyncio.to_thread(uplink_of, config)
    try:
        session = kind(
            config,
            Identity(f"{number:032x}", f"{random.SystemRandom().getrandbits(128):032x}"),
            _PROPERTIES,
            ScriptedRunner(),
            clock=SystemClock(),
            rng=random.Random(number),
            ready=lambda _: joined.set(),
            uplink=uplink,
        )
        await session.run(asyncio.Event(), asyncio.Event())
    finally:
        if uplink is not None:
            await asyncio.to_thread(uplink.close)


async def joined_count(url: str) -> int:
    """How many nodes the controller lists as here."""
    async with Client(url) as client:
        return len(await client.nodes())


async def measured(
    url: str, pid: int, kind: type[Session], workers: int, directory: Path | None
) -> tuple[float, float, float, float]:
    """Seconds to join all workers and of the controller's processor time for one, in milliseconds; its MiB then, and
    its percent of a core while they idle.
    """
    joining = asyncio.Semaphore(JOINING_MAX)
    tasks: list[asyncio.Task[None]] = []
    bare = WorkerConfig(url, Path("/nonexistent"), version=__version__)
    configs = [replace(bare, hostname=f"host-{number}") for number in range(workers)]
    if directory is not None:
        lines = await join_lines(url, workers)
        configs = [
            replace(config, url=line.url, line=line, state=directory / str(number))
            for number, (config, line) in enumerate(zip(configs, lines, strict=True))
        ]

    async def join(number: int, config: WorkerConfig) -> None:
        async with joining:
            joined = asyncio.Event()
            task = asyncio.create_task(work(config, number, kind, joined))
            tasks.append(task)
            waiting = asyncio.create_task(joined.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            assert joined.is_set(), task

    began_s, began_cpu_s = time.monotonic(), cpu_s(pid)
    try:
        await asyncio.gather(*(join(number, config) for number, config in enumerate(configs)))
        took_s, spent_ms = time.monotonic() - began_s, (cpu_s(pid) - began_cpu_s) / workers * 1e3
        assert await joined_count(url) == workers
        share = await share_of_core(pid)
        memory = memory_mib(pid)
        assert await joined_count(url) == workers, "nobody was lost meanwhile"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return took_s, spent_ms, memory, share


KINDS = {
    "plain": ("idle beats", Session),
    "noise": ("by sessions", Session),
    "steady": ("beats each second", SteadySession),
}


def measure(name: str, workers: int) -> None:
    """Print the figures of one kind of worker with a controller of its own."""
    what, kind = KINDS[name]
    with server("--no-worker") as (url, pid), tempfile.TemporaryDirectory(prefix="buildnet-bench-") as directory:
        if name == "plain":
            line("bare controller", memory_mib(pid), "MiB", "bar", 600)
            line("bare controller, idle", asyncio.run(share_of_core(pid)), "% of core", "bar", 10)
        states = Path(directory) if name == "noise" else None
        took_s, spent_ms, memory, share = asyncio.run(measured(url, pid, kind, workers, states))
    line(f"{workers} join, {what}", took_s, "s", "a minute", 60)
    line("  the controller's share of one join", spent_ms, "ms CPU", "two handshakes of both ends", 4)
    line(f"{workers} workers, {what}", memory, "MiB", "bar", 600)
    line(f"{workers} workers, {what}, idle", share, "% of core", "bar", 10)


def main() -> None:
    """Start controllers and measure them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000, help="workers that join")
    parser.add_argument("--only", choices=list(KINDS), help="this kind of worker alone")
    parsed = parser.parse_args()
    raise_limit()
    header("fleet")
    for name in [parsed.only] if parsed.only else KINDS:
        measure(name, parsed.workers)


if __name__ == "__main__":
    main()
