"""Actions that do nothing: how many a second, how long one takes alone, and whose processor time it is.

Back of the envelope, both cores together: starting and ending /bin/true is 0.7-1.3 ms of kernel; the supervisor beside
it and a control group half as much again; namespaces 2-3 ms, most of it the network's. Each process of ours adds one
message in and out for each step: 0.3-0.6 ms in the controller (one call, three ledger entries, two messages of the
session), as much in the worker. So 780/s in `process` isolation and 300/s in namespaces leave nothing to waste.

Buildbarn is the peer, where its four programs are on PATH or named (BB_STORAGE, BB_SCHEDULER, BB_RUNNER, BB_WORKER): it
runs commands in no sandbox. Else, and always for what could be had at all, the machine itself in the same minute: fork
and exec of the same program, and bubblewrap around it, in as many threads as there are processors. The client is
native and costs some 0.1 ms an action. All take turns: the machine is not the same from minute to minute.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line, server
from bench.peers.execution import buildbarn
from bench.peers.servers import CannotBeHadError, load_binary
from bench.processes import below_cpu_s, cpu_s

SPAWNS = 400
STREAMS = 64
WARM = ["--warmup", "0"]
MANY = ["--streams", str(STREAMS), "--connections", "4", *WARM]
BWRAP = ["--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--"]


@dataclass
class Contestant:
    """Who is asked to run actions, and what was seen of it: one round after the other."""

    name: str
    url: str
    processes: Mapping[str, Callable[[], float]]
    """Processor time so far in seconds, by whose it is."""
    alone_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    each_ms: list[dict[str, float]] = field(default_factory=list)
    worst_ms: float = 0.0

    def round(self, seconds: float) -> None:
        """One action at a time, then as many as 64 clients ask for."""
        self.alone_ms.append(load(self.url, "--serial", "--seconds", str(seconds / 2), *WARM)["p50_us"] / 1e3)
        before = {whose: used_s() for whose, used_s in self.processes.items()}
        busy = load(self.url, *MANY, "--seconds", str(seconds))
        each = {whose: (used_s() - before[whose]) / busy["calls"] * 1e3 for whose, used_s in self.processes.items()}
        self.each_ms.append({**each, "client": busy["load_cpu_us_per_call"] / 1e3})
        self.per_s.append(busy["calls_per_s"])
        self.worst_ms = max(self.worst_ms, busy["p99_us"] / 1e3)

    def told(self, peers: Sequence[tuple[str, float, float]]) -> None:
        """Print the medians beside those of each peer: its name, actions a second, milliseconds of one alone."""
        per_s, alone_ms = median(self.per_s), median(self.alone_ms)
        for peer, peer_per_s, peer_alone_ms in peers:
            line(f"no-op, {self.name}, 64 clients", per_s, "actions/s", peer, peer_per_s)
            line(f"no-op, {self.name}, alone, p50", alone_ms, "ms", f"{peer}, ms", peer_alone_ms)
        shares = [f"{whose} {median(each[whose] for each in self.each_ms):.2f} ms" for whose in self.each_ms[0]]
        print(f"    CPU an action: {', '.join(shares)}; p99 with 64 clients {self.worst_ms:.1f} ms at worst")


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


def spent_s(pids: Sequence[int]) -> float:
    """Processor time of these, and of all that they started."""
    return sum(cpu_s(pid) + below_cpu_s(pid) for pid in pids)


def ours(stack: ExitStack, isolation: str, slots: int) -> Contestant:
    """A controller and a worker."""
    url, controller = stack.enter_context(server("--no-worker"))
    working = stack.enter_context(worker(url, slots, isolation))
    processes = {
        "controller": lambda: cpu_s(controller),
        "worker": lambda: cpu_s(working),
        "launcher and commands": lambda: below_cpu_s(working),
    }
    return Contestant(f"{isolation}, {slots} slots", url, processes)


def theirs(stack: ExitStack, slots: int) -> Contestant | None:
    """Buildbarn, if it is here."""
    try:
        url, pids = stack.enter_context(buildbarn(slots, generator()))
    except CannotBeHadError as error:
        print(f"  Buildbarn: {error}")
        return None
    return Contestant(f"Buildbarn, {slots} slots", url, {"all four": lambda: spent_s(pids)})


def measure(isolations: Sequence[str], slots: int, rounds: int, seconds: float, spawns: Mapping[str, float]) -> None:
    """All at once are there, and take turns: what one round is disturbed by, the next is not."""
    with ExitStack() as stack:
        peer = theirs(stack, slots)
        own = [(isolation, ours(stack, isolation, slots)) for isolation in isolations]
        everybody = [*([peer] if peer else []), *(contestant for _, contestant in own)]
        for contestant in everybody:
            load(contestant.url, "--calls", "200", "--seconds", "5", *WARM)
        for _ in range(rounds):
            for contestant in everybody:
                contestant.round(seconds)
    spawned = {name: (name, per_s, 1e3 / per_s) for name, per_s in spawns.items()}
    plain, *sandboxed = spawned.values()
    if peer is not None:
        peer.told([plain])
    for isolation, contestant in own:
        bare = sandboxed or [plain] if isolation == "namespaces" else [plain]
        beside = [] if peer is None else [("Buildbarn", median(peer.per_s), median(peer.alone_ms))]
        contestant.told([*bare, *beside])


def main() -> None:
    """Print each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each run")
    parser.add_argument("--only", choices=["process", "namespaces"], help="this isolation alone")
    parser.add_argument("--slots", type=int, action="append", help="slots of the worker; may be repeated")
    parser.add_argument("--be-worker", nargs=4, metavar=("URL", "STATE", "SLOTS", "ISOLATION"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.be_worker:
        url, state, slots, isolation = parsed.be_worker
        asyncio.run(work(url, Path(state), int(slots), isolation))
        return
    header("actions")
    spawns = {"fork+exec /bin/true": spawns_per_s(["/bin/true"])}
    if (found := shutil.which("bwrap")) is not None:
        spawns["bwrap /bin/true"] = spawns_per_s([found, *BWRAP, "/bin/true"])
    else:
        print("  bwrap is not here: namespaces are compared with plain spawns")
    for slots in parsed.slots or (2, 8):
        isolations = [parsed.only] if parsed.only else ["process", "namespaces"]
        measure(isolations, slots, parsed.rounds, parsed.seconds, spawns)


if __name__ == "__main__":
    main()
