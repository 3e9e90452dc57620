"""Actions that do nothing: how many a second, how long one takes alone, and whose processor time it is.

Back of the envelope, both cores together: starting and ending /bin/true is 0.7-1.3 ms of kernel; the supervisor beside
it and a control group half as much again; namespaces 2-3 ms, most of it the network's. Each process of ours adds one
message in and out for each step: 0.3-0.6 ms in the controller (one call, three ledger entries, two messages of the
session), as much in the worker. So 780/s in `process` isolation and 300/s in namespaces leave nothing to waste.

Buildbarn is the peer, where its four programs are on PATH or named (BB_STORAGE, BB_SCHEDULER, BB_RUNNER, BB_WORKER): it
runs commands in no sandbox. Else, and always for what could be had at all, the machine itself in the same minute: fork
and exec of the same program, and bubblewrap around it, in as many threads as there are processors. The client is
native and costs some 0.1 ms an action.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from bench.peers.execution import buildbarn
from bench.peers.servers import CannotBeHadError, load_binary
from bench.processes import below_cpu_s, cpu_s

SPAWNS = 400
STREAMS = 64
MANY = ["--streams", str(STREAMS), "--connections", "4", "--warmup", "0"]
BWRAP = ["--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--"]


@dataclass(frozen=True)
class Measured:
    """What a peer does: actions a second with 64 clients, and the median of one alone in milliseconds."""

    per_s: float
    alone_ms: float


async def work(url: str, state: Path, slots: int, isolation: str) -> None:
    """Be a worker in this isolation until killed."""
    from buildnet import __version__
    from buildnet.app.clock import SystemClock
    from buildnet.worker.config import WorkerConfig
    from buildnet.worker.run import run_worker

    config = WorkerConfig(url, state, slots=slots, version=__version__, isolation=isolation, search_path=())

    def ready(controller: str) -> None:
        print(json.dumps({"ready": controller}), flush=True)

    await run_worker(config, clock=SystemClock(), rng=random.SystemRandom(), stop=asyncio.Event(), ready=ready)


@contextmanager
def worker(url: str, slots: int, isolation: str) -> Iterator[int]:
    """A worker process that has joined; yields its process id."""
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-worker-") as state:
        command = [sys.executable, __file__, "--be-worker", url, state, str(slots), isolation]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the worker ended before it joined"
            yield process.pid
        finally:
            process.kill()
            process.wait()


def spawns_per_s(argv: list[str]) -> float:
    """Starting a program and waiting for it, as fast as all processors together can."""
    threads = len(os.sched_getaffinity(0))

    def some(count: int) -> None:
        for _ in range(count):
            pid = os.posix_spawn(argv[0], argv, {})
            assert os.waitpid(pid, 0)[1] == 0, argv

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, [SPAWNS // threads] * threads))
    return SPAWNS / (time.perf_counter() - started)


def generator() -> Path:
    """The load generator's program."""
    return Path(os.environ.get("BUILDNET_LOAD") or load_binary())


def load_command(url: str, *arguments: str) -> list[str]:
    """What runs the load generator; every answer is checked."""
    return [str(generator()), "run", "--url", url, "--call", "execute", "--json", *arguments]


def load(url: str, *arguments: str) -> dict[str, float]:
    """One run of it."""
    done = subprocess.run(load_command(url, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(isolation: str, slots: int, seconds: float, spawn: tuple[str, float], peer: Measured | None) -> None:
    """Print what one worker does."""
    with server("--no-worker") as (url, controller), worker(url, slots, isolation) as working:
        alone = load_alone(url, seconds)
        before = cpu_s(controller), cpu_s(working), below_cpu_s(working)
        busy = load_many(url, seconds)
        after = cpu_s(controller), cpu_s(working), below_cpu_s(working)
    name = f"{isolation}, {slots} slots"
    spawned, spawns = spawn
    line(f"no-op, {name}, 64 clients", busy["calls_per_s"], "actions/s", spawned, spawns)
    line(f"no-op, {name}, alone, p50", alone["p50_us"] / 1e3, "ms", f"{spawned}, ms", 1e3 / spawns)
    if peer is not None:
        line(f"no-op, {name}, 64 clients", busy["calls_per_s"], "actions/s", "Buildbarn", peer.per_s)
        line(f"no-op, {name}, alone, p50", alone["p50_us"] / 1e3, "ms", "Buildbarn, ms", peer.alone_ms)
    shares = [(after[i] - before[i]) / busy["calls"] * 1e3 for i in (0, 1, 2)]
    print(
        f"    CPU an action: controller {shares[0]:.2f} ms, worker {shares[1]:.2f} ms, launcher and commands "
        f"{shares[2]:.2f} ms, client {busy['load_cpu_us_per_call'] / 1e3:.2f} ms; "
        f"p99 with 64 clients {busy['p99_us'] / 1e3:.1f} ms"
    )


def load_alone(url: str, seconds: float) -> dict[str, float]:
    """One action at a time, after a few that warm everything up."""
    load(url, "--calls", "200", "--seconds", "5", "--warmup", "0")
    return load(url, "--serial", "--seconds", str(seconds / 2), "--warmup", "0")


def load_many(url: str, seconds: float) -> dict[str, float]:
    """As many as 64 clients ask for."""
    return load(url, *MANY, "--seconds", str(seconds))


def spent_s(pids: Sequence[int]) -> float:
    """Processor time of these, and of all that they started."""
    return sum(cpu_s(pid) + below_cpu_s(pid) for pid in pids)


def measured_buildbarn(slots: int, seconds: float) -> Measured | None:
    """What Buildbarn does, if it is here."""
    try:
        with buildbarn(slots, generator()) as (url, pids):
            alone = load_alone(url, seconds)
            before = spent_s(pids)
            busy = load_many(url, seconds)
            each_ms = (spent_s(pids) - before) / busy["calls"] * 1e3
    except CannotBeHadError as error:
        print(f"  Buildbarn: {error}")
        return None
    print(f"  Buildbarn, {slots} slots: {busy['calls_per_s']:.0f} actions/s, {each_ms:.2f} ms CPU an action, all four")
    return Measured(busy["calls_per_s"], alone["p50_us"] / 1e3)


def main() -> None:
    """Print each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each run")
    parser.add_argument("--only", choices=["process", "namespaces"], help="this isolation alone")
    parser.add_argument("--slots", type=int, action="append", help="slots of the worker; may be repeated")
    parser.add_argument("--be-worker", nargs=4, metavar=("URL", "STATE", "SLOTS", "ISOLATION"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.be_worker:
        url, state, slots, isolation = parsed.be_worker
        asyncio.run(work(url, Path(state), int(slots), isolation))
        return
    header("actions")
    spawn, bwrap = spawns_per_s(["/bin/true"]), 0.0
    if (found := shutil.which("bwrap")) is not None:
        bwrap = spawns_per_s([found, *BWRAP, "/bin/true"])
    else:
        print("  bwrap is not here: namespaces are compared with plain spawns")
    for slots in parsed.slots or (2, 8):
        buildbarns = measured_buildbarn(slots, parsed.seconds)
        for isolation in [parsed.only] if parsed.only else ["process", "namespaces"]:
            sandboxed = isolation == "namespaces" and bwrap
            spawned = ("bwrap /bin/true", bwrap) if sandboxed else ("fork+exec /bin/true", spawn)
            measure(isolation, slots, parsed.seconds, spawned, buildbarns)


if __name__ == "__main__":
    main()
